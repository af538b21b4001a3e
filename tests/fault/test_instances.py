"""Agents that are killed at random: runs go on elsewhere, end once, and are lost by no mistake."""

import asyncio
import random
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

from orchestrator.core.events import TERMINAL

from ..processes import Running, free_port, spawn, start_server
from ..rigs import Tally
from ..stores import BOTH, Kept
from .load import call

AGENT = Path(__file__).with_name("mortal_agent.py")
WIDTH = 6
ATTEMPTS = 40
MAY_FAIL = {"agent_unavailable", "agent_eof"}


class Mortal:
    """An instance of an agent as a process of its own, always at the same address."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    async def start(self) -> None:
        """Start it and return once it listens."""
        command = [sys.executable, "-S", str(AGENT), str(self.port)]
        self._process = spawn(command, self._folder, self._folder / "agents.log", {})
        async with asyncio.timeout(20):
            while True:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", self.port)
                except OSError:
                    await asyncio.sleep(0.01)
                else:
                    writer.close()
                    return

    async def kill(self) -> None:
        """Kill it."""
        assert self._process is not None
        self._process.kill()
        assert await asyncio.to_thread(self._process.wait) == -signal.SIGKILL


@asynccontextmanager
async def _mortals(folder: Path) -> AsyncIterator[list[Mortal]]:
    mortals = [Mortal(folder) for _ in range(3)]
    try:
        for mortal in mortals:
            await mortal.start()
        yield mortals
    finally:
        for mortal in mortals:
            await mortal.kill()


async def _register(url: str, agent_id: str, mortals: list[Mortal], attempts: int) -> None:
    for number, mortal in enumerate(mortals):
        body = {
            "agent_id": agent_id, "name": agent_id, "instance_id": f"i{number}",
            "endpoint": f"http://127.0.0.1:{mortal.port}",
            "retry": {"max_attempts": attempts, "backoff_ms": 20, "max_backoff_ms": 200},
        }  # fmt: skip
        status, answer = await call(url, "POST", "/v1/agents/register", body)
        assert status == 200, answer


async def _slay(mortals: list[Mortal], rnd: random.Random, tally: Tally) -> None:
    """Kill one after the other at random and start it again, until cancelled."""
    while True:
        mortal = rnd.choice(mortals)
        await asyncio.sleep(rnd.uniform(0.02, 0.2))
        await mortal.kill()
        tally.fire("agents killed")
        try:
            await asyncio.sleep(rnd.uniform(0.0, 0.4))
        finally:
            await mortal.start()


async def _run(url: str, agent_id: str, number: int) -> list[dict[str, Any]]:
    """Invoke an agent and return the whole log of the run."""
    message = {"role": "user", "content": "go"}
    body = {"session_id": f"{agent_id}-{number}", "agent_id": agent_id, "input_message": message}
    status, run = await call(url, "POST", "/internal/invoke", body)
    assert status == 200, run
    path = f"/v1/runs/{run['run_id']}"
    async with asyncio.timeout(60):
        while (await call(url, "GET", path))[1]["status"] in {"CREATED", "RUNNING"}:
            await asyncio.sleep(0.02)
    events = (await call(url, "GET", f"{path}/events?limit=1000"))[1]["events"]
    assert [event["type"] in TERMINAL for event in events].index(True) == len(events) - 1
    return list(events)


def _judge(agent_id: str, events: list[dict[str, Any]], tally: Tally) -> None:
    end = events[-1]
    asked = [e["payload"]["instance_id"] for e in events if e["type"] == "agent_invoke_started"]
    assert [e["seq"] for e in events] == list(range(1, len(events) + 1))
    assert sum(e["type"] == "agent_invoke_retrying" for e in events) == len(asked) - 1
    tally.fire("retries", len(asked) - 1)
    tally.fire("retries elsewhere", sum(one != other for one, other in pairwise(asked)))
    if agent_id == "once":
        assert len(asked) == 1
        if end["type"] != "run_done":
            assert end["payload"]["code"] in MAY_FAIL, end
            tally.fire("lost without a retry")
        return
    assert end["type"] == "run_done", end
    void = max((e["payload"]["discard_from_seq"] for e in events if "retrying" in e["type"]),
               default=0)  # fmt: skip
    last = [e for e in events if e["type"] == "agent_stream_delta" and e["seq"] >= void]
    assert end["payload"]["final_message"] == "word " * 5
    assert len(last) >= 5


@asynccontextmanager
async def _servers(folder: Path, kept: Kept) -> AsyncIterator[list[Running]]:
    """Run one server on a file, or two on a database that they share."""
    servers: list[Running] = []
    try:
        for name in ("one", "other")[: 2 if kept.postgres else 1]:
            (folder / name).mkdir()
            started = await asyncio.to_thread(start_server, folder / name, **kept.settings)
            servers.append(started)
        yield servers
    finally:
        codes = [await asyncio.to_thread(server.stop) for server in servers]
    assert set(codes) == {0}


@BOTH
async def test_runs_survive_agents_that_are_killed(
    tmp_path: Path, tally: Tally, rounds_of: Callable[[int], int], kept: Kept
) -> None:
    tally.expect("agents killed", "retries elsewhere")
    numbers = iter(range(max(100, rounds_of(500))))
    rnd = random.Random(7)

    async def caller(url: str) -> None:
        for number in numbers:
            agent_id = "once" if number % 5 == 4 else "often"
            _judge(agent_id, await _run(url, agent_id, number), tally)
            tally.round()

    async with _mortals(tmp_path) as mortals, _servers(tmp_path, kept) as servers:
        await _register(servers[0].url, "often", mortals, ATTEMPTS)
        await _register(servers[-1].url, "once", mortals, 1)
        async with asyncio.TaskGroup() as tasks:
            slaying = tasks.create_task(_slay(mortals, rnd, tally))
            async with asyncio.TaskGroup() as callers:
                for n in range(WIDTH):
                    callers.create_task(caller(servers[n % len(servers)].url))
            slaying.cancel()
        for server in servers:
            status, agent = await call(server.url, "GET", "/v1/agents/often")
            assert status == 200
            assert {one["in_flight"] for one in agent["instances"]} == {0}
            assert (await call(server.url, "GET", "/health"))[0] == 200
    assert tally.fired["retries elsewhere"] > tally.fired["retries"] / 2


async def test_agents_with_invoke_alone_stay_in_use(tmp_path: Path) -> None:
    """`GET /health` is answered 404: what is unknown is called, killed or not."""
    async with _mortals(tmp_path) as mortals:
        server = await asyncio.to_thread(start_server, tmp_path)
        try:
            await _register(server.url, "often", mortals, 3)
            asked = set()
            for number in range(6):
                events = await _run(server.url, "often", number)
                assert events[-1]["type"] == "run_done"
                asked.add(events[2]["payload"]["instance_id"])
            assert asked == {"i0", "i1", "i2"}
            status, agents = await call(server.url, "GET", "/v1/agents?status=HEALTHY")
            assert (status, [one["agent_id"] for one in agents["agents"]]) == (200, ["often"])
        finally:
            assert await asyncio.to_thread(server.stop) == 0
