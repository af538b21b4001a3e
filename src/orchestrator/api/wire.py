"""An answer's connection below ASGI: bytes that need no task to be sent, word that the reader left.

`api.protocol` puts itself into the scope of each request; event streams, whose cost counts per
event, use it through this.
"""

from collections.abc import Callable
from typing import Final, Protocol, cast

from starlette.types import Scope
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

CONNECTION: Final = "orchestrator.connection"
"""The scope's key for the connection that a request came by."""


class Connection(Protocol):
    """What the protocol tells: `left` is called when the peer has gone."""

    left: Callable[[], None] | None


class Wire:
    """The way back to one reader, for as long as its answer has begun and not ended."""

    __slots__ = ("_connection", "_cycle", "_flow", "_ours", "_transport")

    def __init__(self, scope: Scope) -> None:
        self._connection: Connection = scope[CONNECTION]
        protocol = cast("HttpToolsProtocol", self._connection)
        self._cycle, self._flow, self._transport = protocol.cycle, protocol.flow, protocol.transport
        # A pipelined request has put its own answer in place of ours: that goes the long way.
        self._ours = self._cycle.scope is scope

    def write(self, body: bytes) -> bool:
        """Send a piece of the body now; False when the reader does not keep up."""
        cycle = self._cycle
        if not self._ours or self._flow.write_paused:
            return False
        if cycle.disconnected or self._transport.is_closing():
            return True
        if cycle.chunked_encoding:
            self._transport.write(b"%x\r\n%b\r\n" % (len(body), body))
        else:
            self._transport.write(body)
        return True

    @property
    def gone(self) -> bool:
        """Return whether the peer has gone already."""
        return self._cycle.disconnected or self._transport.is_closing()

    def on_gone(self, left: Callable[[], None] | None) -> None:
        """Have `left` called when the peer goes; None for nobody."""
        self._connection.left = left

    def abort(self) -> None:
        """Give the connection up without a word."""
        self._transport.abort()
