"""Ingress processes, and devices that are the `websockets` library's client."""

import asyncio
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
from websockets.asyncio.client import ClientConnection, connect

from ..fault.load import call
from ..processes import START_S, Running, free_port, request, spawn, until

PATIENCE_S = 20.0
ENDS = ("done", "error")
PUSHED = frozenset({"run_started", "agent_stream_delta", "run_done", "run_failed", "run_cancelled"})
"""Events of the load's runs that have a live name."""


@contextmanager
def ingress_process(folder: Path, orchestrator: str, **env: str) -> Iterator[Running]:
    """Run an ingress on a free port; what still runs at the end is killed."""
    port = env.get("WS_PORT") or str(free_port())
    log = folder / f"ingress-{port}.log"
    around = {"WS_PORT": port, "ORCHESTRATOR_URL": orchestrator, **env}
    process = spawn([sys.executable, "-m", "orchestrator", "ingress"], folder, log, around)
    running = Running(f"http://127.0.0.1:{port}", process, log)
    try:
        until(lambda: _is_up(running), "the ingress listens", START_S)
        yield running
    finally:
        running.kill()


def _is_up(running: Running) -> bool:
    if running.process.poll() is not None:
        raise AssertionError(f"the ingress ended; it wrote:\n{running.said()}")
    return "listening" in running.said()


def health(running: Running) -> dict[str, Any]:
    """Return what an ingress says of itself."""
    answer = request("GET", f"{running.url}/health")
    assert answer.status == 200
    told: dict[str, Any] = answer.json()
    return told


class Device:
    """A client: what it was sent, decoded, in order."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self.ack: dict[str, Any] = {}

    async def say(self, **message: Any) -> None:
        await self.socket.send(msgspec.json.encode(message).decode())

    async def take(self) -> dict[str, Any]:
        async with asyncio.timeout(PATIENCE_S):
            return msgspec.json.decode(await self.socket.recv(), type=dict[str, Any])

    async def hello(self, **fields: Any) -> dict[str, Any]:
        """Greet, and return the answer, which may be an error."""
        await self.say(type="hello", **fields)
        self.ack = await self.take()
        return self.ack

    async def invoke(self, content: str = "go", **fields: Any) -> None:
        message = {"role": "user", "content": content}
        await self.say(type="agent_invoke", agent_id="load", message=message, **fields)

    async def take_run(self, run_id: str | None = None) -> list[dict[str, Any]]:
        """Return what comes up to the end of a run, the first that ends where none is named."""
        found = []
        while True:
            found.append(await self.take())
            ended = found[-1]["type"] in ENDS and "seq" in found[-1]
            if ended and run_id in {None, found[-1]["run_id"]}:
                return found


@asynccontextmanager
async def device(running: Running, **hello: Any) -> AsyncIterator[Device]:
    """Connect and greet."""
    async with connected(running) as one:
        ack = await one.hello(**hello)
        assert ack["type"] == "hello_ack", ack
        yield one


@asynccontextmanager
async def connected(running: Running, **how: Any) -> AsyncIterator[Device]:
    """Connect, and say nothing."""
    url = running.url.replace("http", "ws", 1) + "/ws"
    quick = {"compression": None, "open_timeout": PATIENCE_S, "max_queue": None}
    async with connect(url, **{**quick, **how}) as socket:
        yield Device(socket)


def raw_frame(opcode: int, body: bytes = b"", *, last: bool = True) -> bytes:
    """Return a client's frame of up to 125 bytes, masked with nothing."""
    return bytes([(0x80 if last else 0) | opcode, 0x80 | len(body), 0, 0, 0, 0]) + body


@asynccontextmanager
async def raw_device(
    running: Running,
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Shake hands, and leave the frames to the caller; little that is not read is kept."""
    host, port = running.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port), limit=1 << 12)
    try:
        writer.write(
            b"GET /ws HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n"
            b"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        assert b" 101 " in await reader.readuntil(b"\r\n\r\n")
        yield reader, writer
    finally:
        writer.transport.abort()


async def let_go(running: Running) -> None:
    """Wait until an ingress has no device that takes part any more.

    Read then what it has told them: who hears nothing of its close for long is cut off.
    """
    gone = partial(until, lambda: health(running)["sessions"] == 0, "all are let go of")
    await asyncio.to_thread(gone)


def resident(running: Running) -> int:
    """Return the bytes of memory that a process has."""
    pages = Path(f"/proc/{running.process.pid}/statm").read_text().split()[1]
    return int(pages) * 4096


async def pushed_of(url: str, run_id: str) -> list[int]:
    """Return the seqs of those events of a run's log that devices are sent."""
    status, page = await call(url, "GET", f"/v1/runs/{run_id}/events?limit=1000")
    assert status == 200
    assert not page["has_more"]
    return [
        event["seq"]
        for event in page["events"]
        if event["type"] in PUSHED or event["payload"].get("queued")
    ]


def seqs(messages: list[dict[str, Any]], run_id: str) -> list[int]:
    """Return the seqs of a run's messages, in the order in which they came."""
    return [message["seq"] for message in messages if message.get("run_id") == run_id]


Started = Callable[..., Running]
