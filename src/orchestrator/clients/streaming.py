"""The client for streams that are read as they come: agents, models. One pool of connections.

Made for this one thing, it costs a fraction of a general client per event; everything that is
not a stream goes through `clients.http`, which is also what this one is compared with.
"""

from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Final, Self

from orchestrator.clients.dial import KEEP_ALIVE_S, Dialer, Origin, Target
from orchestrator.clients.exchange import Answer, ExchangeFailed, Request
from orchestrator.clients.wire import Connection
from orchestrator.ports import Egress, World

IDLE_MAX: Final = 256
"""How many idle connections one origin may leave us with."""
_STANDING: Final = "User-Agent: orchestrator\r\nAccept-Encoding: identity\r\n"


class StreamingClient:
    """`clients.exchange.HTTP` on connections of our own.

    `operator` says whose URLs these are: those an operator registered may be private, others are
    public only. A request goes out once, on a connection that is used by nobody else meanwhile.
    """

    def __init__(self, world: World, egress: Egress, *, operator: bool = True) -> None:
        self._dialer = Dialer(world, egress, operator=operator)
        self._idle: dict[Origin, list[Connection]] = {}

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

    async def begin(self, request: Request) -> tuple[Origin, Connection]:
        """Send `request` and return the connection, which is the exchange's until `finish`."""
        self._dialer.check(request.url)
        target = Target.of(request.url)
        data = encode(request, target)
        connection = self._reused(target.origin)
        if connection is None:
            connection = await self._dialer.dial(target.origin, Connection)
        connection.send(str(target.origin), data, request.timeout_s)
        return target.origin, connection

    def finish(self, origin: Origin, connection: Connection) -> None:
        """Take a connection back, or close it where its answer was not read to the end."""
        if connection.finish():
            self._keep(origin, connection)

    def _reused(self, origin: Origin) -> Connection | None:
        idle = self._idle.get(origin, [])
        while idle:
            connection = idle.pop()
            if connection.take():
                return connection
        return None

    def _keep(self, origin: Origin, connection: Connection) -> None:
        idle = self._idle.setdefault(origin, [])
        idle[:] = [one for one in idle if one.alive]
        if len(idle) >= IDLE_MAX:
            connection.abort()
            return
        connection.expire_in(KEEP_ALIVE_S)
        idle.append(connection)


class _Exchange(AbstractAsyncContextManager[Answer]):
    """One exchange while it is open, which may be for hours: the request is not kept."""

    __slots__ = ("_client", "_connection", "_origin", "_request")

    def __init__(self, client: StreamingClient, request: Request) -> None:
        self._client = client
        self._request: Request | None = request

    async def __aenter__(self) -> Answer:
        request, self._request = self._request, None
        if request is None:
            raise RuntimeError("an exchange is entered once")
        self._origin, self._connection = await self._client.begin(request)
        try:
            await self._connection.head()
        except BaseException:
            self._client.finish(self._origin, self._connection)
            raise
        return self._connection

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self._client.finish(self._origin, self._connection)


def encode(request: Request, target: Target) -> bytes:
    """Return the bytes of a request; raises ExchangeFailed `refused` for what is no header."""
    lines = [f"{request.method} {target.path} HTTP/1.1\r\nHost: {target.host}\r\n{_STANDING}"]
    for name, value in request.headers.items():
        if not (name + value).isprintable():
            raise ExchangeFailed("refused", f"the request cannot be sent: header {name[:40]!r}")
        lines.append(f"{name}: {value}\r\n")
    body = request.body or b""
    if body or request.method != "GET":
        lines.append(f"Content-Length: {len(body)}\r\n")
    try:
        return "".join(lines).encode("latin-1") + b"\r\n" + body
    except UnicodeEncodeError as error:
        raise ExchangeFailed("refused", f"the request cannot be sent: {error.reason}") from error
