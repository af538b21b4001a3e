"""PostgreSQL as others run it: TLS, passwords, timeouts, read-only, full, crowded, other texts."""

import asyncio
import os
import secrets
import ssl
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import asyncpg
import pytest

from orchestrator.core.errors import DatabaseRefused, Unavailable
from orchestrator.core.records import Run
from orchestrator.stores.postgres import PostgresStore, open_store
from orchestrator.testing import records as r
from orchestrator.testing.records import committed
from orchestrator.testing.store_contract import seqs
from orchestrator.world import RealWorld

from .. import postgres
from ..fault.test_tls import certificate, name
from ..processes import Running, free_port, request, spawn, start_server, until

MAX_CONNECTIONS = 16
CONF = f"max_connections = {MAX_CONNECTIONS}\n"
HBA = """
local all all trust
host all asked 127.0.0.1/32 scram-sha-256
host all all 127.0.0.1/32 trust
"""


class Elsewhere(postgres.Server):
    """A server with little room for connections, which asks one of its users for a password."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, fsync=False)
        with (folder / "data" / "postgresql.conf").open("a") as file:
            file.write(CONF)
        (folder / "data" / "pg_hba.conf").write_text(HBA)

    def by_network(self, database: str, user: str = "tester", port: int = 0) -> str:
        """Return the address of a database by TCP; `user` may hold a password."""
        return f"postgresql://{user}@127.0.0.1:{port or self.port}{urlsplit(database).path}"


@pytest.fixture(scope="module")
def server() -> Iterator[Elsewhere]:
    """Hand out a server of our own, for it is set up in other ways than those of others."""
    with tempfile.TemporaryDirectory(prefix="pg-", ignore_cleanup_errors=True) as folder:
        running = Elsewhere(Path(folder))
        try:
            running.start()
            yield running
        finally:
            running.stop()


@pytest.fixture
async def url(server: Elsewhere) -> AsyncIterator[str]:
    """Hand out the address of a new database."""
    async with postgres.database(server.url()) as address:
        yield address


@asynccontextmanager
async def opened(url: str, **how: Any) -> AsyncIterator[PostgresStore]:
    """Open a store that works."""
    store = await open_store(url, world=RealWorld(), **how)
    try:
        yield store
    finally:
        await store.close()


async def works(store: PostgresStore, number: int = 1) -> None:
    """Write and read."""
    await committed(store, r.accept(r.run(number)))
    assert await seqs(store, r.run(number)) == [1]


async def refused(url: str) -> str:
    """Return the sentence with which a database is refused."""
    with pytest.raises(DatabaseRefused) as caught:
        await open_store(url, world=RealWorld())
    return caught.value.message


# ---------------------------------------------------------------- TLS


@asynccontextmanager
async def encrypted(server: Elsewhere, shows: ssl.SSLContext) -> AsyncIterator[int]:
    """Hand out the port of what speaks TLS in the server's place, which may be built without."""

    async def serve(near: asyncio.StreamReader, to_near: asyncio.StreamWriter) -> None:
        with suppress(OSError, EOFError):
            asked = await near.readexactly(8)
            assert asked == b"\0\0\0\x08\x04\xd2\x16\x2f", "it is asked for TLS"
            to_near.write(b"S")
            await to_near.start_tls(shows)
            path = f"{server.folder}/.s.PGSQL.{server.port}"
            far, to_far = await asyncio.open_unix_connection(path)
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(passed(near, to_far))
                tasks.create_task(passed(far, to_near))
        to_near.transport.abort()

    listener = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield int(listener.sockets[0].getsockname()[1])
    finally:
        listener.close()


async def passed(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await source.read(1 << 16):
            target.write(data)
            await target.drain()
    target.close()


async def test_a_server_whose_certificate_is_verified(
    server: Elsewhere, url: str, tmp_path: Path
) -> None:
    authority, key = certificate(tmp_path, None)
    own, _ = certificate(tmp_path, (name("authority"), key), "127.0.0.1")
    elsewhere, _ = certificate(tmp_path, (name("authority"), key), "elsewhere.test")
    (tmp_path / "other").mkdir()
    other, _ = certificate(tmp_path / "other", None)
    for shown, trusted, words in (
        (own, authority, ""),
        (own, other, "sslrootcert"),
        (elsewhere, authority, "sslrootcert"),
    ):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(shown)
        async with encrypted(server, context) as port:
            address = server.by_network(url, port=port)
            address += f"?sslmode=verify-full&sslrootcert={quote(str(trusted))}"
            if words:
                assert words in await refused(address)
            else:
                async with opened(address) as store:
                    await works(store)


async def test_no_word_is_said_to_a_server_without_tls_where_it_is_demanded(
    server: Elsewhere, url: str
) -> None:
    message = await refused(server.by_network(url, "tester:hidden") + "?sslmode=require")
    assert "cannot be" in message
    assert "hidden" not in message


# ---------------------------------------------------------------- passwords


async def test_a_password_opens_and_is_never_shown(
    server: Elsewhere, url: str, tmp_path: Path
) -> None:
    secret = f'{secrets.token_hex(8)}%/@:"é'
    await postgres.ask(url, f"CREATE USER asked PASSWORD '{secret}'",
                       "GRANT ALL ON SCHEMA public TO asked", "SELECT")  # fmt: skip
    spelled = quote(secret, safe="")
    address = server.by_network(url, f"asked:{spelled}")
    settings = {"DATABASE_URL": address, "SECRET_KEY": secrets.token_hex(32), "LOG_LEVEL": "debug"}
    running = start_server(tmp_path, **settings)
    try:
        register(running, "a", 200)
        await postgres.ask(url, "ALTER USER asked PASSWORD 'another'", END_OTHERS)
        sick = until(lambda: (said := health(running)).status == 503 and said, "/health says so")
        await postgres.ask(url, f"ALTER USER asked PASSWORD '{secret}'", "SELECT")
        until(lambda: health(running).status == 200, "it is well again")
        register(running, "b", 200)
    finally:
        running.stop()
    wrong = server.by_network(url, "asked:wr%2Fong")
    message = await refused(wrong)
    assert "check user and password" in message
    log = tmp_path / "refused.log"
    env = settings | {"DATABASE_URL": wrong, "HTTP_PORT": str(free_port())}
    process = spawn([sys.executable, "-m", "orchestrator"], tmp_path, log, env)
    assert process.wait(30) == 2
    said = f"{running.said()}{sick.body!r}{message}{log.read_text()}"
    for word in (secret, spelled, secret[:16], "wr/ong", "wr%2Fong"):
        assert word not in said


END_OTHERS = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'asked'"


def health(running: Running) -> Any:
    return request("GET", f"{running.url}/health")


def register(running: Running, agent_id: str, status: int, padding: int = 1) -> Any:
    body = {"agent_id": agent_id, "name": "n" * padding, "endpoint": "http://127.0.0.1:9"}
    answer = request("POST", f"{running.url}/v1/agents/register", body)
    assert answer.status == status, answer.body
    return answer.json()


# ---------------------------------------------------------------- settings of others


async def test_timeouts_and_isolation_of_the_server_are_not_ours(
    server: Elsewhere, url: str
) -> None:
    database = urlsplit(url).path[1:]
    for setting in ("statement_timeout = '1ms'", "lock_timeout = '1ms'",
                    "idle_in_transaction_session_timeout = '1ms'", "idle_session_timeout = '1ms'",
                    "default_transaction_isolation = 'serializable'", "timezone = 'Asia/Tokyo'",
                    "synchronous_commit = 'off'", "jit = 'on'"):  # fmt: skip
        await postgres.ask(server.url(), f"ALTER DATABASE {database} SET {setting}", "SELECT")
    async with opened(url) as store, opened(url) as other:
        await works(store)
        for _ in range(20):  # both want the same row
            word = r.append(r.run(1), *r.deltas(1))
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(committed(store, word))
                tasks.create_task(committed(other, word))
        told = store.stats(), other.stats()
        assert [one["commit_redos_total"] for one in told] == [0, 0]
        assert [one["writer_connections_lost_total"] for one in told] == [0, 0]


async def test_a_database_that_is_read_only_for_a_while(server: Elsewhere, url: str) -> None:
    database = urlsplit(url).path[1:]
    read_only = f"ALTER DATABASE {database} SET default_transaction_read_only = "
    end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{}'"
    async with opened(url) as store:
        await works(store)
        await postgres.ask(server.url(), read_only + "on", end.format(database))
        for _ in range(3):
            with suppress(Unavailable):
                await store.get(Run, "run_x")  # finds that its connection has gone
        with pytest.raises(Unavailable, match="read-only transaction"):
            await committed(store, r.append(r.run(1), *r.deltas(1)))
        with pytest.raises(Unavailable, match="read-only transaction"):
            await store.renew("me", 1000)
        assert await seqs(store, r.run(1)) == [1], "reads go on"
        assert "read-only" in await refused(url)
        await postgres.ask(server.url(), read_only + "off", "SELECT")
        await committed(store, r.append(r.run(1), *r.deltas(1)))
        with suppress(Unavailable):
            await store.renew("me", 1000)  # on the connection that has just read
        await store.renew("me", 1000)
        assert await seqs(store, r.run(1)) == [1, 2]


async def test_a_standby_and_a_database_of_other_texts_are_refused(
    server: Elsewhere, url: str
) -> None:
    latin = "CREATE DATABASE latin ENCODING 'LATIN1' TEMPLATE template0 LOCALE 'C'"
    await postgres.ask(server.url(), "DROP DATABASE IF EXISTS latin", latin, "SELECT")
    assert "WITH ENCODING 'UTF8'" in await refused(postgres.named(server.url(), "latin"))
    server.stop()
    signal = server.folder / "data" / "standby.signal"
    signal.touch()
    server.start()
    try:
        assert "is a standby" in await refused(url)
    finally:
        server.stop()
        signal.unlink()
        server.start()
    async with opened(url) as store:
        await works(store)


# ---------------------------------------------------------------- no room


async def test_a_server_without_a_free_connection_is_waited_for(
    server: Elsewhere, url: str
) -> None:
    async with opened(url) as store:
        await works(store)
        guests = list[Any]()
        while True:
            try:
                guests.append(await asyncpg.connect(server.url()))
            except asyncpg.TooManyConnectionsError:
                break
        assert guests
        assert {type(one) for one in await asked(store, 50)} == {Run, Unavailable}
        assert "too many" in await refused(url)
        await committed(store, r.append(r.run(1), *r.deltas(1)))
        for guest in guests:
            await guest.close()
        for _ in range(2):
            assert {type(one) for one in await asked(store, 50)} == {Run}
        assert await seqs(store, r.run(1)) == [1, 2]


async def asked(store: PostgresStore, times: int) -> list[Run | Unavailable | None]:
    """Ask for the run so many times at once and return what came of it."""

    async def ask() -> Run | Unavailable | None:
        try:
            return await store.get(Run, r.run(1).run_id)
        except Unavailable as away:
            return away

    async with asyncio.TaskGroup() as tasks:
        asking = [tasks.create_task(ask()) for _ in range(times)]
    return [task.result() for task in asking]


@contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[Path]:
    """Hand out a file system of that size; only root may make one."""
    folder.mkdir()
    how = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m,mode=777", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(how, check=False, capture_output=True).returncode:
        pytest.skip("no right to mount a file system")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


async def test_a_full_disk_of_the_database_passes_by_itself(
    server: Elsewhere, tmp_path: Path
) -> None:
    with small_disk(server.folder / "small", 32) as disk:
        location = disk / "space"
        location.mkdir()
        location.chmod(0o777)
        if os.geteuid() == 0:
            os.chown(location, *owner(server.folder / "data"))
        made = f"CREATE TABLESPACE small LOCATION '{location}'"
        await postgres.ask(server.url(), made, "CREATE DATABASE small TABLESPACE small")
        url = postgres.named(server.url(), "small")
        running = start_server(tmp_path, DATABASE_URL=url, SECRET_KEY=secrets.token_hex(32))
        try:
            register(running, "first", 200)
            (disk / "filler").write_bytes(b"\0" * free(disk))
            refusal = until(lambda: full(running), "the disk is full", 60)
            assert refusal["code"] == "storage_full"
            assert "goes on by itself" in refusal["error"]
            assert request("GET", f"{running.url}/v1/agents").status == 200, "reads go on"
            (disk / "filler").unlink()
            register(running, "last", 200)
            until(lambda: health(running).status == 200, "it is well again")
        finally:
            running.stop()
            end = "DROP DATABASE small WITH (FORCE)"
            await postgres.ask(server.url(), end, "CHECKPOINT", "DROP TABLESPACE small")


def owner(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_uid, found.st_gid


def free(disk: Path) -> int:
    """Return how many bytes fit."""
    found = os.statvfs(disk)
    return found.f_bavail * found.f_frsize


def full(running: Running) -> Any:
    """Register one more agent; return the refusal, once there is one."""
    body = {"agent_id": secrets.token_hex(8), "name": "n" * 200, "endpoint": "http://127.0.0.1:9"}
    answer = request("POST", f"{running.url}/v1/agents/register", body)
    return answer.json() if answer.status == 503 else None
