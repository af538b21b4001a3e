"""What a benchmark reports, how much it measures, and the machine it was measured on."""

import os
import platform
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import msgspec

_SYNCS: Final = 200


class Size(msgspec.Struct, frozen=True):
    """How much is measured: seconds of warming up and of measuring, rounds, events, runs."""

    rounds: int = 3
    warm_s: float = 2.0
    window_s: float = 6.0
    burst: int = 400_000
    log: int = 1_000_000
    open_runs: int = 5000


QUICK: Final = Size(rounds=1, warm_s=1.0, window_s=3.0, burst=100_000)
"""Enough to see a large change; the figures that bounds name stay whole."""


class Row(msgspec.Struct, frozen=True):
    """One figure, None where it could not be taken and `note` says why; `most` or `least` bounds
    it where we set ourselves a bound.
    """

    bench: str
    what: str
    value: float | None
    unit: str = "×"
    most: float | None = None
    least: float | None = None
    note: str = ""

    @property
    def bounded(self) -> bool:
        """Return whether there is a bound."""
        return self.most is not None or self.least is not None

    @property
    def good(self) -> bool:
        """Return whether the figure keeps to its bound; one that could not be taken does not."""
        if self.value is None:
            return not self.bounded
        over = self.most is not None and self.value > self.most
        under = self.least is not None and self.value < self.least
        return not (over or under)

    @property
    def margin(self) -> float | None:
        """Return how many times better than its bound the figure is; below 1 it is beyond it."""
        if self.value is None or not self.bounded:
            return None
        if self.most is not None:
            return self.most / max(self.value, self.most / 1000)
        return self.value / self.least if self.least else None

    @property
    def mark(self) -> str:
        """Return the verdict as one character, a blank where there is no bound."""
        return " " if not self.bounded else "✓" if self.good else "✗"

    @property
    def bound(self) -> str:
        """Return the bound as text."""
        if self.most is not None:
            return f"≤ {self.most:,.4g}"
        return f"≥ {self.least:,g}" if self.least is not None else ""

    @property
    def figure(self) -> str:
        """Return the figure and its unit, to three digits or whole."""
        if self.value is None:
            return "–"
        digits = ",.0f" if abs(self.value) >= 100 else ".3g"
        return f"{self.value:{digits}} {self.unit}"


class Report(msgspec.Struct):
    """What a run of the benchmarks leaves behind; `unfinished` names those that failed."""

    machine: str
    rows: list[Row]
    unfinished: list[str] = []


def show(row: Row) -> None:
    """Print one row."""
    line = f"{row.mark} {row.bench:<8} {row.what:<66} {row.figure:>14}   {row.bound:<10}"
    print(f"{line}{row.note}".rstrip(), flush=True)


def write(path: Path, report: Report) -> None:
    """Write a report as JSON."""
    path.write_bytes(msgspec.json.format(msgspec.json.encode(report)) + b"\n")


def read(path: Path) -> Report:
    """Return a stored report."""
    return msgspec.json.decode(path.read_bytes(), type=Report)


def machine() -> str:
    """Return what absolute figures depend on: processors, Python, the disk's fsync."""
    p50, p99 = fsync_ms()
    return (
        f"{os.cpu_count()} processors, Python {platform.python_version()}, {platform.machine()}, "
        f"fsync p50 {p50:.2f} ms p99 {p99:.2f} ms"
    )


def fsync_ms() -> tuple[float, float]:
    """Return p50 and p99 of a small write and its fsync, in milliseconds."""
    took = []
    with tempfile.NamedTemporaryFile() as file:
        for _ in range(_SYNCS):
            began = time.perf_counter()
            _write_through(file)
            took.append((time.perf_counter() - began) * 1000)
    took.sort()
    return took[len(took) // 2], took[int(len(took) * 0.99)]


def _write_through(file: Any) -> None:
    file.write(b"x" * 4096)
    file.flush()
    os.fsync(file.fileno())
