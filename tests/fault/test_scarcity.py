"""No descriptors or no memory left: new work is refused or the server stops; nothing is lost."""

import asyncio
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from orchestrator.testing.history import violations

from ..rigs import Tally
from .load import CUT, Agent, call, invoke, register, whole
from .nursery import Forked, Nurse, nursery

MIB = 1 << 20
DESCRIPTORS = 64
CLEAR = {429, 500, 503}
"""Statuses that tell a caller to come again."""


async def crowd(url: str, size: int) -> list[asyncio.StreamWriter]:
    """Open connections that say nothing; those that are not let in are not among them."""
    parts = urlsplit(url)
    opened: list[asyncio.StreamWriter] = []
    for _ in range(size):
        with suppress(OSError, TimeoutError):
            async with asyncio.timeout(1):
                _, writer = await asyncio.open_connection(parts.hostname, parts.port)
                opened.append(writer)
    return opened


async def tried(url: str, session: str, content: str = "go") -> tuple[int, Any]:
    """Invoke once and return the answer, or status 0 when there was none in time."""
    message = {"role": "user", "content": content}
    body = {"session_id": session, "agent_id": "load", "input_message": message}
    try:
        async with asyncio.timeout(2):
            return await call(url, "POST", "/internal/invoke", body)
    except (*CUT, TimeoutError):
        return 0, None


async def _squeezed(server: Forked, number: int, tally: Tally) -> None:
    """Take every descriptor of a server amid streaming runs, and give them back."""
    logs: dict[str, list[bytes]] = {}
    async with asyncio.TaskGroup() as tasks:
        for n in range(4):
            run_id = await invoke(server.url, f"s{number}-{n}")
            logs[run_id] = []
            tasks.create_task(whole(server.url, run_id, logs[run_id]))
        while not all(len(seen) > 10 for seen in logs.values()):
            await asyncio.sleep(0.01)
        writers = await crowd(server.url, 2 * DESCRIPTORS)
        open_files = len(list(Path(f"/proc/{server.pid}/fd").iterdir()))
        tally.fire("out of descriptors", open_files >= DESCRIPTORS - 2)
        answers = [await tried(server.url, f"s{number}-more{n}") for n in range(3)]
        for writer in writers:
            writer.close()
    await asyncio.to_thread(server.up)
    for status, answer in answers:
        assert status in {0, 200} | CLEAR, answer
        if status == 200:
            logs[answer["run_id"]] = []
    for run_id, seen in logs.items():
        replay: list[bytes] = []
        await whole(server.url, run_id, replay)
        assert violations(replay, seen) == []
    seen = []
    await whole(server.url, await invoke(server.url, f"s{number}-after"), seen)
    assert b'"run_done"' in seen[-1], "it is as well as before"


async def test_out_of_descriptors(
    tmp_path: Path, tally: Tally, rounds_of: Callable[[int], int]
) -> None:
    tally.expect("out of descriptors")
    with nursery() as nurse:
        server = nurse.start(tmp_path, {"NOFILE": DESCRIPTORS})
        await asyncio.to_thread(server.up)
        async with Agent(deltas=200, pause_s=0.05).serving() as agent_url:
            await register(server.url, agent_url)
            for number in range(rounds_of(20)):
                await _squeezed(server, number, tally)
                tally.round()
        server.send(signal.SIGTERM)
        assert await asyncio.to_thread(server.wait) == 0
    assert "Traceback" not in server.said()


async def _room(nurse: Nurse, folder: Path) -> int:
    """Return how many bytes of addresses a server needs when there is little to do."""
    folder.mkdir()
    server = await asyncio.to_thread(nurse.start(folder).up)
    async with Agent(deltas=20).serving() as agent_url:
        await register(server.url, agent_url)
        for n in range(20):
            await whole(server.url, await invoke(server.url, f"s{n}"), [])
    needed = int(server.status("VmPeak")) * 1024
    server.kill()
    return needed


async def _overfed(server: Forked, number: int, tally: Tally) -> dict[str, list[bytes]]:
    """Give a server more than it can hold, until it refuses or stops; return what it accepted."""
    taken: dict[str, list[bytes]] = {}
    content = "x" * (MIB - 1000)
    async with asyncio.TaskGroup() as tasks:
        calls = [
            tasks.create_task(tried(server.url, f"s{number}-{n}", content)) for n in range(100)
        ]
    for done in calls:
        status, answer = done.result()
        assert status in {0, 200} | CLEAR, answer
        tally.fire("refused for want of memory", status != 200)
        if status == 200:
            taken[answer["run_id"]] = []
    return taken


async def test_out_of_memory(tmp_path: Path, tally: Tally, rounds_of: Callable[[int], int]) -> None:
    tally.expect("refused for want of memory")
    with nursery() as nurse:
        needed = await _room(nurse, tmp_path / "measured")
        folder = tmp_path / "squeezed"
        folder.mkdir()
        async with Agent(deltas=50, pause_s=0.05).serving() as agent_url:
            for number in range(rounds_of(20)):
                server = nurse.start(folder, {"AS": needed + (16 << 20)})
                await asyncio.to_thread(server.up)
                await register(server.url, agent_url)
                taken = await _overfed(server, number, tally)
                server.send(signal.SIGTERM)
                code = await asyncio.to_thread(server.wait)
                # A library that gets no memory may take the process along: that is a kill -9.
                tally.fire("went on" if code == 0 else "ended by want of memory")
                after = await asyncio.to_thread(nurse.start(folder).up)
                for run_id, seen in taken.items():
                    await whole(after.url, run_id, seen)
                    assert violations(seen, seen) == []
                tally.round()
                after.kill()
