"""One HTTP/1.1 connection: bytes go through the parser in the call that brings them.

Nothing is queued, no task runs: a piece of the body is in `read`'s hands one wake-up after it
came. While too much waits to be read the socket is left alone, so a fast sender waits.
"""

import asyncio
from collections.abc import Callable
from typing import Any, Final, cast

import httptools

from orchestrator.clients.exchange import ExchangeFailed, Trouble

BODY_MARK: Final = 128 * 1024
"""Bytes of a body that may wait to be read before the socket is left alone."""
HEAD_BYTES: Final = 32 * 1024
HEADERS: Final = 128
_FINAL: Final = 200
_SAID: Final = 200


class Connection(asyncio.Protocol):
    """Carries one exchange after the other; `clients.exchange.Answer` while it carries one."""

    __slots__ = (
        "_active", "_clock", "_done", "_failure", "_framed", "_head_done", "_head_size",
        "_headers", "_keep", "_loop", "_lost", "_name", "_parser", "_paused", "_pieces", "_size",
        "_status", "_transport", "_waiter",
    )  # fmt: skip

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._clock: asyncio.TimerHandle | None = None
        self._lost = False
        self._paused = False
        self._clear("")

    def _clear(self, name: str) -> None:
        self._name = name
        self._parser: Any = None
        self._active = self._head_done = self._done = self._keep = self._framed = False
        self._status = 0
        self._headers: dict[str, str] = {}
        self._head_size = 0
        self._pieces: list[bytes] = []
        self._size = 0
        self._failure: ExchangeFailed | None = None

    # ------------------------------------------------------------ one exchange

    def send(self, name: str, data: bytes, timeout_s: float | None) -> None:
        """Begin an exchange with the peer that messages call `name`."""
        self._clear(name)
        self._active = True
        self._parser = httptools.HttpResponseParser(self)
        if self._transport is None or self._lost:
            self._fail("hung_up", "the connection was closed")
            return
        if timeout_s is not None:
            self._clock = self._loop.call_later(timeout_s, self._too_late)
        self._transport.write(data)

    async def head(self) -> None:
        """Wait until the head of the answer is there; raises ExchangeFailed."""
        while not self._head_done:
            if self._failure is not None:
                raise self._failure
            await self._wait()

    @property
    def status(self) -> int:
        """Return the status code."""
        return self._status

    def header(self, name: str) -> str:
        """Return a header's value, empty when it is absent."""
        return self._headers.get(name.lower(), "")

    async def read(self) -> bytes:
        """Return the body's next bytes, b"" at its clean end; raises ExchangeFailed."""
        while not self._pieces:
            if self._failure is not None:
                raise self._failure
            if self._done:
                return b""
            await self._wait()
        pieces, self._pieces, self._size = self._pieces, [], 0
        if self._paused and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def finish(self) -> bool:
        """End the exchange; return whether the connection can carry another one."""
        self._stop_clock()
        again = self._done and self._keep and not self._pieces and self.alive
        self._clear("")
        if not again:
            self.abort()
        return again

    def abort(self) -> None:
        """Give the connection up at once, without a word."""
        if self._transport is not None and not self._lost:
            self._transport.abort()

    def expire_in(self, seconds: float, expired: Callable[[], None]) -> None:
        """Have the owner close the idle connection after a time, unless it is used before."""
        self._clock = self._loop.call_later(seconds, expired)

    def take(self) -> bool:
        """Stop the idle clock; return whether the connection is still good."""
        self._stop_clock()
        return self.alive

    @property
    def alive(self) -> bool:
        """Return whether the connection is open."""
        return self._transport is not None and not self._lost and not self._transport.is_closing()

    def _stop_clock(self) -> None:
        if self._clock is not None:
            self._clock.cancel()
            self._clock = None

    async def _wait(self) -> None:
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _fail(self, trouble: Trouble, message: str) -> None:
        if self._failure is None and not self._done:
            text = {"malformed": "did not answer in HTTP", "hung_up": "hung up"}[trouble]
            self._failure = ExchangeFailed(trouble, f"{self._name} {text}: {message}")
            self._wake()

    def _too_late(self) -> None:
        self._clock = None
        if self._failure is None and not self._done:
            self._failure = ExchangeFailed("hung_up", f"{self._name} did not answer in time")
            self._wake()

    # ------------------------------------------------------------ asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Parse what came, in this very call."""
        if not self._active or self._failure is not None:
            self.abort()  # words that nobody asked for
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._fail("malformed", "it wants to speak another protocol")
        except httptools.HttpParserError as error:
            self._keep = False
            self._fail("malformed", _said(error))
        if self._size > BODY_MARK and not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()
        if self._head_done or self._failure is not None:
            self._wake()

    def eof_received(self) -> bool:
        """Close our side too; `connection_lost` says what it means."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell a clean end, where the body goes to the end of the connection, from a break."""
        self._lost = True
        if not self._active:
            return
        if exc is None and self._head_done and not self._framed:
            self._done = True
            self._wake()
        else:
            self._fail("hung_up", _said(exc) if exc is not None else "before its answer was whole")

    # ------------------------------------------------------------ httptools

    def on_message_begin(self) -> None:
        """Forget an interim answer; note what comes after the whole one."""
        if self._done:
            self._keep = False

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header; too many of them end the exchange."""
        self._head_size += len(name) + len(value)
        if self._head_size > HEAD_BYTES or len(self._headers) >= HEADERS:
            raise ValueError(f"its headers are over {HEAD_BYTES} bytes or {HEADERS} lines")
        key, text = name.decode("latin-1").lower(), value.decode("latin-1")
        known = self._headers.get(key)
        self._headers[key] = text if known is None else f"{known}, {text}"

    def on_headers_complete(self) -> None:
        """Take the head, unless it is an interim one."""
        if self._done:
            return
        status = self._parser.get_status_code()
        if status < _FINAL:
            self._headers, self._head_size = {}, 0
            return
        self._status = status
        self._framed = "content-length" in self._headers or "transfer-encoding" in self._headers
        self._head_done = True

    def on_body(self, body: bytes) -> None:
        """Keep a piece of the body until it is read."""
        if not self._done:
            self._pieces.append(body)
            self._size += len(body)

    def on_message_complete(self) -> None:
        """End the answer, unless it is an interim one."""
        if self._head_done and not self._done:
            self._done = True
            self._keep = self._parser.should_keep_alive()


def _said(error: BaseException) -> str:
    cause = error.__context__ or error
    return " ".join(str(cause).split())[:_SAID] or type(cause).__name__
