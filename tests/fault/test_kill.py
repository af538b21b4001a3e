"""kill -9 under load, at the start, in a drain: what was promised is there, and ends once."""

import asyncio
import random
import signal
from collections.abc import Callable
from pathlib import Path

from orchestrator.stores.sqlite import open_store
from orchestrator.testing.fake_world import FakeWorld
from orchestrator.testing.history import violations

from ..processes import start_server
from ..rigs import Tally
from .agreement import disagreements
from .load import Agent, Load, call, follow, invoke, register
from .nursery import Forked, Nurse, nursery

PER_DATABASE = 40
"""Rounds until a database is put away, so that rounds stay short."""
KILLED = -signal.SIGKILL


async def _loaded(server: Forked, rnd: random.Random) -> tuple[Load, bool]:
    """Load a server, kill it at some moment; return what it promised, and whether in a drain."""
    load = Load(server.url)
    async with asyncio.TaskGroup() as tasks:
        loading = tasks.create_task(load.run())
        await asyncio.sleep(rnd.uniform(0.03, 0.3))
        if rnd.random() < 0.3:
            server.send(signal.SIGTERM)
            await asyncio.sleep(rnd.uniform(0, 0.12))
            code = await asyncio.to_thread(server.kill)
        else:
            code = await asyncio.to_thread(server.kill)
            assert code == KILLED, server.said()[-2000:]
        await asyncio.wait({loading}, timeout=10)
        assert loading.done()
    said = server.said().rpartition("listening")[2]
    return load, code == KILLED and '"draining"' in said


async def _started(nurse: Nurse, folder: Path, rnd: random.Random, tally: Tally) -> Forked:
    """Start a server, often only after others were killed at their start."""
    while rnd.random() < 0.4:
        written = len((folder / "server.log").read_text())
        dying = nurse.start(folder)
        await asyncio.sleep(rnd.uniform(0.0, 0.06))
        assert await asyncio.to_thread(dying.kill) == KILLED
        if "listening" not in dying.said()[written:]:
            tally.fire("killed at the start")
    return await asyncio.to_thread(nurse.start(folder).up)


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


async def _rounds(
    nurse: Nurse, folder: Path, agent_url: str, rounds: int, seed: int, tally: Tally
) -> None:
    """Kill servers on one database; at the end its rows must agree with its logs."""
    folder.mkdir()
    rnd = random.Random(seed)
    server = await asyncio.to_thread(nurse.start(folder).up)
    await register(server.url, agent_url, on_lost=("fail", "retry")[seed % 2])
    for _ in range(rounds):
        load, drained = await _loaded(server, rnd)
        tally.fire("killed in a drain" if drained else "killed under load")
        tally.fire("runs in flight", len(load.acked) - len(load.whole))
        tally.fire("runs promised", len(load.acked))
        server = await _started(nurse, folder, rnd, tally)
        await _check(server.url, load)
        tally.round()
    server.send(signal.SIGTERM)
    assert await asyncio.to_thread(server.wait) == 0
    store = await open_store(f"file:{folder}/orchestrator.db", world=FakeWorld())
    assert await disagreements(store) == []
    await store.close()


async def test_kill_under_load_loses_nothing_that_was_promised(
    tmp_path: Path, tally: Tally, rounds_of: Callable[[int], int]
) -> None:
    left = rounds_of(1000)
    tally.expect("killed under load", "killed at the start", "killed in a drain", "runs in flight")
    agent = Agent(deltas=60)
    async with agent.serving() as agent_url:
        with nursery() as nurse:
            while left > 0:
                rounds = min(left, PER_DATABASE if left > PER_DATABASE else -(-left // 2))
                folder = tmp_path / f"{left}"
                await _rounds(nurse, folder, agent_url, rounds, left, tally)
                left -= rounds
    assert tally.fired["runs promised"] > tally.rounds
    assert tally.fired["runs in flight"] >= tally.rounds * 0.8


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
