"""An agent whose every byte the test decides: a TCP server that plays a script per connection.

async def script(peer: Peer) -> None:
    request = await peer.request()
    await peer.send(head() + event("delta", text="hi"))
    await peer.hung_up()

async with FakeAgent(script) as agent:
    ... invoke agent.url ...
"""

import asyncio
import json
import ssl
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeAlias, cast

import msgspec

from orchestrator.ports import AgentCall

CLOSE_DELIMITED = (("Connection", "close"),)


class Received(NamedTuple):
    """A request as it came; header names are in lower case."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        """Return the body, decoded."""
        return json.loads(self.body)


class HungUp(Exception):
    """The client went away while the script still had something to do with it."""


class Peer(asyncio.Protocol):
    """One connection, seen from the agent."""

    def __init__(self, agent: "FakeAgent", play: Callable[["Peer"], object]) -> None:
        self._agent = agent
        self._play = play
        self._received = bytearray()
        self._changed = asyncio.Event()
        self._writable = asyncio.Event()
        self._writable.set()
        self.sent = 0
        self.closed_at: float | None = None
        self._lost = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start the script."""
        self.transport = cast("asyncio.Transport", transport)
        self._play(self)

    def data_received(self, data: bytes) -> None:
        """Keep what came."""
        self._received += data
        self._changed.set()

    def eof_received(self) -> bool:
        """Note when the client closed."""
        self._note_close()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Note when the connection ended, and wake whoever waits."""
        del exc
        self._lost = True
        self._note_close()
        self._writable.set()

    def pause_writing(self) -> None:
        """Let `send` wait: the client does not read."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """Let `send` go on."""
        self._writable.set()

    @property
    def stuck(self) -> bool:
        """Return whether the client has stopped reading what was sent."""
        return not self._writable.is_set()

    @property
    def unread(self) -> int:
        """Return how many bytes came that no request has used yet."""
        return len(self._received)

    async def request(self) -> Received:
        """Return the next request on this connection; raises HungUp when none will come."""
        while b"\r\n\r\n" not in self._received:
            await self._more()
        head, _, _ = bytes(self._received).partition(b"\r\n\r\n")
        first, *lines = head.decode("utf-8").split("\r\n")
        method, path, _ = first.split(" ")
        headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines)}
        del self._received[: len(head) + 4]
        size = int(headers.get("content-length", "0"))
        while len(self._received) < size:
            await self._more()
        body = bytes(self._received[:size])
        del self._received[:size]
        received = Received(method, path, headers, body)
        self._agent.requests.append(received)
        return received

    async def send(self, *pieces: bytes) -> None:
        """Send each piece by itself, as fast as the client reads; raises HungUp."""
        for piece in pieces:
            await self._writable.wait()
            if self.closed_at is not None or self.transport.is_closing():
                raise HungUp
            self.transport.write(piece)
            self.sent += len(piece)
            await asyncio.sleep(0)

    async def hung_up(self) -> float:
        """Wait until the client closes; return when that was, by the loop's clock."""
        while self.closed_at is None:
            self._changed.clear()
            await self._changed.wait()
        return self.closed_at

    def reset(self) -> None:
        """Break the connection off, whatever is still to be sent."""
        if not self._lost:
            self.transport.abort()

    async def _more(self) -> None:
        if self.closed_at is not None:
            raise HungUp
        self._changed.clear()
        await self._changed.wait()

    def _note_close(self) -> None:
        if self.closed_at is None:
            self.closed_at = asyncio.get_running_loop().time()
        self._changed.set()


Script: TypeAlias = Callable[[Peer], Awaitable[None]]


class FakeAgent:
    """Listens on a free port of 127.0.0.1, plays `script` on each connection, then closes it.

    With `tls` it does so behind that certificate.
    """

    def __init__(self, script: Script, *, tls: ssl.SSLContext | None = None) -> None:
        self.script = script
        self._tls = tls
        self.peers: list[Peer] = []
        self.requests: list[Received] = []

    @property
    def connections(self) -> int:
        """Return how many connections were ever made."""
        return len(self.peers)

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._tasks = asyncio.TaskGroup()
        await self._tasks.__aenter__()
        self._server = await loop.create_server(
            lambda: Peer(self, self._start), "127.0.0.1", 0, ssl=self._tls
        )
        self.port = int(self._server.sockets[0].getsockname()[1])
        self.url = f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}"
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self._server.close()
        for peer in self.peers:
            peer.reset()
        await self._tasks.__aexit__(kind, error, tb)

    def _start(self, peer: Peer) -> None:
        self.peers.append(peer)
        self._tasks.create_task(self._serve(peer))

    async def _serve(self, peer: Peer) -> None:
        with suppress(HungUp):
            await self.script(peer)
        peer.transport.close()


def calling(endpoint: str, **changes: Any) -> AgentCall:
    """Return an invocation of the agent at `endpoint`, as the engine would make one."""
    call = AgentCall(
        endpoint=endpoint,
        agent_id="demo_agent",
        session_id="sess_001",
        run_id="run_001",
        attempt=1,
        role="user",
        content="Hello, how are you?",
        traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        base_url="http://127.0.0.1:8080",
    )
    return msgspec.structs.replace(call, **changes)


def head(
    status: int = 200,
    content_type: str = "text/event-stream",
    headers: Iterable[tuple[str, str]] = CLOSE_DELIMITED,
) -> bytes:
    """Return the head of an answer; its body ends with the connection unless `headers` say else."""
    lines = [f"HTTP/1.1 {status} Whatever", f"Content-Type: {content_type}"]
    lines += [f"{name}: {value}" for name, value in headers]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def event(name: str, **data: Any) -> bytes:
    """Return one server-sent event."""
    return f"event: {name}\ndata: {json.dumps(data)}\n\n".encode()


def chunk(data: bytes) -> bytes:
    """Return one chunk of a chunked body; of b"" the last one."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def answering(*pieces: bytes) -> Script:
    """Return a script that reads one request, sends `pieces` and closes."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(*pieces)

    return script


def answering_json(value: Any, status: int = 200) -> Script:
    """Return a script that answers every request on its connection with `value` as JSON."""
    body = json.dumps(value).encode()
    size = (("Content-Length", str(len(body))),)

    async def script(peer: Peer) -> None:
        while True:
            await peer.request()
            await peer.send(head(status, "application/json", size) + body)

    return script
