"""Dials: resolve once, judge every address, connect to a judged one, in the system's order."""

import asyncio
import ssl
from collections.abc import Callable
from functools import cache
from ipaddress import ip_address
from typing import Final, NamedTuple, TypeVar
from urllib.parse import urlsplit

from orchestrator.clients.exchange import ExchangeFailed
from orchestrator.core.errors import EgressRefused
from orchestrator.ports import Egress, World

DIAL_S: Final = 10.0
"""How long finding, connecting and securing a connection may take, all addresses together."""
KEEP_ALIVE_S: Final = 4.0
"""How long an idle connection is kept; common agent servers close theirs after 5 s."""
_PORTS: Final = {"http": 80, "https": 443}
_SAID: Final = 300

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


class Target(NamedTuple):
    """A URL as a request needs it: where to dial, the Host header, the request target."""

    origin: Origin
    host: str
    path: str

    @classmethod
    def of(cls, url: str) -> "Target":
        """Take a URL apart; raises ExchangeFailed `refused` for one that cannot be sent."""
        parts = urlsplit(url)
        try:
            port = parts.port or _PORTS[parts.scheme]
        except (KeyError, ValueError) as error:
            raise ExchangeFailed("refused", f"the request cannot be sent: {error}") from error
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        if not parts.hostname or not (path + parts.netloc).isascii() or not path.isprintable():
            raise ExchangeFailed("refused", "the request cannot be sent: the URL is malformed")
        origin = Origin(parts.scheme, parts.hostname, port)
        return cls(origin, str(origin).partition("://")[2], path)


class Dialer:
    """Connects for whoever `operator` says the URLs belong to; the egress rules judge."""

    def __init__(self, world: World, egress: Egress, *, operator: bool) -> None:
        self._world = world
        self._egress = egress
        self._operator = operator

    def check(self, url: str) -> None:
        """Judge a URL before anything is dialled; raises ExchangeFailed `refused`."""
        try:
            self._egress.check(url, operator=self._operator)
        except EgressRefused as error:
            raise ExchangeFailed("refused", error.message) from error

    async def dial(self, origin: Origin, factory: Callable[[], P]) -> P:
        """Return the protocol of a new connection; raises `refused` or `unreachable`."""
        try:
            async with asyncio.timeout(DIAL_S):
                return await self._in_turn(origin, factory)
        except EgressRefused as error:
            raise ExchangeFailed("refused", error.message) from error
        except TimeoutError as error:
            text = f"no connection to {origin} within {DIAL_S:g} s"
            raise ExchangeFailed("unreachable", text) from error
        except (OSError, UnicodeError) as error:
            text = f"no connection to {origin}: {_said(error)}"
            raise ExchangeFailed("unreachable", text) from error

    async def _in_turn(self, origin: Origin, factory: Callable[[], P]) -> P:
        failure: OSError = OSError("the name has no address")
        for address in await self._allowed(origin):
            try:
                return await self._connect(origin, address, factory)
            except OSError as error:
                failure = error
        raise failure

    async def _allowed(self, origin: Origin) -> list[str]:
        """Return the addresses that may be dialled; raises EgressRefused when none may."""
        refusal: EgressRefused | None = None
        allowed = []
        for address in await self._addresses(origin):
            try:
                self._egress.judge(origin.host, address, operator=self._operator)
            except EgressRefused as error:
                refusal = refusal or error
            else:
                allowed.append(address)
        if not allowed and refusal is not None:
            raise refusal
        return allowed

    async def _addresses(self, origin: Origin) -> list[str]:
        if _is_address(origin.host):
            return [origin.host]
        return [address for _, address in await self._world.resolve(origin.host, origin.port)]

    async def _connect(self, origin: Origin, address: str, factory: Callable[[], P]) -> P:
        secure = origin.scheme == "https"
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


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def _said(error: Exception) -> str:
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(str(reason).split())[:_SAID]
