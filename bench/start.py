"""How soon a new server answers, and how much memory it takes while nobody calls."""

import time
from collections.abc import Iterator
from statistics import median
from typing import Final

from bench.report import Row, Size
from bench.rig import Rig

STARTS: Final = 5
IDLE_S: Final = 2.0
MOST_S: Final = 0.8
MOST_MB: Final = 90


def measure(rig: Rig, size: Size) -> Iterator[Row]:
    """Yield the time of a start in an empty folder, and the resident memory after it."""
    starts, memory = [], []
    for _ in range(STARTS * size.rounds):
        with rig.server() as server:
            starts.append(server.ready_s)
    with rig.server() as server:
        time.sleep(IDLE_S)
        memory.append(server.memory() / (1 << 20))
    yield Row(
        "start", "start in an empty folder, to the first answer", median(starts), "s", most=MOST_S
    )
    yield Row("start", "memory, idle", median(memory), "MB", most=MOST_MB)
