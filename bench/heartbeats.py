"""Heartbeats: what those of two thousand agents cost the server, which takes them all the time."""

import http.client
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from statistics import median
from typing import Final

from bench.report import Row, Size
from bench.rig import Rig, Running
from tests.processes import request

AGENTS: Final = 2000
EVERY_S: Final = 30
CONNECTIONS: Final = 8
BEATS: Final = 4
"""Heartbeats of each agent in one round."""
WRITTEN_S: Final = 1.2
"""How long after its arrival the last of them is written."""
MOST: Final = 1.0


def measure(rig: Rig, size: Size) -> Iterator[Row]:
    """Yield the share of one core that the heartbeats take at the pace they have by contract.

    All agents send one at once, which are then written, and the CPU of one is multiplied by the
    contract's pace: so what a wake-up costs is divided among more of them than at that pace. What
    an idle server uses meanwhile is no part of it.
    """
    costs = []
    with rig.server() as server:
        for number in range(AGENTS):
            body = {"agent_id": f"a{number}", "name": "a", "endpoint": "http://127.0.0.1:9"}
            request("POST", f"{server.url}/v1/agents/register", body)
        beat(server)
        idle = idle_cpu(server)
        for _ in range(size.rounds):
            began, spent = time.monotonic(), server.cpu()
            for _ in range(BEATS):
                beat(server)
                time.sleep(WRITTEN_S)
            spent = server.cpu() - spent - idle * (time.monotonic() - began)
            costs.append(spent / (AGENTS * BEATS))
    cost = median(costs)
    yield Row("heartbeats", "CPU of one heartbeat", cost * 1e6, "µs")
    what = f"CPU of one core for {AGENTS:,} agents' heartbeats"
    yield Row("heartbeats", what, cost * AGENTS / EVERY_S * 100, "%", most=MOST)


def idle_cpu(server: Running) -> float:
    """Return the seconds of CPU that the server uses in a second without any request."""
    began, spent = time.monotonic(), server.cpu()
    time.sleep(3)
    return (server.cpu() - spent) / (time.monotonic() - began)


def beat(server: Running) -> None:
    """Send a heartbeat of every agent, on connections that stay open."""
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        for done in [pool.submit(_beat, server, at) for at in range(CONNECTIONS)]:
            done.result()


def _beat(server: Running, first: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port)
    for number in range(first, AGENTS, CONNECTIONS):
        connection.request("POST", f"/v1/agents/a{number}/heartbeat")
        answer = connection.getresponse()
        if answer.read() != b'{"ok":true}':
            raise RuntimeError(f"a heartbeat was answered {answer.status}")
    connection.close()
