"""The event loop stands still for seconds: leases, clocks, readers and runs survive it."""

import asyncio
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from orchestrator.testing.history import violations

from ..rigs import Tally
from .load import Agent, call, invoke, register, whole
from .nursery import Forked, nursery

STALLS_S = (12.0, 3.0, 7.0, 5.0, 10.5, 4.0)
"""Around the 10 s of the self-fence, below the 15 s of a lease."""
WORDS = 250
"""In 5 s: the runs outlast the beginning of every stall."""


async def _stall(server: Forked, seconds: float, tally: Tally) -> None:
    """Stop the process where it stands and let it go on `seconds` later."""
    server.send(signal.SIGSTOP)
    try:
        before = time.monotonic()
        while server.status("State") != "T":
            await asyncio.sleep(0.001)
        await asyncio.sleep(seconds)
        assert server.status("State") == "T"
        assert time.monotonic() - before >= seconds
        tally.fire("stalled")
    finally:
        server.send(signal.SIGCONT)


async def _round(server: Forked, number: int, seconds: float, tally: Tally) -> None:
    """Stall a server amid streaming runs, each with a reader; all must go on as if nothing was."""
    run_ids = [await invoke(server.url, f"s{number}-{n}") for n in range(8)]
    logs: dict[str, list[bytes]] = {run_id: [] for run_id in run_ids}
    async with asyncio.TaskGroup() as tasks:
        for run_id, seen in logs.items():
            tasks.create_task(whole(server.url, run_id, seen))
        while not all(len(seen) > 10 for seen in logs.values()):
            await asyncio.sleep(0.01)
        async with asyncio.TaskGroup() as stalled:
            stalled.create_task(_stall(server, seconds, tally))
            await asyncio.sleep(seconds / 2)
            tasks.create_task(_late(server.url, f"s{number}-late"))
    for run_id, seen in logs.items():
        replay: list[bytes] = []
        await whole(server.url, run_id, replay)
        assert violations(replay, seen) == []
        _, run = await call(server.url, "GET", f"/v1/runs/{run_id}")
        assert (run["status"], len(seen)) == ("DONE", WORDS + 5), seen[-1]


async def _late(url: str, session: str) -> None:
    """Invoke while the server stands still: it answers once it goes on."""
    seen: list[bytes] = []
    await whole(url, await invoke(url, session), seen)
    assert violations(seen, seen) == []


async def _stalls(folder: Path, tally: Tally, stalls: Sequence[float], **env: str) -> str:
    """Stall one server once per entry of `stalls` and return what it wrote."""
    tally.expect("stalled")
    with nursery() as nurse:
        server = await asyncio.to_thread(nurse.start(folder, {}, **env).up)
        async with Agent(deltas=WORDS, pause_s=0.1).serving() as agent_url:
            await register(server.url, agent_url)
            for number, seconds in enumerate(stalls):
                await _round(server, number, seconds, tally)
                tally.round()
        server.send(signal.SIGTERM)
        assert await asyncio.to_thread(server.wait) == 0
    assert "Traceback" not in server.said()
    return server.said()


async def test_a_stall_costs_time_and_nothing_else(
    tmp_path: Path, tally: Tally, rounds_of: Callable[[int], int]
) -> None:
    stalls = [STALLS_S[n % len(STALLS_S)] for n in range(rounds_of(20))]
    said = await _stalls(tmp_path, tally, stalls, KEEP_ALIVE_MS="1000")
    assert "fenced" not in said


async def test_our_own_stall_is_not_the_agents_silence(tmp_path: Path, tally: Tally) -> None:
    await _stalls(tmp_path, tally, [4.0], AGENT_IDLE_TIMEOUT_MS="2000")


async def test_a_stall_beyond_the_lease_ends_no_run_of_its_own(
    tmp_path: Path, tally: Tally
) -> None:
    await _stalls(tmp_path, tally, [17.0])
