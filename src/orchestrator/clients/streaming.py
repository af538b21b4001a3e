"""The client for streams that are read as they come: agents, models. One pool of connections.

Made for this one thing, it costs a fraction of a general client per event; everything that is
not a stream goes through `clients.http`, which is also what this one is compared with.
"""

import re
from contextlib import AbstractAsyncContextManager
from functools import partial
from types import TracebackType
from typing import Final, Self

from orchestrator.clients.dial import KEEP_ALIVE_S, Dialer, Route, Target
from orchestrator.clients.exchange import Answer, ExchangeFailed, Request
from orchestrator.clients.wire import Connection
from orchestrator.ports import Egress, World

IDLE_MAX: Final = 256
"""How many idle connections one origin may leave us with."""
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")
_STANDING: Final = "User-Agent: orchestrator\r\nAccept-Encoding: identity\r\n"


class StreamingClient:
    """`clients.exchange.HTTP` on connections of our own.

    A request goes out once, on a connection that is used by nobody else meanwhile. One that was
    dialled for an operator's URL is kept apart from those for others, which may not go everywhere.
    """

    def __init__(self, world: World, egress: Egress) -> None:
        self._dialer = Dialer(world, egress)
        self._idle: dict[Route, list[Connection]] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        for connections in self._idle.values():
            for connection in connections:
                connection.take()
                connection.abort()
        self._idle.clear()

    def open(self, request: Request) -> AbstractAsyncContextManager[Answer]:
        """Send `request` once; entering returns when the head of the answer is there.

        Leaving before the end of the body closes the connection at once. Raises ExchangeFailed.
        """
        return _Exchange(self, request)

    async def begin(self, request: Request) -> tuple[Route, Connection]:
        """Send `request` and return the connection, which is the exchange's until `finish`."""
        self._dialer.check(request.url, operator=request.operator)
        target = Target.of(request.url)
        data = encode(request, target)
        route = Route(target.origin, request.operator)
        connection = self._reused(route)
        if connection is None:
            connection = await self._dialer.dial(route, Connection)
        connection.send(str(target.origin), data, request.timeout_s)
        return route, connection

    def finish(self, route: Route, connection: Connection) -> None:
        """Take a connection back, or close it where its answer was not read to the end."""
        if connection.finish():
            self._keep(route, connection)

    def _reused(self, route: Route) -> Connection | None:
        idle = self._idle.pop(route, [])
        while idle:
            connection = idle.pop()
            if connection.take():
                if idle:
                    self._idle[route] = idle
                return connection
        return None

    def _keep(self, route: Route, connection: Connection) -> None:
        idle = self._idle.setdefault(route, [])
        if len(idle) >= IDLE_MAX:
            idle[:] = [one for one in idle if one.alive]
        if len(idle) >= IDLE_MAX:
            connection.abort()
            return
        connection.expire_in(KEEP_ALIVE_S, partial(self._forget, route, connection))
        idle.append(connection)

    def _forget(self, route: Route, connection: Connection) -> None:
        """Let an idle connection go, and with the last one all that is known of its route."""
        connection.abort()
        idle = [one for one in self._idle.pop(route, []) if one is not connection]
        if idle:
            self._idle[route] = idle


class _Exchange(AbstractAsyncContextManager[Answer]):
    """One exchange while it is open, which may be for hours: the request is not kept."""

    __slots__ = ("_client", "_connection", "_request", "_route")

    def __init__(self, client: StreamingClient, request: Request) -> None:
        self._client = client
        self._request: Request | None = request

    async def __aenter__(self) -> Answer:
        request, self._request = self._request, None
        if request is None:
            raise RuntimeError("an exchange is entered once")
        self._route, self._connection = await self._client.begin(request)
        try:
            await self._connection.head()
        except BaseException:
            self._client.finish(self._route, self._connection)
            raise
        return self._connection

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self._client.finish(self._route, self._connection)


def encode(request: Request, target: Target) -> bytes:
    """Return the bytes of a request; raises ExchangeFailed `refused` for what is no header.

    What is not ASCII, a session's name for instance, goes as UTF-8 (RFC 9110 §5.5: obs-text).
    """
    lines = [f"{request.method} {target.path} HTTP/1.1\r\nHost: {target.host}\r\n{_STANDING}"]
    for name, value in request.headers.items():
        if _CONTROL.search(name + value):
            raise ExchangeFailed("refused", f"the request cannot be sent: header {name[:40]!r}")
        lines.append(f"{name}: {value}\r\n")
    body = request.body or b""
    if body or request.method != "GET":
        lines.append(f"Content-Length: {len(body)}\r\n")
    try:
        return "".join(lines).encode() + b"\r\n" + body
    except UnicodeEncodeError as error:
        raise ExchangeFailed("refused", f"the request cannot be sent: {error.reason}") from error
