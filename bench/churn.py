"""How many short runs a second: invoke, 20 deltas, the end, each followed by its caller; and what
they do to runs that stream beside them on a slow disk.
"""

from collections.abc import Iterator
from statistics import median
from typing import Final

from bench.report import Row, Size
from bench.rig import Rig, Running

CONNECTIONS: Final = (1, 16, 64)
MESSAGE: Final = "short 20"
BOUND: Final = 10


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


def _churn(rig: Rig, running: Running, connections: int, size: Size) -> dict[str, float]:
    rig.callers.ask("target", port=running.port)
    rig.callers.ask("run", runs=connections, message=MESSAGE)
    sample: dict[str, float] = rig.callers.ask(
        "churn", connections=connections, message=MESSAGE, seconds=size.window_s
    )
    return sample
