"""How many short runs a second: invoke, 20 deltas, the end, each followed by its caller; and what
they do to runs that stream beside them on a slow disk.
"""

from collections.abc import Iterator
from statistics import median
from typing import Final

from bench.paced import RUNS, hold, pace
from bench.report import Row, Size
from bench.rig import Rig, Running

CONNECTIONS: Final = (1, 16, 64)
DELTAS: Final = 20
MESSAGE: Final = f"short {DELTAS}"
BOUND: Final = 10
RATE: Final = 200
REACHED: Final = 0.95 * RATE
SLOWER_MS: Final = 4
DELAY_MS: Final = 2
WORDS: Final = {"words": 2500}


def measure(rig: Rig, size: Size) -> Iterator[Row]:
    """Yield runs per second and the time of an invoke at each width, and the ratios."""
    for connections in CONNECTIONS:
        ours, theirs = [], []
        for _ in range(size.rounds):
            with rig.server() as server:
                ours.append(_churn(rig, server, connections, size))
            with rig.conventional() as conventional:
                theirs.append(_churn(rig, conventional, connections, size))
        at = f"at {connections} connections" if connections > 1 else "at 1 connection"
        for name, samples in (("server", ours), ("conventional", theirs)):
            runs = median(sample["runs"] for sample in samples)
            yield Row("churn", f"runs {at}, {name}", runs, "1/s")
            for share in ("p50", "p99"):
                took = median(sample[f"invoke_{share}"] for sample in samples)
                yield Row("churn", f"invoke {share} {at}, {name}", took, "ms")
        ratio = median(a["runs"] / b["runs"] for a, b in zip(ours, theirs, strict=True))
        yield Row("churn", f"runs/s {at}, server : conventional", ratio, least=BOUND)
    yield from _on_a_slow_disk(rig, size)


def _churn(rig: Rig, running: Running, connections: int, size: Size) -> dict[str, float]:
    rig.callers.ask("target", port=running.port)
    rig.callers.ask("run", runs=connections, message=MESSAGE)
    sample: dict[str, float] = rig.callers.ask(
        "churn", connections=connections, message=MESSAGE, seconds=size.window_s
    )
    rig.nothing_lost(sample["events"], sample["ended"] * DELTAS)
    return sample


def _on_a_slow_disk(rig: Rig, size: Size) -> Iterator[Row]:
    """Yield the delay of words beside short runs when every sync takes longer."""
    folder = rig.folder()
    slowed = folder / "slowed"
    program = ("bench.slow_disk", str(SLOWER_MS), str(slowed))
    others = rig.load("bench.load.callers")
    with rig.server(folder, program) as server:
        for callers in (rig.callers, others):
            callers.ask("target", port=server.port)
        hold(rig, server, "words", RUNS)
        seconds = size.warm_s + size.window_s
        others.tell("churn", connections=16, message=MESSAGE, seconds=seconds, rate=RATE)
        words = pace(rig, server, WORDS, size)
        short = others.answer()
        rig.callers.ask("close")
    syncs = slowed.stat().st_size if slowed.exists() else 0
    if not syncs:
        raise RuntimeError("no sync was slowed: the server does not call sync.fdatasync any more")
    beside = f"beside {RATE} short runs/s, each sync {SLOWER_MS} ms slower"
    note = f"{syncs} syncs slowed"
    yield Row("churn", f"delay p90 {beside}", words.p90, "ms", most=DELAY_MS, note=note)
    yield Row("churn", f"delay p50 {beside}", words.p50, "ms")
    yield Row("churn", "short runs that were reached there", short["runs"], "1/s", least=REACHED)
    yield Row("churn", f"invoke p50 {beside}", short["invoke_p50"], "ms")
