"""kill -9 under load: what was promised is there, what was shown is true, runs end once."""

import asyncio
import random
import signal
from collections.abc import Callable
from pathlib import Path

from orchestrator.testing.history import violations

from ..processes import Running, start_server
from .load import Agent, Load, call, follow, invoke, register


async def _round(server: Running, rnd: random.Random) -> Load:
    """Load the server, kill it at a random moment, return what it had promised until then."""
    load = Load(server.url)
    async with asyncio.TaskGroup() as tasks:
        loading = tasks.create_task(load.run())
        await asyncio.sleep(rnd.uniform(0.05, 0.6))
        server.process.send_signal(signal.SIGKILL)
        await asyncio.to_thread(server.process.wait)
        await asyncio.wait({loading}, timeout=10)
        assert loading.done()
    assert server.process.returncode == -signal.SIGKILL
    return load


async def _check(url: str, load: Load) -> None:
    """Check every run the dead server had acknowledged against its successor."""
    for run_id, seen in load.acked.items():
        replay: list[bytes] = []
        async with asyncio.timeout(30):
            while not await follow(url, run_id, replay):
                pass
        assert violations(replay, seen) == [], run_id
        status, run = await call(url, "GET", f"/v1/runs/{run_id}")
        assert status == 200
        key = load.keys[run_id]
        body = {
            "session_id": run["session_id"],
            "agent_id": "load",
            "input_message": {"role": "user", "content": key},
            "request_id": key,
        }
        status, again = await call(url, "POST", "/internal/invoke", body)
        assert (status, again["run_id"]) == (200, run_id)


async def test_kill_under_load_loses_nothing_that_was_promised(
    tmp_path: Path, rounds_of: Callable[[int], int]
) -> None:
    rounds = rounds_of(200)
    rnd = random.Random(9)  # a seeded test
    agent = Agent()
    hit = promised = 0
    async with agent.serving() as agent_url:
        server = await asyncio.to_thread(start_server, tmp_path)
        try:
            await register(server.url, agent_url)
            for _ in range(rounds):
                load = await _round(server, rnd)
                hit += len(load.acked) > len(load.whole)
                promised += len(load.acked)
                server = await asyncio.to_thread(start_server, tmp_path)
                await _check(server.url, load)
        finally:
            server.kill()
    print(f"kill -9: {rounds} rounds, {hit} with runs in flight, {promised} runs promised")
    assert hit >= rounds * 0.8
    assert promised > rounds


async def test_the_rig_sees_a_log_that_was_cut(tmp_path: Path) -> None:
    async with Agent(deltas=5).serving() as agent_url:
        server = await asyncio.to_thread(start_server, tmp_path)
        try:
            await register(server.url, agent_url)
            run_id = await invoke(server.url, "s")
            seen: list[bytes] = []
            while not await follow(server.url, run_id, seen):
                pass
        finally:
            server.kill()
    assert violations(seen, seen) == []
    assert violations(seen[:-1], seen)
    assert violations([*seen[:3], *seen[4:]])
    assert violations([*seen, seen[-1]])
    assert violations([*seen[:-2], seen[-1], seen[-2]])
