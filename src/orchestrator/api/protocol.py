"""Uvicorn's HTTP protocol with the two limits it lacks: the headers' size and their time."""

import asyncio
import sys
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, Final, cast

from starlette.types import Scope
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from orchestrator.api import beats
from orchestrator.api.beats import BODY_MAX, Beats
from orchestrator.api.wire import CONNECTION

HEADER_BYTES: Final = 64 << 10
HEADER_S: Final = 10.0
_TOO_LARGE: Final = (431, "headers_too_large", "the headers are over 65536 bytes")
_TOO_SLOW: Final = (408, "headers_too_slow", "the headers were not complete within 10 s")
_NO_MEMORY: Final = (503, "unavailable", "there is no memory for this request; try again")
_BEAT: Final = beats.AFTER.encode()
_TAKEN: Final = b"HTTP/1.1 200 OK\r\n%b\r\n%b" % (
    b"".join(b"%b: %b\r\n" % pair for pair in beats.HEADERS), beats.BODY,
)  # fmt: skip
_MALFORMED: Final = (400, "malformed_request", "this is not HTTP/1.1 as RFC 9112 has it")


class Flow(FlowControl):
    """Uvicorn's flow control without an event per connection: few ever have to wait."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self.read_paused = self.write_paused = False
        self._writable: asyncio.Future[None] | None = None

    async def drain(self) -> None:
        """Wait until the peer takes more."""
        while self.write_paused:
            if self._writable is None:
                self._writable = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._writable)

    def pause_writing(self) -> None:
        """Note that the peer takes no more."""
        self.write_paused = True

    def resume_writing(self) -> None:
        """Let whoever waits go on."""
        self.write_paused = False
        writable, self._writable = self._writable, None
        if writable is not None:
            writable.set_result(None)


class HTTPProtocol(HttpToolsProtocol):
    """One connection: 64 KiB and 10 s until the headers of a request are complete."""

    # With our own fields in its dict a connection would have too many for Python to share its keys.
    __slots__ = ("_beat", "_beats", "_clock", "_header_bytes", "_in_headers", "left")

    def __init__(self, *args: Any, beats: Beats | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._beats = beats
        self._beat: bytes | None = None
        self._header_bytes = 0
        self._in_headers = True
        self._clock: asyncio.TimerHandle | None = None
        self.left: Callable[[], None] | None = None

    def connection_made(self, transport: Any) -> None:
        """Start the clock with the connection."""
        super().connection_made(transport)
        self.flow = Flow(transport)
        self._start_clock()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clock, and tell whoever serves the peer that it has gone."""
        self._stop_clock()
        super().connection_lost(exc)
        if self.left is not None:
            self.left()

    def data_received(self, data: bytes) -> None:
        """Count header bytes on their way to the parser."""
        if self._in_headers:
            self._header_bytes += len(data)
            if self._header_bytes > HEADER_BYTES and not self._fits(data):
                self._refuse(*_TOO_LARGE)
                return
            if self._clock is None:
                self._start_clock()
        super().data_received(data)

    def on_message_begin(self) -> None:
        """A request begins."""
        super().on_message_begin()
        self._in_headers = True

    def on_headers_complete(self) -> None:
        """The headers are there: the body has limits of its own."""
        self._in_headers = False
        self._header_bytes = 0
        self._stop_clock()
        self.scope[CONNECTION] = self  # type: ignore[typeddict-unknown-key]  # ours, beside ASGI's
        if self._beats is not None and self.url.endswith(_BEAT) and self._is_plain():
            self._beat = b""  # until all of it is there
        else:
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Keep the body of what may be a heartbeat until it is whole."""
        if self._beat is None:
            super().on_body(body)
        else:
            self._beat += body
            if len(self._beat) > BODY_MAX:
                self._is_none()

    def on_message_complete(self) -> None:
        """The next bytes are headers again."""
        if self._beat is not None and not self._is_taken():
            self._is_none()
        if self._beat is None:
            super().on_message_complete()
        self._beat = None
        self._in_headers = True
        self._header_bytes = 0

    def _is_plain(self) -> bool:
        """Return whether a request is one of HTTP/1.1 that nothing before it holds up."""
        cycle: RequestResponseCycle | None = self.cycle  # None before the first request
        idle = cycle is None or cycle.response_complete
        plain = idle and not self.expect_100_continue and not self.parser.should_upgrade()
        return plain and self.parser.get_http_version() == "1.1" and b"%" not in self.url

    def _is_taken(self) -> bool:
        """Answer what is a heartbeat that nobody need be asked about: no task, no cycle."""
        beats, body = self._beats, self._beat
        keep = self.parser.should_keep_alive() and not self.transport.is_closing()
        if beats is None or body is None or not keep or self.flow.write_paused:
            return False
        self.scope["method"] = self.parser.get_method().decode("ascii")
        self.scope["path"], self.scope["query_string"] = self.url.decode("latin-1"), b""
        if not beats.at_once(cast("Scope", self.scope), body):
            return False
        self.transport.write(_TAKEN)
        self.on_response_complete()
        return True

    def _is_none(self) -> None:
        """Pass on what was held back: it goes the usual way."""
        body, self._beat = self._beat, None
        super().on_headers_complete()
        if body:
            super().on_body(body)

    def _fits(self, data: bytes) -> bool:
        """Return whether the headers end within the limit although this piece goes beyond it."""
        end = data.find(b"\r\n\r\n")
        return end >= 0 and self._header_bytes - len(data) + end <= HEADER_BYTES

    def _start_clock(self) -> None:
        self._clock = self.loop.call_later(HEADER_S, self._too_slow)

    def _stop_clock(self) -> None:
        if self._clock is not None:
            self._clock.cancel()
            self._clock = None

    def _too_slow(self) -> None:
        self._clock = None
        if self._in_headers and not self.transport.is_closing():
            self._refuse(*_TOO_SLOW)

    def send_400_response(self, msg: str) -> None:
        """Answer what the parser cannot read; within an answer nothing can be said any more."""
        del msg  # uvicorn's own words, which say no more
        if _within_answer(self.cycle):
            self.transport.close()
        elif _out_of_memory(sys.exception()):
            self._refuse(*_NO_MEMORY)
        else:
            self._refuse(*_MALFORMED)

    def _refuse(self, status: int, code: str, sentence: str) -> None:
        phrase = HTTPStatus(status).phrase
        body = f'{{"error":"{sentence}","code":"{code}"}}'
        self.transport.write(
            f"HTTP/1.1 {status} {phrase}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n{body}".encode()
        )
        self.transport.close()


def _out_of_memory(error: BaseException | None) -> bool:
    """Return whether it was us who could not go on: the parser wraps what its callbacks raise."""
    while error is not None and not isinstance(error, MemoryError):
        error = error.__cause__ or error.__context__
    return error is not None


def _within_answer(cycle: RequestResponseCycle | None) -> bool:
    return cycle is not None and cycle.response_started and not cycle.response_complete
