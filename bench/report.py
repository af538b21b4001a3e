"""What a benchmark reports, and the machine it was measured on."""

import os
import platform
import tempfile
import time
from pathlib import Path
from typing import Final

import msgspec

_SYNCS: Final = 200


class Row(msgspec.Struct, frozen=True):
    """One figure; `most` or `least` bounds it where we set ourselves a bound."""

    bench: str
    what: str
    value: float
    unit: str = "×"
    most: float | None = None
    least: float | None = None

    @property
    def good(self) -> bool:
        """Return whether the figure keeps to its bounds."""
        over = self.most is not None and self.value > self.most
        under = self.least is not None and self.value < self.least
        return not (over or under)


def show(row: Row) -> None:
    """Print one row."""
    bound = f"≤ {row.most:g}" if row.most is not None else ""
    bound = f"≥ {row.least:g}" if row.least is not None else bound
    mark = " " if not bound else "✓" if row.good else "✗"
    print(
        f"{mark} {row.bench:<12} {row.what:<58} {row.value:>12,.3f} {row.unit:<6} {bound}",
        flush=True,
    )


def write(path: Path, rows: list[Row]) -> None:
    """Write the rows and the machine as JSON."""
    path.write_bytes(msgspec.json.encode({"machine": machine(), "rows": rows}))


def machine() -> str:
    """Return what absolute figures depend on: processors, Python, the disk's fsync."""
    syncs = sorted(_syncs())
    p50, p99 = syncs[len(syncs) // 2], syncs[int(len(syncs) * 0.99)]
    return (
        f"{os.cpu_count()} processors, Python {platform.python_version()}, {platform.machine()}, "
        f"fsync p50 {p50:.2f} ms p99 {p99:.2f} ms"
    )


def _syncs() -> list[float]:
    took = []
    with tempfile.NamedTemporaryFile() as file:
        for _ in range(_SYNCS):
            began = time.perf_counter()
            file.write(b"x" * 4096)
            file.flush()
            os.fsync(file.fileno())
            took.append((time.perf_counter() - began) * 1000)
    return took
