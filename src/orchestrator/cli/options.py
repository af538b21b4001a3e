"""Options that many commands share."""

import sys
from collections.abc import Callable
from typing import Any, Final

import click

from orchestrator.cli.failure import CommandFailed
from orchestrator.cli.server import Server
from orchestrator.core import values

_DIGITS_MAX: Final = 9
UNITS: Final = {"s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
STATES: Final = (
    "created", "running", "paused_waiting_tool", "paused_waiting_approval",
    "done", "failed", "cancelled",
)  # fmt: skip

as_json: Final[Callable[[Any], Any]] = click.option(
    "--json", "json", is_flag=True, help="Write JSON, one value on a line."
)
url: Final[Callable[[Any], Any]] = click.option(
    "--url",
    metavar="URL",
    help="The server to talk to.  [default: ORCHESTRATOR_URL, else this machine's]",
)


def server(given: str | None) -> Server:
    """Return the server that `--url`, ORCHESTRATOR_URL or HTTP_PORT names, with our key."""
    from orchestrator.settings import server_key, server_url

    return Server(given or server_url(), server_key())


def standard_input() -> str:
    """Return what standard input holds, as text."""
    if sys.stdin is None:
        raise CommandFailed("standard input is closed")
    return text_of(sys.stdin.buffer.read(), "standard input")


def text_of(data: bytes, source: str) -> str:
    """Return bytes as text; raises CommandFailed naming the source when they are none."""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise CommandFailed(f"{source} is not UTF-8 text ({error.reason})") from None


def age_ms(text: str | None) -> int | None:
    """Return an age such as 30d, 12h, 30m or 90s in milliseconds."""
    if text is None:
        return None
    number, unit = text[:-1], text[-1:]
    if not (values.is_number(number, _DIGITS_MAX) and unit in UNITS):
        raise CommandFailed(f"{text!r} is no age; write 30d, 12h, 30m or 90s")
    return int(number) * UNITS[unit]
