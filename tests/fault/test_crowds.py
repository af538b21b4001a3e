"""Peers that dawdle by the thousand (half a head, half a body, never reading) slow nobody."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

from orchestrator.testing.history import violations

from ..rigs import Tally
from .load import CUT, Agent, invoke, register, whole
from .nursery import Forked, nursery

MIB = 1 << 20
HALF_HEAD = b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Slow: "
HALF_BODY = (
    b"POST /internal/invoke HTTP/1.1\r\nHost: %s\r\nContent-Type: application/json\r\n"
    b'Content-Length: 5000\r\n\r\n{"session_id":"s","agent_id":"load","input_message":'
)
WORDS = 20_000
"""More bytes of events than the kernel and the mailbox of a reader hold."""
PER_PEER = 32 << 10
"""Bytes of the server's memory that an idle connection may cost."""


@asynccontextmanager
async def peers(url: str, count: int, said: bytes) -> AsyncIterator[list[asyncio.StreamReader]]:
    """Open connections that send `said` and then nothing."""
    parts = urlsplit(url)
    readers, writers = [], []
    for _ in range(count):
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        writer.write(said)
        readers.append(reader)
        writers.append(writer)
    try:
        yield readers
    finally:
        for writer in writers:
            writer.close()


async def _others(server: Forked, name: str) -> float:
    """Run something as everybody else does; return the longest that an invocation took."""
    slowest = 0.0
    for n in range(20):
        before = time.monotonic()
        run_id = await invoke(server.url, f"{name}-{n}")
        slowest = max(slowest, time.monotonic() - before)
        seen: list[bytes] = []
        await whole(server.url, run_id, seen)
        assert violations(seen, seen) == []
        assert b'"run_done"' in seen[-1]
    return slowest


async def _ended(readers: list[asyncio.StreamReader]) -> list[bytes]:
    """Return what each peer was told once its connection is closed."""
    answers = []
    async with asyncio.timeout(20):
        for reader in readers:
            with suppress(*CUT):
                answers.append(await reader.read())
    return answers


async def test_half_sent_heads_are_closed_and_slow_nobody(
    tmp_path: Path, tally: Tally, rounds_of: Callable[[int], int]
) -> None:
    count = rounds_of(4000)
    tally.expect("half heads closed")
    with nursery() as nurse:
        server = await asyncio.to_thread(nurse.start(tmp_path).up)
        async with Agent(deltas=5).serving() as agent_url:
            await register(server.url, agent_url)
            await _others(server, "before")
            before = server.peak()
            async with peers(server.url, count, HALF_HEAD) as readers:
                assert await _others(server, "beside") < 1.0
                answers = await _ended(readers)
        assert all(answer.startswith(b"HTTP/1.1 408 ") for answer in answers)
        tally.fire("half heads closed", len(answers))
        tally.round(count)
        assert len(answers) == count
        assert server.peak() - before < 16 * MIB + count * PER_PEER


async def test_half_sent_bodies_slow_nobody(
    tmp_path: Path, tally: Tally, rounds_of: Callable[[int], int]
) -> None:
    count = rounds_of(4000)
    tally.expect("half bodies")
    with nursery() as nurse:
        server = await asyncio.to_thread(nurse.start(tmp_path).up)
        said = HALF_BODY % urlsplit(server.url).netloc.encode()
        async with Agent(deltas=5).serving() as agent_url:
            await register(server.url, agent_url)
            await _others(server, "before")
            before = server.peak()
            async with peers(server.url, count, said) as readers:
                assert await _others(server, "beside") < 1.0
                assert server.peak() - before < 16 * MIB + count * PER_PEER
                tally.fire("half bodies", sum(not reader.at_eof() for reader in readers))
            tally.round(count)
            await _others(server, "after")
    assert "Traceback" not in server.said()


def _silent(url: str, run_id: str) -> socket.socket:
    """Ask for a run's stream through the smallest window there is, and read none of it."""
    parts = urlsplit(url)
    peer = socket.socket()
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    peer.connect((parts.hostname, parts.port))
    peer.sendall(
        f"GET /v1/runs/{run_id}/events/stream HTTP/1.1\r\nHost: {parts.netloc}\r\n\r\n".encode()
    )
    return peer


async def _streamed(url: str, words: int) -> list[float]:
    """Stream one run to its end; return the pauses between what its reader got, in order."""
    seen: list[bytes] = []
    pauses: list[float] = []

    async def watch() -> None:
        length, last = 0, time.monotonic()
        while True:
            await asyncio.sleep(0.001)
            if len(seen) > length:
                pauses.append(time.monotonic() - last)
                length, last = len(seen), time.monotonic()

    run_id = await invoke(url, f"words-{words}")
    async with asyncio.TaskGroup() as tasks:
        watching = tasks.create_task(watch())
        await whole(url, run_id, seen)
        watching.cancel()
    assert violations(seen, seen) == []
    assert len(seen) == words + 5
    return sorted(pauses)


async def test_readers_that_never_read_cost_little_and_slow_nobody(
    tmp_path: Path, tally: Tally, rounds_of: Callable[[int], int]
) -> None:
    count = rounds_of(400)
    tally.expect("silent readers")
    agent = Agent(deltas=2000, pause_s=0.002)
    deaf: list[socket.socket] = []
    with nursery() as nurse:
        server = await asyncio.to_thread(nurse.start(tmp_path).up)
        async with agent.serving() as agent_url:
            await register(server.url, agent_url)
            alone = await _streamed(server.url, agent.deltas)
            before = server.peak()
            paced, agent.deltas = agent.deltas, WORDS
            run_id = await invoke(server.url, "flood")
            deaf += [_silent(server.url, run_id) for _ in range(count)]
            await whole(server.url, run_id, [])
            agent.deltas = paced
            beside = await _streamed(server.url, agent.deltas)
        grown = server.peak() - before
        for peer in deaf:
            peer.close()
    tally.fire("silent readers", count)
    tally.round(count)
    print(f"silent readers: {grown / count / 1024:.0f} KiB each")
    print(f"p99 of others' pauses: {_p99(alone):.4f} s alone, {_p99(beside):.4f} s beside them")
    assert grown < 8 * MIB + count * 2 * MIB
    assert _p99(beside) < 2 * _p99(alone) + 0.05


def _p99(pauses: list[float]) -> float:
    return pauses[len(pauses) * 99 // 100]
