"""The internet on this machine: names, addresses, and two listeners that count who arrives."""

import asyncio
import socket
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Any, Self, cast

import httptools
import pytest

from orchestrator.clients.exchange import ExchangeFailed, Request, read_all
from orchestrator.ports import Egress

from .calls import DRIVERS, Chosen, Client, Names
from .hostile_urls import BOOK, PUBLIC

OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"


class Phones(Names):
    """A phone book with aliases, in which a number is its own entry, as in the system's."""

    def __init__(self, book: dict[str, list[str]]) -> None:
        super().__init__(**book)
        self.asked: list[str] = []

    async def resolve(self, host: str, port: int) -> list[tuple[int, str]]:
        self.asked.append(host)
        name = host.rstrip(".")
        while True:
            match self._book.get(name):
                case [alias] if alias in self._book:
                    name = alias
                case None:
                    return [(int(socket.AF_INET), _number(name))]
                case _:
                    return await super().resolve(name, port)


def _number(host: str) -> str:
    """Return what the system takes an odd number for."""
    try:
        return socket.inet_ntoa(socket.inet_aton(host))
    except (OSError, UnicodeError):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known") from None


class _Visit(asyncio.Protocol):
    """One connection that got as far as a listener."""

    def __init__(self, listener: "Listener") -> None:
        self._listener = listener
        self._parser = httptools.HttpRequestParser(self)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._listener.connections += 1
        self._listener.transports.append(self._transport)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):  # TLS, or a CONNECT
            self._transport.abort()

    def on_message_begin(self) -> None:
        self._headers: dict[str, str] = {}

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.decode().lower()] = value.decode()

    def on_message_complete(self) -> None:
        self._listener.requests.append(self._headers)
        self._transport.write(self._listener.answer)


class Listener:
    """A server on free ports of 127.0.0.1 and ::1, which counts."""

    def __init__(self) -> None:
        self.answer = OK
        self.connections = 0
        self.requests: list[dict[str, str]] = []
        self.transports: list[asyncio.Transport] = []
        self._at: dict[int, tuple[str, int]] = {}

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._servers = [
            await loop.create_server(lambda: _Visit(self), host, 0) for host in ("127.0.0.1", "::1")
        ]
        for server in self._servers:
            (door,) = server.sockets
            self._at[door.family] = door.getsockname()[:2]
        return self

    async def __aexit__(self, *_: object) -> None:
        for server in self._servers:
            server.close()
        for transport in self.transports:
            transport.abort()

    def at(self, family: int) -> tuple[str, int]:
        return self._at[family]


class Net:
    """The internet: `outside` has the public addresses, `inside` all the others."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch
        self.inside, self.outside = Listener(), Listener()
        self.dialled: list[str] = []
        self.looked_up: list[str] = []
        self.world = Phones(BOOK)

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self.inside)
            await stack.enter_async_context(self.outside)
            self._stack = stack.pop_all()
        loop = asyncio.get_running_loop()
        self._connect = loop.sock_connect
        self._monkeypatch.setattr(loop, "sock_connect", self.connect)
        self._monkeypatch.setattr(loop, "getaddrinfo", self.look_up)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def connect(self, sock: socket.socket, address: Sequence[Any]) -> None:
        host = str(address[0])
        self.dialled.append(host)
        listener = self.outside if host in PUBLIC else self.inside
        await self._connect(sock, listener.at(sock.family))

    async def look_up(self, host: str, *_: object, **__: object) -> list[Any]:
        """Note that somebody asked the system's resolver behind the world's back."""
        self.looked_up.append(host)
        raise socket.gaierror(socket.EAI_NONAME, "the world resolves names, nobody else")

    def client(self, egress: Egress) -> Client:
        return DRIVERS[Chosen.name](self.world, egress)

    async def tried(self, egress: Egress, url: str, *, operator: bool) -> "int | ExchangeFailed":
        """Return the status of an answer, or how the exchange failed."""
        async with self.client(egress) as http:
            return await exchanged(http, url, operator=operator)


async def exchanged(http: Client, url: str, *, operator: bool) -> "int | ExchangeFailed":
    request = Request(method="GET", url=url, headers={}, operator=operator)
    try:
        async with asyncio.timeout(20), http.open(request) as answer:
            await read_all(answer, 1024)
            return answer.status
    except ExchangeFailed as failure:
        return failure
