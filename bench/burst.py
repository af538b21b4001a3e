"""How many events a second go from agents as fast as they can through the log to readers, beside
SQLite alone inserting as many events of the same size.
"""

from collections.abc import Iterator
from statistics import median
from typing import Final

from bench.against.bulk import insert_rows, insert_segments
from bench.report import Row, Size
from bench.rig import Rig
from tests.processes import request

RUNS: Final = 8
BOUND: Final = 1.2


def measure(rig: Rig, size: Size) -> Iterator[Row]:
    """Yield events per second of the server and of SQLite, and their ratios."""
    ours, rows, segments = [], [], []
    each = size.burst // RUNS
    for _ in range(size.rounds):
        with rig.server() as server:
            blob = _an_event(rig, server.url, server.port)
            rig.callers.ask("reset")
            took = rig.callers.ask("run", runs=RUNS, message=f"burst {each}")
            rig.nothing_lost(rig.callers.ask("seen")["events"], RUNS * each)
            ours.append(RUNS * each / took)
        rows.append(insert_rows(rig.folder() / "rows.db", blob, RUNS * each))
        segments.append(insert_segments(rig.folder() / "segments.db", blob, RUNS * each))
    yield Row("burst", "events through the server", median(ours), "1/s")
    yield Row("burst", "events into SQLite alone, one row each", median(rows), "1/s")
    yield Row("burst", "events into SQLite alone, in segments", median(segments), "1/s")
    to_rows = median(a / b for a, b in zip(ours, rows, strict=True))
    to_segments = median(a / b for a, b in zip(ours, segments, strict=True))
    yield Row("burst", "events/s, server : SQLite, one row each", to_rows, least=BOUND)
    yield Row("burst", "events/s, server : SQLite, in segments", to_segments)


def _an_event(rig: Rig, url: str, port: int) -> bytes:
    """Return the stored bytes of a delta; the run that brings it also warms the server up."""
    rig.callers.ask("target", port=port)
    rig.callers.ask("run", runs=RUNS, message="burst 1000")
    run_id = request("GET", f"{url}/v1/runs?limit=1").json()["runs"][0]["run_id"]
    page = request("GET", f"{url}/v1/runs/{run_id}/events?after_seq=500&limit=1").body
    return page.removeprefix(b'{"events":[').partition(b"],")[0]
