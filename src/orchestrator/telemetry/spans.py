"""One span(): its end becomes a log line at `debug`, a duration, and an OpenTelemetry span.

Nothing here is called for an event of a run: a run has one span, and one for each attempt.
"""

from types import TracebackType
from typing import Any, Protocol, Self, TypeAlias

from orchestrator.core.trace import Trace
from orchestrator.telemetry import conventions
from orchestrator.telemetry.durations import observe
from orchestrator.telemetry.ended import Ended
from orchestrator.telemetry.logs import get_logger
from orchestrator.telemetry.process import PROCESS, heard

log = get_logger(__name__)

Exceptions: TypeAlias = tuple[type[BaseException], ...]


class Clock(Protocol):
    """What tells the time; `ports.World` is one."""

    def now(self) -> int:
        """Return milliseconds UTC."""
        ...

    def monotonic(self) -> float:
        """Return seconds of a clock that never jumps."""
        ...


class Span:
    """A piece of work while it is done; who does it sets `outcome` and `error` before its end.

    Without an outcome it is `done`; when an exception leaves it, `stopped` by one of those that
    mean this, `failed` by any other. Where nobody listens it keeps the time and nothing else.
    """

    __slots__ = (
        "_attributes", "_began", "_clock", "_name", "_since", "_stops", "_trace", "error",
        "outcome",
    )  # fmt: skip

    def __init__(
        self, name: str, clock: Clock, stops: Exceptions, attributes: dict[str, Any]
    ) -> None:
        self._name = name
        self._clock = clock
        self._stops = stops
        self._attributes = attributes if heard() else None
        self._trace: Trace | None = None
        self.outcome: str | None = None
        self.error: str | None = None

    def __enter__(self) -> Self:
        self._began = 0 if self._attributes is None else self._clock.now()
        self._since = self._clock.monotonic()
        return self

    def at(self, trace: Trace) -> None:
        """Say where in a trace it is; without it the span is sent to nobody."""
        if self._attributes is not None:
            self._trace = trace

    def add(self, **attributes: Any) -> None:
        """Say more of it."""
        if self._attributes is not None:
            self._attributes |= attributes

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        if self.outcome is None and kind is not None:
            stopped = issubclass(kind, self._stops)
            self.outcome, self.error = ("stopped", None) if stopped else ("failed", kind.__name__)
        tell(
            Ended(
                name=self._name,
                trace=self._trace,
                began=self._began,
                seconds=self._clock.monotonic() - self._since,
                outcome=self.outcome or "done",
                error=self.error,
                attributes=self._attributes or {},
            )
        )


def span(name: str, clock: Clock, *, stops: Exceptions = (), **attributes: Any) -> Span:
    """Return a context for a piece of work; its end is told of."""
    return Span(name, clock, stops, attributes)


def tell(ended: Ended) -> None:
    """Tell of a span that is over."""
    observe(ended.name, ended.outcome, ended.seconds)
    if PROCESS.debug:
        log.debug("span_ended", **_fields(ended))
    exporter, trace = PROCESS.exporter, ended.trace
    if exporter is not None and trace is not None and trace.sampled:
        exporter.export(ended, trace)


def _fields(ended: Ended) -> dict[str, Any]:
    trace = ended.trace
    ids = {} if trace is None else {"trace_id": trace.trace_id, "span_id": trace.span_id}
    return {
        "span": ended.name,
        "outcome": ended.outcome,
        "seconds": round(ended.seconds, 6),
        **ids,
        **conventions.fields({**ended.attributes, "error": ended.error}),
    }
