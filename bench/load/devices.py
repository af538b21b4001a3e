"""Devices by the thousand: WebSockets that are told things, and count what they are told."""

import asyncio
from collections.abc import Callable
from typing import Any, Final

import msgspec

from bench.load.control import Commands, obey

WAVE: Final = 64
"""How many connections are opened at once."""
_HANDSHAKE: Final = (
    b"GET %b HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
_MEDIUM, _LONG = 126, 127


def masked(message: dict[str, Any]) -> bytes:
    """Return a client's text frame; the mask is zero, which changes nothing."""
    body = msgspec.json.encode(message)
    size = len(body)
    length = bytes([0x80 | size]) if size < _MEDIUM else bytes([0x80 | _MEDIUM, *size.to_bytes(2)])
    return b"\x81" + length + bytes(4) + body


class Device(asyncio.Protocol):
    """One connection; `greeted` is set by the answer to its handshake, or to its `hello`."""

    def __init__(
        self, path: str, hello: dict[str, Any] | None, heard: Callable[[int], None]
    ) -> None:
        self._path = path.encode()
        self._hello = hello
        self._heard = heard
        self._rest = b""
        self._shaken = False
        self.greeted = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        transport.write(_HANDSHAKE % self._path)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.greeted.done():
            self.greeted.set_exception(ConnectionError(f"not greeted ({exc})"))

    def data_received(self, data: bytes) -> None:
        self._rest += data
        if not self._shaken:
            head, found, rest = self._rest.partition(b"\r\n\r\n")
            if not found:
                return
            if b" 101 " not in head:
                self.transport.abort()
                return
            self._shaken, self._rest = True, rest
            if self._hello is not None:
                self.say(self._hello)
            else:
                self.greeted.set_result(None)
        count = self._count()
        if count and not self.greeted.done():
            self.greeted.set_result(None)
            count -= 1
        if count:
            self._heard(count)

    def say(self, message: dict[str, Any]) -> None:
        """Send a message."""
        self.transport.write(masked(message))

    def _count(self) -> int:
        """Return how many text frames are whole, and keep what is behind them."""
        data, at, count = self._rest, 0, 0
        while at + 2 <= len(data):
            size, head = data[at + 1], 2
            if size >= _MEDIUM:
                head = 4 if size < _LONG else 10
                size = int.from_bytes(data[at + 2 : at + head])
            if at + head + size > len(data):
                break
            count += data[at] == 0x81
            at += head + size
        self._rest = data[at:]
        return count


class Devices:
    """What this process can be told to do."""

    def __init__(self) -> None:
        self._open: dict[int, list[Device]] = {}
        self._told = 0

    async def connect(self, port: int, sessions: int, each: int, *, greet: bool) -> None:
        """Open so many devices in each session: `sN` by a `hello`, or by the path `/N`."""
        gate = asyncio.Semaphore(WAVE)
        async with asyncio.TaskGroup() as tasks:
            for number in range(sessions * each):
                tasks.create_task(self._connect(gate, port, number % sessions, greet=greet))

    async def _connect(
        self, gate: asyncio.Semaphore, port: int, session: int, *, greet: bool
    ) -> None:
        hello = {"type": "hello", "session_id": f"s{session}"} if greet else None
        path = "/ws" if greet else f"/{session}"
        loop = asyncio.get_running_loop()
        async with gate:
            _, device = await loop.create_connection(
                lambda: Device(path, hello, self._hear), "127.0.0.1", port
            )
            self._open.setdefault(session, []).append(device)
            await device.greeted

    def _hear(self, count: int) -> None:
        self._told += count

    async def invoke(self, message: str) -> None:
        """Have the agent invoked in each session, by one of its devices."""
        words = {"role": "user", "content": message}
        for devices in self._open.values():
            devices[0].say({"type": "agent_invoke", "agent_id": "load", "message": words})

    async def told(self) -> int:
        """Return how many messages all devices have been sent."""
        return self._told

    async def close(self) -> None:
        """Close all connections."""
        for devices in self._open.values():
            for device in devices:
                device.transport.abort()
        self._open.clear()
        self._told = 0
        await asyncio.sleep(0)


async def _begin() -> Commands:
    devices = Devices()
    return {name: getattr(devices, name) for name in ("connect", "invoke", "told", "close")}


if __name__ == "__main__":
    obey(_begin)
