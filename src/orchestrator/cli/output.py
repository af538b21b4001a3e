"""What people read: styled on a terminal, plain lines otherwise, JSON on request.

Words that come from agents never reach a terminal as commands: control characters are made
visible, because a run's log outlives the trust in who wrote it.
"""

import re
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

NARROWEST: Final = 80
"""The width that is written for at least: a narrower terminal breaks the lines, none is cut."""
_CONTROL: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
STYLES: Final = {
    "DONE": "green", "FAILED": "red", "CANCELLED": "yellow", "RUNNING": "cyan", "CREATED": "dim",
    "healthy": "green", "unhealthy": "red", "draining": "yellow",
}  # fmt: skip


def safe(text: str) -> str:
    """Return text whose control characters can be seen and do nothing."""
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text.replace("\r\n", "\n"))


class Output:
    """One command's output: results on standard output, remarks on standard error."""

    def __init__(self, *, json: bool = False) -> None:
        self.json = json
        self._out = Console(highlight=False, soft_wrap=True)
        self._out.width = max(self._out.width, NARROWEST)
        self._err = Console(stderr=True, highlight=False, soft_wrap=True)
        self._open_line = False

    @property
    def terminal(self) -> bool:
        """Return whether a person reads standard output directly."""
        return self._out.is_terminal

    @property
    def width(self) -> int:
        """Return how many characters fit on a line of the terminal."""
        return self._out.width

    def result(self, value: Any) -> None:
        """Write one JSON value on a line of its own."""
        self.raw(msgspec.json.encode(value).decode())

    def raw(self, text: str) -> None:
        """Write a line as it is, for programs."""
        sys.stdout.write(text + "\n")
        sys.stdout.flush()

    def line(self, text: str = "", style: str = "") -> None:
        """Write a line."""
        self.close_line()
        self._out.print(Text(safe(text), style=style))

    def words(self, text: str) -> None:
        """Write a piece of an agent's answer without ending the line."""
        shown = safe(text) if self.terminal else text
        sys.stdout.write(shown)
        sys.stdout.flush()
        if text:
            self._open_line = not text.endswith("\n")

    def close_line(self) -> None:
        """End a line that words have left open."""
        if self._open_line:
            sys.stdout.write("\n")
            sys.stdout.flush()
            self._open_line = False

    def remark(self, text: str, style: str = "dim") -> None:
        """Write a line for the person, out of the way of the result."""
        self.close_line()
        self._err.print(Text(safe(text), style=style))

    def check(self, *, good: bool | None, text: str, fix: str = "") -> None:
        """Write one checked item: ✓, ✗ with its fix, or – for what could not be checked."""
        mark, style = {True: ("✓", "green"), False: ("✗", "red"), None: ("–", "dim")}[good]
        self._out.print(Text.assemble((mark, style), " ", safe(text)))
        if fix and not good:
            self._out.print(Text(f"    {safe(fix)}", style="dim"))

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Write rows: a table on a terminal, tab-separated lines otherwise.

        The first column names the thing, so that it is never cut.
        """
        if not self.terminal:
            for row in rows:
                self.raw("\t".join(safe(_cell(value)).replace("\t", " ") for value in row))
            return
        table = Table(box=None, pad_edge=False, header_style="bold")
        widest = max((len(safe(_cell(row[0]))) for row in rows), default=0)
        table.add_column(columns[0], no_wrap=True, overflow="ignore", min_width=widest)
        for column in columns[1:]:
            table.add_column(column)
        for row in rows:
            table.add_row(*(Text(safe(_cell(v)), style=STYLES.get(str(v), "")) for v in row))
        self._out.print(table)

    def fields(self, value: dict[str, Any]) -> None:
        """Write the fields of one thing, a line each."""
        width = max(map(len, value), default=0)
        for name, field in value.items():
            shown = field if isinstance(field, str) else msgspec.json.encode(field).decode()
            self._out.print(Text.assemble((name.ljust(width), "bold"), "  ", safe(shown)))


def _cell(value: Any) -> str:
    return "-" if value is None or value == "" else str(value)


def clock(ms: int | None) -> str:
    """Return a time of day in this machine's zone, with its date when that is not today's."""
    if ms is None:
        return "-"
    try:
        at = datetime.fromtimestamp(ms / 1000, UTC).astimezone()
    except (ValueError, OverflowError, OSError):
        return str(ms)  # beyond the calendar
    return at.strftime("%Y-%m-%d %H:%M:%S")


def duration(ms: int | None) -> str:
    """Return a span as a person would say it."""
    if ms is None:
        return "-"
    if ms < 1000:  # noqa: PLR2004  # a second
        return f"{ms} ms"
    seconds = ms / 1000
    return f"{seconds:.1f} s" if seconds < 90 else f"{seconds / 60:.1f} min"  # noqa: PLR2004  # the eye's own limits
