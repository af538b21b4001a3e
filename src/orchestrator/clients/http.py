"""Carries exchanges over aiohttp: guarded dials, one pool, no redirects, proxies or cookies."""

import asyncio
import io
import socket
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from functools import partial
from types import TracebackType
from typing import Final, Self, cast

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.client_proto import ResponseHandler
from aiohttp.http_exceptions import HttpProcessingError
from yarl import URL

from orchestrator.clients.dial import DIAL_S, KEEP_ALIVE_S, address_in, resolve
from orchestrator.clients.exchange import Answer, ExchangeFailed, Request
from orchestrator.core.errors import EgressRefused
from orchestrator.ports import Egress, World

BUFFER: Final = 64 * 1024
"""Bytes of a body that may wait to be read; at twice as many we stop reading the socket."""
HEADER_BYTES, HEADERS = 8190, 128
_SAID = 300


class HTTPClient:
    """Two pools of connections; everything they open belongs to it and ends with it.

    One is for URLs that an operator registered, the other for the rest, which may not go
    everywhere. Every address is judged when it is dialled, and the judged one is connected to.
    """

    def __init__(self, world: World, egress: Egress) -> None:
        self._world = world
        self._egress = egress

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            self._sessions = {
                operator: await stack.enter_async_context(self._session(operator=operator))
                for operator in (True, False)
            }
            self._closing = stack.pop_all()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        await self._closing.aclose()

    def _session(self, *, operator: bool) -> aiohttp.ClientSession:
        connector = aiohttp.TCPConnector(
            resolver=_JudgingResolver(self._world, self._egress, operator=operator),
            use_dns_cache=False,
            keepalive_timeout=KEEP_ALIVE_S,
            limit=0,
        )
        loop = asyncio.get_running_loop()
        abrupt = cast("partial[ResponseHandler]", partial(_Abrupt, loop=loop))
        connector._factory = abrupt  # noqa: SLF001  # no other door
        session = aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None, connect=DIAL_S),
            headers={"User-Agent": "orchestrator", "Accept-Encoding": "identity"},
            auto_decompress=False,
            trust_env=False,
            read_bufsize=BUFFER,
            max_line_size=HEADER_BYTES,
            max_field_size=HEADER_BYTES,
            max_headers=HEADERS,
        )
        session._retry_connection = False  # noqa: SLF001  # a GET would go twice
        return session

    def open(self, request: Request) -> AbstractAsyncContextManager[Answer]:
        """Send `request` once; entering returns when the head of the answer is there.

        Leaving before the end of the body closes the connection at once. Raises ExchangeFailed.
        """
        return self._open(request)

    @asynccontextmanager
    async def _open(self, request: Request) -> AsyncIterator[Answer]:
        try:
            self._judge(request)
            response = await self._send(request)
        except (EgressRefused, aiohttp.ClientError, OSError, ValueError) as error:
            raise _diagnose(error, request.url) from error
        try:
            yield _Answer(response, request.url)
        finally:
            response.close()  # does nothing when the body was read and the connection is pooled

    async def _send(self, request: Request) -> aiohttp.ClientResponse:
        return await self._sessions[request.operator].request(
            request.method,
            request.url,
            headers=request.headers,
            data=_sendable(request.body),
            allow_redirects=False,
            timeout=aiohttp.ClientTimeout(total=request.timeout_s, connect=DIAL_S),
        )

    def _judge(self, request: Request) -> None:
        """Judge the URL, and its host where that is an address: the resolver never sees those."""
        self._egress.check(request.url, operator=request.operator)
        host = URL(request.url).raw_host or ""
        address = address_in(host)
        if address is not None:
            self._egress.judge(host, address, operator=request.operator)


class _Answer:
    """The answer to one request."""

    def __init__(self, response: aiohttp.ClientResponse, url: str) -> None:
        self._response = response
        self._url = url
        self._broken: ExchangeFailed | None = None

    @property
    def status(self) -> int:
        return self._response.status

    def header(self, name: str) -> str:
        return self._response.headers.get(name, "")

    async def read(self) -> bytes:
        if self._broken is not None:
            raise self._broken
        try:
            return await self._response.content.readany()
        except (aiohttp.ClientError, OSError, RuntimeError) as error:
            self._broken = _diagnose(error, self._url)
            if rest := self._unread():
                return rest
            raise self._broken from error

    def _unread(self) -> bytes:
        """Return what came before the break: aiohttp keeps it to itself, but it was said."""
        return b"".join(self._response.content._buffer)  # noqa: SLF001  # no other door


class _Abrupt(ResponseHandler):
    """A connection that is given up at once, without a word to a peer that may not be reading."""

    def close(self) -> None:
        self.abort()

    def set_exception(self, exc: BaseException, *cause: BaseException) -> None:
        """Tell the body's reader too: aiohttp lets it wait for ever after a malformed chunk."""
        super().set_exception(exc, *cause)
        body = self._payload
        if body is not None and not body.is_eof() and body.exception() is None:
            wrong = isinstance(exc, HttpProcessingError)
            body.set_exception((_Malformed if wrong else aiohttp.ClientPayloadError)(str(exc)))


class _Malformed(aiohttp.ClientPayloadError):
    """A body that is not framed as HTTP frames bodies, which is no hang-up."""


class _JudgingResolver(AbstractResolver):
    """Resolves names through the world and hands on only the addresses that may be dialled."""

    def __init__(self, world: World, egress: Egress, *, operator: bool) -> None:
        self._world = world
        self._egress = egress
        self._operator = operator

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        del family  # every family, in the order of the system
        found = await resolve(self._world, self._egress, host, port, operator=self._operator)
        return [
            ResolveResult(hostname=host, host=address, port=port, family=kind, proto=0, flags=0)
            for kind, address in found
        ]

    async def close(self) -> None:
        """Hold nothing."""


def _sendable(body: bytes | None) -> bytes | io.BytesIO | None:
    """Return a body as aiohttp sends it: a large one piece by piece, as fast as it is read."""
    return io.BytesIO(body) if body is not None and len(body) > BUFFER else body


def _diagnose(error: Exception, url: str) -> ExchangeFailed:
    """Say in our words what went wrong; the order goes from the special to the general."""
    match error:
        case EgressRefused():
            return ExchangeFailed("refused", error.message)
        case aiohttp.ConnectionTimeoutError():
            return ExchangeFailed(
                "unreachable", f"no connection to {_origin(url)} within {DIAL_S:g} s"
            )
        case aiohttp.ClientConnectorError() | aiohttp.ClientSSLError():
            return ExchangeFailed("unreachable", f"no connection to {_origin(url)}: {_said(error)}")
        case aiohttp.ClientResponseError() | _Malformed():
            said = _said(error)
            return ExchangeFailed("malformed", f"{_origin(url)} did not answer in HTTP: {said}")
        case TimeoutError():
            return ExchangeFailed("hung_up", f"{_origin(url)} did not answer in time")
        case aiohttp.InvalidURL() | aiohttp.NonHttpUrlClientError() | ValueError():
            return ExchangeFailed("refused", f"the request cannot be sent: {_said(error)}")
        case _:
            return ExchangeFailed("hung_up", f"{_origin(url)} hung up: {_said(error)}")


def _said(error: Exception) -> str:
    inner = getattr(error, "os_error", None)
    reason = getattr(inner, "strerror", None) or str(inner or error) or type(error).__name__
    return " ".join(str(reason).split())[:_SAID]


def _origin(url: str) -> str:
    return str(URL(url).origin())
