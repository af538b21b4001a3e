"""What thousands of open runs cost: memory for each, and CPU per event compared with few runs."""

import time
from collections.abc import Iterator
from typing import Final

from bench.paced import RUNS, hold, pace, window
from bench.report import Row, Size
from bench.rig import Rig, many_descriptors

RATE: Final = 2500
SPARE: Final = 2000
SETTLE_S: Final = 2.0
MOST_KB: Final = 24
MOST_TIMES: Final = 1.5


def measure(rig: Rig, size: Size) -> Iterator[Row]:
    """Yield the memory of an open run with a reader, and what an event costs among so many."""
    runs = size.open_runs
    if 0 <= many_descriptors() < 2 * runs + SPARE:
        note = f"needs ulimit -Hn {2 * runs + SPARE}"
        yield Row("held", f"memory per run, {runs} open", None, "KB", most=MOST_KB, note=note)
        return
    with rig.server() as server:
        few = window(rig, server, RATE, size)
        time.sleep(SETTLE_S)
        before = server.memory()
        hold(rig, server, "words", runs)
        time.sleep(SETTLE_S)
        opened = server.memory() - before
        many = pace(rig, server, {"words": RATE}, size)
        spoken = server.memory() - before
    what = f"memory per run, {runs} open with a reader each"
    yield Row("held", what, opened / runs / 1024, "KB", most=MOST_KB)
    yield Row("held", "the same after they have spoken", spoken / runs / 1024, "KB")
    yield Row("held", f"CPU per event, {RUNS} runs", few.cpu, "µs")
    yield Row("held", f"CPU per event, {runs} runs", many.cpu, "µs")
    what = f"CPU per event, {runs} runs : {RUNS} runs"
    yield Row("held", what, many.cpu / few.cpu, most=MOST_TIMES)
    yield Row("held", f"delay p99, {runs} runs", many.p99, "ms")
