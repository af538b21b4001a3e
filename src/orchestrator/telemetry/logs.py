"""Log lines: an event name and fields, never a sentence with values; bodies and secrets never."""

import logging
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import structlog

from orchestrator.telemetry.process import PROCESS

LEVELS = {"debug": 10, "info": 20, "warn": 30, "warning": 30, "error": 40}


def get_logger(name: str) -> Any:
    """Return the logger of a module."""
    return structlog.get_logger(module=name.removeprefix("orchestrator."))


def bind(**ids: str) -> None:
    """Put ids on every later log line of this task and of the tasks it makes.

    For the first line of a task, whose context ends with it; elsewhere use `bound`.
    """
    structlog.contextvars.bind_contextvars(**ids)


def bound(**ids: str) -> AbstractContextManager[None]:
    """Return a context in which every log line carries `ids`; leaving it restores what was."""
    return structlog.contextvars.bound_contextvars(**ids)


@contextmanager
def unbound() -> Iterator[None]:
    """Carry no ids for a while: what is begun meanwhile, and outlives its beginner, has none.

    A connection of a pool is such a thing; the loop calls it in the context that it was made in.
    """
    ids = structlog.contextvars.get_contextvars()
    structlog.contextvars.unbind_contextvars(*ids)
    try:
        yield
    finally:
        structlog.contextvars.bind_contextvars(**ids)


def configure(level: str, *, terminal: bool) -> None:
    """Write log lines to standard error: coloured on a terminal, JSON otherwise.

    What libraries log is written where it is an error, at `debug` where it is a warning, too.
    """
    renderer: Any = (
        structlog.dev.ConsoleRenderer() if terminal else structlog.processors.JSONRenderer()
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            # Before the renderer, whose own tracebacks show the values of every frame: bearers too.
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    PROCESS.debug = LEVELS[level] <= LEVELS["debug"]
    heard = logging.WARNING if PROCESS.debug else logging.ERROR
    logging.basicConfig(handlers=[_Libraries(heard)], level=heard, force=True)


class _Libraries(logging.Handler):
    """Passes on what uvicorn, asyncio and other libraries log; logging asks for a subclass."""

    def emit(self, record: logging.LogRecord) -> None:
        structlog.get_logger(module=record.name).log(
            record.levelno, "library_said", said=record.getMessage(), exc_info=record.exc_info
        )
