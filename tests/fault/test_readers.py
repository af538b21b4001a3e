"""Readers that come, go and crowd in see exactly the log's events, in order, and lose none."""

import asyncio
import random
from collections.abc import Callable
from contextlib import suppress
from urllib.parse import urlsplit

import msgspec

from orchestrator.testing.history import violations

from ..processes import Running
from .load import Agent, call, follow, invoke, register

Start = Callable[..., Running]


async def _read_some(url: str, run_id: str, seen: list[bytes], lines: int) -> bool:
    """Read at most `lines` lines, then hang up in the middle of the answer; True at the end."""
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    last = msgspec.json.decode(seen[-1])["seq"] if seen else 0
    try:
        writer.write(
            f"GET /v1/runs/{run_id}/events/stream HTTP/1.1\r\nHost: {parts.netloc}\r\n"
            f"Last-Event-ID: {last}\r\nConnection: close\r\n\r\n".encode()
        )
        if b" 204 " in await reader.readline():
            return True
        for _ in range(lines):
            line = await reader.readline()
            if not line:
                return False
            if line.startswith(b"data: ") and line.endswith(b"\n"):
                seen.append(line[6:].rstrip(b"\r\n"))
        writer.transport.abort()
        return False
    finally:
        writer.close()


async def _whole(url: str, run_id: str) -> list[bytes]:
    log: list[bytes] = []
    while not await follow(url, run_id, log):
        pass
    return log


async def test_readers_that_hang_up_at_random_see_the_log_exactly(
    start_server: Start, rounds_of: Callable[[int], int]
) -> None:
    hang_ups = rounds_of(1000)
    rnd = random.Random(3)  # a seeded test
    server = await asyncio.to_thread(start_server)
    done = 0
    async with Agent(deltas=400, pause_s=0.005).serving() as agent_url:
        await register(server.url, agent_url)
        while done < hang_ups:
            run_ids = [await invoke(server.url, f"s{done}-{n}") for n in range(4)]
            logs: dict[str, list[bytes]] = {run_id: [] for run_id in run_ids}

            async def read(run_id: str) -> int:
                count = 0
                while not await _read_some(
                    server.url,
                    run_id,
                    logs[run_id],  # noqa: B023  # awaited within the iteration
                    rnd.randrange(1, 60),
                ):
                    count += 1
                return count

            async with asyncio.TaskGroup() as tasks:
                readers = [tasks.create_task(read(run_id)) for run_id in run_ids]
            done += sum(reader.result() for reader in readers)
            for run_id, seen in logs.items():
                assert violations(await _whole(server.url, run_id), seen) == []
                assert len(seen) == 400 + 5
    print(f"readers: {done} hang-ups")


async def test_replay_beside_32_streaming_runs_loses_nothing(start_server: Start) -> None:
    server = await asyncio.to_thread(start_server)
    async with Agent(deltas=200, pause_s=0.001).serving() as agent_url:
        await register(server.url, agent_url)
        run_ids = [await invoke(server.url, f"s{n}") for n in range(32)]
        stop = asyncio.Event()
        pages = 0

        async def replay(run_id: str) -> list[bytes]:
            nonlocal pages
            events: list[bytes] = []
            while not stop.is_set():
                path = f"/v1/runs/{run_id}/events?limit=1000"
                status, page = await call(server.url, "GET", path)
                assert status == 200
                seqs = [event["seq"] for event in page["events"]]
                assert seqs == list(range(1, len(seqs) + 1))
                assert len(seqs) >= len(events)
                events = page["events"]
                pages += 1
            return events

        async with asyncio.TaskGroup() as tasks:
            for run_id in run_ids[:8]:
                tasks.create_task(replay(run_id))
            followed = [tasks.create_task(_whole(server.url, run_id)) for run_id in run_ids]
            await asyncio.wait(followed)
            stop.set()
        for run_id, task in zip(run_ids, followed, strict=True):
            assert len(task.result()) == 205, run_id
            assert violations(task.result(), await _whole(server.url, run_id)) == []
    assert pages >= 8


async def test_a_hundred_callers_with_one_request_id_get_one_run(start_server: Start) -> None:
    server = await asyncio.to_thread(start_server)
    body = {
        "session_id": "s",
        "agent_id": "load",
        "input_message": {"role": "user", "content": "go"},
        "request_id": "r1",
    }
    async with Agent(deltas=5).serving() as agent_url:
        await register(server.url, agent_url)
        async with asyncio.TaskGroup() as tasks:
            calls = [
                tasks.create_task(call(server.url, "POST", "/internal/invoke", body))
                for _ in range(100)
            ]
        answers = [task.result() for task in calls]
        assert len({msgspec.json.encode(answer) for answer in answers}) == 1
        assert answers[0][0] == 200
        _, runs = await call(server.url, "GET", "/v1/runs")
        assert len(runs["runs"]) == 1
        with suppress(TimeoutError):
            await _whole(server.url, answers[0][1]["run_id"])
