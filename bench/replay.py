"""A long log: how soon a killed server is back with it, how fast one run is read from the disk."""

from collections.abc import Iterator
from statistics import median
from typing import Final

from bench.report import Row, Size
from bench.rig import Rig
from tests.processes import request

SHORTER: Final = 10
LEAST: Final = 300_000
MOST_S: Final = 1.0


def measure(rig: Rig, size: Size) -> Iterator[Row]:
    """Yield the time of a restart and the rate of one reader's replay."""
    folder = rig.folder()
    half = size.log // 2
    with rig.server(folder, MAX_RUN_BYTES="4GB") as server:
        rig.callers.ask("target", port=server.port)
        rig.callers.ask("run", runs=SHORTER, message=f"burst {half // SHORTER}")
        rig.callers.ask("run", runs=1, message=f"burst {half}")
        run = request("GET", f"{server.url}/v1/runs?limit=1").json()["runs"][0]["run_id"]
    restarts, rates = [], []
    for _ in range(size.rounds):
        with rig.server(folder) as server:
            restarts.append(server.ready_s)
            rig.callers.ask("target", port=server.port)
            took = rig.callers.ask("read", run_id=run)
            rig.nothing_lost(rig.callers.ask("seen")["events"], half)
            rates.append(half / took)
    what = f"restart after a kill, {size.log} events"
    yield Row("replay", what, median(restarts), "s", most=MOST_S)
    yield Row("replay", "events from disk to one reader", median(rates), "1/s", least=LEAST)
