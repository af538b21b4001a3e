"""A load on a real server process: agents that stream, callers, readers that keep every byte."""

import asyncio
import itertools
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import msgspec

from .listening import listening

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
CUT = (OSError, EOFError, asyncio.IncompleteReadError, ValueError)
"""What a caller sees when the server dies under it."""


@dataclass
class Agent:
    """An agent that streams `deltas` words, pausing `pause_s` after a few; counts what it did."""

    deltas: int = 200
    pause_s: float = 0.002
    port: int = 0
    invocations: int = 0
    attempts: defaultdict[str, list[int]] = field(default_factory=lambda: defaultdict(list))

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(*CUT):
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            length = int(head.split("content-length:")[1].split("\r\n")[0])
            body = msgspec.json.decode(await reader.readexactly(length))
            self.invocations += 1
            attempt = int(head.split("x-attempt:")[1].split("\r\n")[0])
            self.attempts[body["run_id"]].append(attempt)
            writer.write(HEAD)
            for n in range(self.deltas):
                writer.write(b'event: delta\ndata: {"text":"word %d "}\n\n' % n)
                if n % 5 == 4:
                    await writer.drain()
                    await asyncio.sleep(self.pause_s)
            writer.write(b'event: done\ndata: {"usage":{"tokens":1}}\n\n')
            await writer.drain()

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[str]:
        """Serve on a free port and hand out the address."""
        async with listening(self._answer, self.port) as self.port:
            yield f"http://127.0.0.1:{self.port}"


async def call(url: str, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    """Make one request on a connection of its own; raises one of CUT when the server dies."""
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    try:
        data = msgspec.json.encode(body) if body is not None else b""
        head = (
            f"{method} {path} HTTP/1.1\r\nHost: {parts.netloc}\r\nConnection: close\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
        )
        writer.write(head.encode() + data)
        answer = await reader.readuntil(b"\r\n\r\n")
        lower = answer.decode().lower()
        length = int(lower.split("content-length:")[1].split("\r\n")[0])
        return int(answer.split()[1]), msgspec.json.decode(await reader.readexactly(length))
    finally:
        writer.close()


async def register(url: str, agent_url: str, **fields: Any) -> None:
    """Register the load's agent."""
    body = {"agent_id": "load", "name": "Load", "endpoint": agent_url, **fields}
    status, answer = await call(url, "POST", "/v1/agents/register", body)
    assert status == 200, answer


async def invoke(url: str, session: str, content: str = "go") -> str:
    """Invoke the load's agent and return the run's id."""
    message = {"role": "user", "content": content}
    body = {"session_id": session, "agent_id": "load", "input_message": message}
    status, answer = await call(url, "POST", "/internal/invoke", body)
    assert status == 200, answer
    return str(answer["run_id"])


async def follow(url: str, run_id: str, seen: list[bytes]) -> bool:
    """Read a run's stream into `seen` from where it stands; True when it came to its end.

    Each entry is the exact bytes of one `data:` line.
    """
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port, limit=1 << 20)
    try:
        writer.write(
            f"GET /v1/runs/{run_id}/events/stream HTTP/1.1\r\nHost: {parts.netloc}\r\n"
            f"Last-Event-ID: {len(seen)}\r\nConnection: close\r\n\r\n".encode()
        )
        if b" 204 " in await reader.readline():
            return True
        while line := await reader.readline():
            if line.startswith(b"data: "):
                if not line.endswith(b"\n"):
                    return False
                seen.append(line[6:].rstrip(b"\r\n"))
        return bool(seen) and msgspec.json.decode(seen[-1])["type"] in (
            "run_done", "run_failed", "run_cancelled",
        )  # fmt: skip
    finally:
        writer.close()


async def whole(url: str, run_id: str, seen: list[bytes]) -> None:
    """Read a run into `seen` to its end, however often the stream breaks."""
    async with asyncio.timeout(120):
        while True:
            with suppress(*CUT):
                if await follow(url, run_id, seen):
                    return
            await asyncio.sleep(0.01)


@dataclass
class Load:
    """Callers that invoke one run after the other, each with a reader; notes what was promised."""

    url: str
    width: int = 8
    acked: dict[str, list[bytes]] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)
    whole: set[str] = field(default_factory=set)
    numbers: "itertools.count[int]" = field(default_factory=itertools.count)

    async def run(self) -> None:
        """Load the server until cancelled, until it drains or until it dies."""
        async with asyncio.TaskGroup() as tasks:
            for n in range(self.width):
                tasks.create_task(self._caller(n))

    async def _caller(self, n: int) -> None:
        with suppress(*CUT):
            while True:
                key = f"k{next(self.numbers)}"
                body = {
                    "session_id": f"s{n}",
                    "agent_id": "load",
                    "input_message": {"role": "user", "content": key},
                    "request_id": key,
                }
                status, answer = await call(self.url, "POST", "/internal/invoke", body)
                if status == 503 and answer["code"] == "draining":
                    return
                assert status == 200, answer
                seen = self.acked[answer["run_id"]] = []
                self.keys[answer["run_id"]] = key
                if await follow(self.url, answer["run_id"], seen):
                    self.whole.add(answer["run_id"])
