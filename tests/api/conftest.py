"""The API on a real socket, in this process, over a real engine with a scripted agent.

Tests that ask for `database` or `api` run on both stores. What is on SQLite only: what is answered
before a store is asked, and what happens to a file when its host stops.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias, cast
from urllib.parse import urlsplit

import msgspec
import pytest
import uvicorn

from orchestrator.api import APISettings, create_app, heartbeats
from orchestrator.api.protocol import HTTPProtocol
from orchestrator.api.routes import ROUTES
from orchestrator.api.table import Route
from orchestrator.buses.postgres import PostgresBus
from orchestrator.ports import Bus, Store
from orchestrator.stores import postgres
from orchestrator.testing.engine_rig import Place, running
from orchestrator.world import RealWorld

from ..engine.rig import Rig, at, say
from ..stores import Kept

answered_in_front = pytest.mark.only_sqlite("it is answered before a store is asked")
Database: TypeAlias = Place
"""Opens a database and its bus: again after a restart."""


@dataclass
class Answer:
    """What the server said."""

    status: int
    headers: dict[str, str]
    raw: bytes

    @property
    def json(self) -> Any:
        """The decoded body."""
        return msgspec.json.decode(self.raw)


@dataclass
class Client:
    """Makes requests byte by byte, so that a test can send anything."""

    url: str
    rig: Rig

    @property
    def netloc(self) -> str:
        """The server's host and port."""
        return urlsplit(self.url).netloc

    @asynccontextmanager
    async def open(
        self, method: str, path: str, body: Any = None, http: str = "1.1", **headers: str
    ) -> AsyncIterator[tuple[int, dict[str, str], asyncio.StreamReader]]:
        """Send a request and hand out status, headers and the body to come."""
        parts = urlsplit(self.url)
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        data = body if isinstance(body, bytes) else msgspec.json.encode(body)
        data = b"" if body is None else data
        sent = {"Host": parts.netloc, "Content-Length": str(len(data)), "Connection": "close"}
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        lines = "".join(f"{name}: {value}\r\n" for name, value in sent.items() if value)
        try:
            writer.write(f"{method} {path} HTTP/{http}\r\n{lines}\r\n".encode() + data)
            head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            found = (line.partition(": ") for line in head[1:] if line)
            yield int(head[0].split()[1]), {n.lower(): v for n, _, v in found}, reader
        finally:
            writer.transport.abort()

    async def call(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        """Make one request and read the whole answer."""
        async with asyncio.timeout(20), self.open(method, path, body, **headers) as answer:
            status, names, reader = answer
            raw = await reader.read()
            if names.get("transfer-encoding") == "chunked":
                raw = _dechunked(raw)
            return Answer(status, names, raw)

    async def get(self, path: str, **headers: str) -> Answer:
        """GET."""
        return await self.call("GET", path, **headers)

    async def post(self, path: str, body: Any = None, **headers: str) -> Answer:
        """POST."""
        return await self.call("POST", path, body if body is not None else {}, **headers)


def _dechunked(raw: bytes) -> bytes:
    body = b""
    while raw:
        size, _, rest = raw.partition(b"\r\n")
        body += rest[: int(size, 16)]
        raw = rest[int(size, 16) + 2 :]
    return body


def invocation(text: Any = "hello", **fields: Any) -> dict[str, Any]:
    """Return the body of an invocation."""
    message = {"role": "user", "content": text}
    return {"session_id": "s1", "agent_id": "demo", "input_message": message} | fields


@asynccontextmanager
async def serving(
    database: Database,
    script: Any = say,
    engine: dict[str, Any] | None = None,
    routes: tuple[Route, ...] = ROUTES,
    **settings: Any,
) -> AsyncIterator[Client]:
    """Serve the API of an engine on a database; `engine` are the engine's settings."""
    async with running(database, script, **(engine or {})) as rig:
        wanted = APISettings(**settings)
        protocol = partial(HTTPProtocol, beats=heartbeats(rig.engine, wanted))
        config = uvicorn.Config(
            create_app(rig.engine, wanted, routes),
            host="127.0.0.1", port=0, http=cast("Any", protocol), lifespan="off", ws="none",
            log_config=None, timeout_graceful_shutdown=1,
        )  # fmt: skip
        server = uvicorn.Server(config)
        server.capture_signals = nullcontext  # type: ignore[method-assign,assignment]
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(server.serve())
            while not server.started:
                await asyncio.sleep(0.002)
            port = server.servers[0].sockets[0].getsockname()[1]
            try:
                yield Client(f"http://127.0.0.1:{port}", rig)
            finally:
                server.should_exit = True


def on_postgres(url: str) -> Database:
    """Return the place of a PostgreSQL database, with its own bus for each server."""

    @asynccontextmanager
    async def opened() -> AsyncIterator[tuple[Store, Bus]]:
        store, bus = (
            await postgres.open_store(url, world=RealWorld()),
            PostgresBus(url, RealWorld()),
        )
        try:
            async with bus.running():
                yield store, bus
        finally:
            await store.close()

    return opened


@pytest.fixture
def database(kept_together: Kept, ground: Path) -> Database:
    """Hand out an empty database of the test's store."""
    if kept_together.postgres:
        kept_together.empty()
        return on_postgres(kept_together.settings["DATABASE_URL"])
    return at(ground / "o.db")


@pytest.fixture
async def api(database: Database) -> AsyncIterator[Client]:
    """Hand out a client of a fresh server."""
    async with serving(database) as client:
        yield client
