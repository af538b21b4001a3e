"""Dials: resolve once, judge every address, connect to a judged one, in the system's order.

Both clients take from here which hosts are looked up and which of their addresses may be dialled.
"""

import asyncio
import re
import ssl
from collections.abc import Callable
from functools import cache
from ipaddress import ip_address
from typing import Final, NamedTuple, TypeAlias, TypeVar
from urllib.parse import urlsplit

from orchestrator.clients.exchange import ExchangeFailed
from orchestrator.core.errors import EgressRefused
from orchestrator.ports import Egress, World
from orchestrator.telemetry import unbound

DIAL_S: Final = 10.0
"""How long finding, connecting and securing a connection may take, all addresses together."""
KEEP_ALIVE_S: Final = 4.0
"""How long an idle connection is kept; common agent servers close theirs after 5 s."""
_PORTS: Final = {"http": 80, "https": 443}
_NUMBER: Final = re.compile(r"0x[0-9a-f]*|[0-9]+", re.IGNORECASE)
_SENDABLE: Final = re.compile(r"[!-~]+")
_SHOWN: Final = 200
_SAID: Final = 300

Found: TypeAlias = tuple[int, str]
"""An address as the world resolves it, behind its family."""
P = TypeVar("P", bound=asyncio.Protocol)


class Origin(NamedTuple):
    """Where a URL leads; `str()` is how messages name it."""

    scheme: str
    host: str
    port: int

    def __str__(self) -> str:
        shown = f"[{self.host}]" if ":" in self.host else self.host
        port = "" if self.port == _PORTS[self.scheme] else f":{self.port}"
        return f"{self.scheme}://{shown}{port}"


class Route(NamedTuple):
    """An origin and whose URL leads there: a connection is only ever used for the one of them."""

    origin: Origin
    operator: bool


class Target(NamedTuple):
    """A URL as a request needs it: where to dial, the Host header, the request target."""

    origin: Origin
    host: str
    path: str

    @classmethod
    def of(cls, url: str) -> "Target":
        """Take a URL apart; raises ExchangeFailed `refused` for one that cannot be sent."""
        try:
            parts = urlsplit(url)
            usual = _PORTS[parts.scheme]
            port = usual if parts.port is None else parts.port
        except (KeyError, ValueError) as error:
            raise ExchangeFailed("refused", f"the request cannot be sent: {error}") from error
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        if not parts.hostname or not _SENDABLE.fullmatch(parts.netloc + path):
            raise ExchangeFailed("refused", "the request cannot be sent: the URL is malformed")
        origin = Origin(parts.scheme, parts.hostname, port)
        return cls(origin, str(origin).partition("://")[2], path)


class Dialer:
    """Connects where the egress rules allow it."""

    def __init__(self, world: World, egress: Egress) -> None:
        self._world = world
        self._egress = egress

    def check(self, url: str, *, operator: bool) -> None:
        """Judge a URL before anything is dialled; raises ExchangeFailed `refused`."""
        try:
            self._egress.check(url, operator=operator)
        except EgressRefused as error:
            raise ExchangeFailed("refused", error.message) from error

    async def dial(self, route: Route, factory: Callable[[], P]) -> P:
        """Return the protocol of a new connection; raises `refused` or `unreachable`."""
        origin = route.origin
        try:
            async with asyncio.timeout(DIAL_S):
                return await self._in_turn(route, factory)
        except EgressRefused as error:
            raise ExchangeFailed("refused", error.message) from error
        except TimeoutError as error:
            text = f"no connection to {origin} within {DIAL_S:g} s"
            raise ExchangeFailed("unreachable", text) from error
        except (OSError, UnicodeError) as error:
            text = f"no connection to {origin}: {_said(error)}"
            raise ExchangeFailed("unreachable", text) from error

    async def _in_turn(self, route: Route, factory: Callable[[], P]) -> P:
        failure = OSError("the name has no address")
        for address in await self._allowed(route):
            try:
                return await self._connect(route.origin, address, factory)
            except OSError as error:
                failure = error
        raise failure

    async def _allowed(self, route: Route) -> list[str]:
        (_, host, port), operator = route
        address = address_in(host)
        if address is None:
            found = await resolve(self._world, self._egress, host, port, operator=operator)
            return [address for _, address in found]
        self._egress.judge(host, address, operator=operator)
        return [address]

    async def _connect(self, origin: Origin, address: str, factory: Callable[[], P]) -> P:
        secure = origin.scheme == "https"
        with unbound():  # it outlives the run that dials, and its log lines name another's
            _, protocol = await asyncio.get_running_loop().create_connection(
                factory,
                address,
                origin.port,
                ssl=_tls() if secure else None,
                server_hostname=origin.host if secure else None,
            )
        return protocol


@cache
def _tls() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    return context


def address_in(host: str) -> str | None:
    """Return the address that a URL's host is, None for a name; raises EgressRefused for neither.

    A colon, or a number at the end (WHATWG URL, "ends in a number"), makes it an address to some
    resolvers, so a name it is not: it would be dialled without having been judged.
    """
    try:
        return str(ip_address(host))
    except ValueError:
        if ":" not in host and not _NUMBER.fullmatch(host.rstrip(".").rpartition(".")[2]):
            return None
    raise EgressRefused(
        f"{host[:_SHOWN]} is neither a name nor a plain address; write four decimal numbers, or "
        "an IPv6 address in brackets"
    )


async def resolve(
    world: World, egress: Egress, host: str, port: int, *, operator: bool
) -> list[Found]:
    """Return those addresses of a name that may be dialled, in the order to try them.

    Raises EgressRefused when it has some and none may be, OSError when it has none.
    """
    refusal: EgressRefused | None = None
    allowed: list[Found] = []
    for family, address in await world.resolve(host, port):
        try:
            egress.judge(host, address, operator=operator)
        except EgressRefused as error:
            refusal = refusal or error
        else:
            allowed.append((family, address))
    if not allowed:
        raise refusal or OSError("the name has no address")
    return allowed


def _said(error: Exception) -> str:
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(str(reason).split())[:_SAID]
