"""What a reader that never reads does to the server's memory and to everybody else."""

from collections.abc import Iterator
from statistics import median
from typing import Final

from bench.paced import RUNS, Sample, hold, pace
from bench.report import Row, Size
from bench.rig import Rig, Running

RATES: Final = {"words": 2000, "pages": 500}
PAGE: Final = 8000
MOST_MB: Final = 2
MOST_TIMES: Final = 1.3
"""What counts as unmoved: two windows of the same load differ by less."""


def measure(rig: Rig, size: Size) -> Iterator[Row]:
    """Yield the growth that such a reader adds, and the others' delay beside it."""
    growths, ratios = [], []
    for _ in range(size.rounds):
        without, beside = _round(rig, size)
        growths.append((beside[0] - without[0]) / (1 << 20))
        ratios.append(beside[1].p99 / without[1].p99)
    what = "growth beside a reader that never reads, beyond that without"
    yield Row("stalled", what, median(growths), "MB", most=MOST_MB)
    what = "others' delay p99, beside it : without"
    yield Row("stalled", what, median(ratios), most=MOST_TIMES)


def _round(rig: Rig, size: Size) -> tuple[tuple[int, Sample], tuple[int, Sample]]:
    """Return growth and delays of one server without the reader, then with it."""
    with rig.server(MAX_RUN_BYTES="4GB") as server:
        rig.callers.ask("target", port=server.port)
        hold(rig, server, "pages", 1, PAGE)
        hold(rig, server, "words", RUNS)
        pace(rig, server, RATES, size)
        rig.callers.ask("join", number=0)
        pace(rig, server, RATES, size)  # the same reader, reading: now all caches are full
        without = _grown(rig, server, size)
        rig.callers.ask("join", number=0, deaf=True)
        beside = _grown(rig, server, size)
        rig.callers.ask("close")
        return without, beside


def _grown(rig: Rig, server: Running, size: Size) -> tuple[int, Sample]:
    before = server.memory()
    sample = pace(rig, server, RATES, size)
    return server.memory() - before, sample
