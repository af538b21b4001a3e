"""One connection: HTTP until it asks for a WebSocket, then a device's messages both ways.

A frame goes out by one write and no task; what a device sends is done by a task that lives only
while there is something to do.
"""

import asyncio
from collections import deque
from typing import Any, Final, Protocol, cast

from websockets.frames import Frame, Opcode
from websockets.protocol import State
from websockets.server import ServerProtocol

from orchestrator.ingress import http
from orchestrator.ingress.device import POLICY, Device
from orchestrator.ingress.head import Head
from orchestrator.ingress.http import Answer, Requests
from orchestrator.ingress.told import IngressSettings

SLOW: Final = 1013
"""The close code for a device that does not keep up; it may come again (registered with IANA)."""
HIGH_WATER: Final = 64 << 10
REQUEST_S: Final = 10.0
"""How long a request may take to be complete."""
IDLE_S: Final = 75.0
CLOSE_S: Final = 10.0
"""How long a device has to answer a close."""
INBOX_MAX: Final = 16
"""Messages of a device that wait to be done before its socket is left alone."""
_SWITCHED: Final = 101
_PING: Final = b"orchestrator"


class Desk(Protocol):
    """What a connection belongs to."""

    settings: IngressSettings

    def arrived(self, connection: "Connection") -> None:
        """Note a connection."""
        ...

    def left(self, connection: "Connection") -> None:
        """Forget a connection."""
        ...

    def answer(self, head: Head, body: bytes) -> Answer:
        """Return the answer to a plain request."""
        ...

    def objection(self, head: Head) -> Answer | None:
        """Return what a request for a WebSocket is refused with, None where it may be one."""
        ...

    def greet(self, connection: "Connection") -> Device:
        """Return the device at the end of a connection."""
        ...

    def start(self, connection: "Connection") -> None:
        """Have `work` run."""
        ...


class Connection(asyncio.Protocol):
    """A client of the ingress; `device.Line` for the device that it turns out to be."""

    __slots__ = (
        "_closing",
        "_desk",
        "_device",
        "_drained",
        "_heard",
        "_inbox",
        "_loop",
        "_owed",
        "_paused",
        "_pieces",
        "_pinged",
        "_requests",
        "_stalled",
        "_taken",
        "_transport",
        "_working",
        "_written",
        "_ws",
        "gone",
    )  # fmt: skip

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._loop = asyncio.get_running_loop()
        self._ws: ServerProtocol | None = None
        self._device: Device | None = None
        self._requests: Requests | None = None
        self._inbox: deque[bytes] = deque()
        self._pieces: list[bytes] = []
        self._drained: asyncio.Future[None] | None = None
        self._owed = b""
        self._paused = self._working = self._closing = self.gone = False
        self._written = self._taken = 0
        self._heard = self._pinged = self._stalled = self._loop.time()

    @property
    def device(self) -> Device | None:
        """Return the device, None while this is no WebSocket."""
        return self._device

    # ------------------------------------------------------------ asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wait for a request."""
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=HIGH_WATER)
        self._requests = Requests(self._plain, peer_is_local=http.local(transport))
        self._desk.arrived(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Let the device go."""
        del exc
        self.gone = True
        self.resume_writing()
        self._inbox.clear()
        if self._device is not None:
            self._device.leave()
        self._desk.left(self)

    def data_received(self, data: bytes) -> None:
        """Read what came in this very call."""
        self._heard = self._loop.time()
        if self._ws is not None:
            self._receive(data)
        elif self._requests is not None and not self._closing:
            self._read(self._requests, data)

    def eof_received(self) -> bool:
        """Close our side too."""
        return False

    def pause_writing(self) -> None:
        """Note that the device takes no more."""
        self._paused = True
        self._stalled = self._loop.time()

    def resume_writing(self) -> None:
        """Let whoever waits go on."""
        self._paused = False
        owed, self._owed = self._owed, b""
        if owed and not (self._closing or self.gone):
            self._transport.write(owed)
        drained, self._drained = self._drained, None
        if drained is not None and not drained.done():
            drained.set_result(None)

    # ------------------------------------------------------------ HTTP

    def _read(self, requests: Requests, data: bytes) -> None:
        if not requests.in_request:
            self._pinged = self._heard  # the clock of a request, before there are pings
        try:
            upgrade = requests.feed(data)
        except http.Refused as error:
            told = http.refused(error.status, error.code, error.message)
            self._reply(told, close=True)
            return
        if upgrade is not None:
            self._upgrade(*upgrade)

    def _plain(self, head: Head, body: bytes) -> None:
        keeps = self._requests is not None and self._requests.keeps_alive
        if not self._closing:
            answer = self._desk.answer(head, body)
            self._reply(answer, close=not keeps, bare=head.method == "HEAD")

    def _reply(self, answer: Answer, *, close: bool, bare: bool = False) -> None:
        self._transport.write(http.encoded(answer, close=close, bare=bare))
        if close:
            self._closing = True
            self._transport.close()

    def _upgrade(self, head: Head, rest: bytes) -> None:
        """Shake hands as RFC 6455 §4.2 says, or refuse."""
        refusal = self._desk.objection(head)
        if refusal is not None:
            self._reply(refusal, close=True)
            return
        settings = self._desk.settings
        ws = ServerProtocol(max_size=settings.ws_max_message_size)
        lines = [f"{head.method} {head.target} HTTP/1.1"]
        lines += [f"{name}: {text}" for name, text in head.headers.items()]
        ws.receive_data("\r\n".join([*lines, "", ""]).encode("latin-1"))
        asked: Any = next(iter(ws.events_received()), None)
        response = ws.accept(asked) if asked is not None else None
        if response is None or response.status_code != _SWITCHED:
            told = "this is no WebSocket handshake as RFC 6455 has it"
            self._reply(http.refused(400, "invalid_request", told), close=True)
            return
        ws.send_response(response)
        self._ws, self._requests = ws, None
        self._flush(ws)
        self._device = self._desk.greet(self)
        if rest:
            self._receive(rest)

    # ------------------------------------------------------------ what the device says

    def _receive(self, data: bytes) -> None:
        ws = cast("ServerProtocol", self._ws)
        ws.receive_data(data)
        for event in ws.events_received():
            if isinstance(event, Frame):
                self._frame(event)
        self._flush(ws)
        if ws.close_expected():
            self._part()

    def _frame(self, frame: Frame) -> None:
        if frame.opcode not in {Opcode.TEXT, Opcode.BINARY, Opcode.CONT} or self._closing:
            return
        if frame.data:  # of empty pieces there may be any number
            self._pieces.append(bytes(frame.data))
        if not frame.fin:
            return
        message, self._pieces = b"".join(self._pieces), []
        self._inbox.append(message)
        if len(self._inbox) >= INBOX_MAX:
            self._transport.pause_reading()
        if not self._working:
            self._working = True
            self._desk.start(self)

    async def work(self) -> None:
        """Do what the device has asked for, one after the other."""
        try:
            while self._inbox and self._device is not None and not self.gone:
                message = self._inbox.popleft()
                if len(self._inbox) == INBOX_MAX // 2 and not self._transport.is_closing():
                    self._heard = self._loop.time()
                    self._transport.resume_reading()
                await self._device.take(message)
        finally:
            self._working = False

    # ------------------------------------------------------------ what the device is sent

    def write(self, data: bytes) -> None:
        """Send frames; never waits. A device that leaves too much unread is cut."""
        if self._closing or self.gone or not data:
            return
        if self._transport.get_write_buffer_size() > self._desk.settings.ws_buffer_size:
            self.close(SLOW, "you read too slowly; come again with your cursor")
            return
        self._written += len(data)
        self._transport.write(data)

    async def drained(self) -> None:
        """Wait until most of what was sent has left."""
        if self._paused and not self.gone:
            if self._drained is None:
                self._drained = self._loop.create_future()
            await asyncio.shield(self._drained)

    def close(self, code: int, reason: str) -> None:
        """Say why, and close; a device that does not answer is cut off."""
        ws = self._ws
        if self._closing or self.gone or ws is None:
            return
        if ws.state is State.OPEN:
            ws.send_close(code, reason)
            self._flush(ws)
        self._part()

    def _flush(self, ws: ServerProtocol) -> None:
        """Send what the protocol itself says; a device that reads nothing is owed its last pong."""
        for data in ws.data_to_send():
            if not data:
                self._transport.close()
            elif self._paused and ws.state is State.OPEN:
                self._owed = data
            elif not self._closing:
                self._transport.write(data)

    def _part(self) -> None:
        if self._closing:
            return
        self._closing = True
        self._inbox.clear()
        if self._device is not None:
            self._device.leave()
        self._loop.call_later(CLOSE_S, self._transport.abort)

    # ------------------------------------------------------------ clocks

    def look(self, now: float) -> None:
        """Look at the connection's clocks; called each second."""
        if self._closing:
            return
        if self._ws is None:
            asking = self._requests is not None and self._requests.in_request
            if now - self._heard > IDLE_S or (asking and now - self._pinged > REQUEST_S):
                self._closing = True
                self._transport.abort()
            return
        self._look_at_device(self._ws, now)

    def _look_at_device(self, ws: ServerProtocol, now: float) -> None:
        settings = self._desk.settings
        waiting = self._transport.get_write_buffer_size()
        taken = self._written - waiting
        if not waiting or taken > self._taken:
            self._taken, self._stalled = taken, now
        elif now - self._stalled > settings.ws_write_timeout_ms / 1000:
            self.close(SLOW, "you have read nothing for too long; come again with your cursor")
            return
        if len(self._inbox) < INBOX_MAX and now - self._heard > settings.ws_read_timeout_ms / 1000:
            self.close(POLICY, "nothing was heard of you for too long")
        elif now - self._pinged > settings.ws_ping_ms / 1000 and ws.state is State.OPEN:
            self._pinged = now
            ws.send_ping(_PING)
            self._flush(ws)
