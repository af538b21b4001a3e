"""A thousand devices at the ingress: what a message costs, beside a bare broadcast to as many."""

import sys
import time
from collections.abc import Iterator
from statistics import median
from typing import Final

from bench.report import Row, Size
from bench.rig import Load, Rig, Running, port, until
from tests.processes import ROOT, request

SESSIONS: Final = 200
EACH: Final = 5
RATE: Final = 5.0
MOST: Final = 3.0
_MESSAGE: Final = "paced devices 0"


def measure(rig: Rig, size: Size) -> Iterator[Row]:
    """Yield CPU per delivered message: of the ingress, of the bare broadcast, and their ratio."""
    load = rig.load("bench.load.devices")
    pairs = [(_ingress(rig, load, size), _bare(rig, load, size)) for _ in range(size.rounds)]
    devices = f"{SESSIONS * EACH} devices in sessions of {EACH}"
    ours, bare = (median(one) for one in zip(*pairs, strict=True))
    yield Row("devices", f"CPU per message, {devices}", ours, "µs")
    yield Row("devices", "the same, broadcast alone", bare, "µs")
    what = "CPU per message, ingress : broadcast alone"
    yield Row("devices", what, median(a / b for a, b in pairs), most=MOST)


def _ingress(rig: Rig, load: Load, size: Size) -> float:
    own = port()
    with rig.server(MAX_RUN_BYTES="4GB") as server:
        env = {"WS_PORT": str(own), "ORCHESTRATOR_URL": server.url}
        sources = {"PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"}
        command = [sys.executable, "-m", "orchestrator", "ingress"]
        with rig.started(command, own, env=env | sources) as ingress:
            load.ask("connect", port=own, sessions=SESSIONS, each=EACH, greet=True)
            load.ask("invoke", message=_MESSAGE)
            rig.until_streaming("devices", SESSIONS)
            rig.agents.ask("pace", rates={"devices": SESSIONS * RATE}, seconds=_paced_s(size))
            cost = _cost(load, ingress, size)
            sent = rig.agents.ask("settle")["sent"]
            expected = sent * EACH
            until(lambda: load.ask("told") >= expected, "every message arrives")
            rig.agents.ask("end", group="devices")
            answer = request("GET", f"{ingress.url}/health").json()
            if answer["connections"] != SESSIONS * EACH:
                raise RuntimeError(f"the ingress lost devices: {answer}")
            load.ask("close")
    return cost


def _bare(rig: Rig, load: Load, size: Size) -> float:
    own = port()
    command = [sys.executable, str(ROOT / "bench/load/devices_bare.py"), str(own), str(RATE)]
    with rig.started(command, own, relays=True) as bare:
        load.ask("connect", port=own, sessions=SESSIONS, each=EACH, greet=False)
        cost = _cost(load, bare, size)
        load.ask("close")
    return cost


def _paced_s(size: Size) -> float:
    return size.warm_s + size.window_s + 1.0


def _cost(load: Load, server: Running, size: Size) -> float:
    """Return the microseconds of CPU that a message cost while a window passed."""
    time.sleep(size.warm_s)
    cpu, told = server.cpu(), int(load.ask("told"))
    time.sleep(size.window_s)
    spent, got = server.cpu() - cpu, int(load.ask("told")) - told
    if got < SESSIONS * EACH * RATE * size.window_s * 0.8:
        raise RuntimeError(f"only {got} messages were delivered in {size.window_s:g} s")
    return spent / got * 1e6
