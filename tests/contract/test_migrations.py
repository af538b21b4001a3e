"""Schemas: how one is brought up to date, and how a program meets one of another version."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import apsw
import asyncpg
import pytest
from structlog.testing import capture_logs

from orchestrator.core.errors import DatabaseRefused
from orchestrator.core.records import Agent, Invocation, Run
from orchestrator.ports import Store
from orchestrator.stores.postgres import schema as postgres_schema
from orchestrator.stores.sqlite import locate
from orchestrator.stores.sqlite import schema as sqlite_schema
from orchestrator.stores.sqlite.lock import LockFile
from orchestrator.stores.steps import Step
from orchestrator.testing import records as r
from orchestrator.testing import store_contract as contract
from orchestrator.testing.fake_world import FakeWorld
from orchestrator.testing.records import committed
from orchestrator.testing.store_contract import seqs

from .. import postgres
from .tomorrow import Base, File, Place, knowing, tables, tomorrow

BAD = Step(99, "-- Fails.\nCREATE TABLE x (a TEXT); CREATE TABLE x (a TEXT);")


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """Hand out the address of a server."""
    with postgres.address() as url:
        yield url


@pytest.fixture
async def base(server: str, tmp_path: Path) -> AsyncIterator[Base]:
    """Hand out a new, empty database of PostgreSQL."""
    async with postgres.database(server) as url:
        yield Base(url, server, tmp_path)


@pytest.fixture
def file(tmp_path: Path) -> File:
    """Hand out the place of a new file."""
    return File(tmp_path)


@pytest.fixture(params=["sqlite", "postgres"])
async def place(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Place]:
    """Hand out an empty database of each store."""
    if request.param == "sqlite":
        yield File(tmp_path)
        return
    server = request.getfixturevalue("server")
    async with postgres.database(server) as url:
        yield Base(url, server, tmp_path)


@pytest.fixture
def world() -> FakeWorld:
    return FakeWorld()


async def written(place: Place, *steps: Step) -> None:
    """Leave a database of today's schema and these steps, with a run in it."""
    with knowing(place.schema, [*place.schema.migrations(), *steps]):
        store = await place.open()
        await committed(store, r.accept(r.run(1)), r.append(r.run(1), *r.deltas(3)))
        await store.close()


async def holds_the_run(place: Place, **how: Any) -> None:
    """Open a database and find what `written` left."""
    store = await place.open(**how)
    assert await seqs(store, r.run(1)) == [1, 2, 3, 4]
    await store.close()


async def refused(place: Place, **how: Any) -> str:
    """Return the sentence with which a database is refused."""
    with pytest.raises(DatabaseRefused) as caught:
        await place.open(**how)
    return caught.value.message


# ---------------------------------------------------------------- version N on the schema of N+1


@pytest.fixture
async def store(place: Place, world: FakeWorld) -> AsyncIterator[Store]:
    """Hand out a store of today's program on tomorrow's schema."""
    steps = place.schema.migrations()
    with knowing(place.schema, [*steps, tomorrow(steps)]):
        await place.up()
    with capture_logs() as logs:
        opened = await place.open(world)
    newer = [line for line in logs if line["event"] == "schema_is_newer"]
    assert [(line["schema"], line["known"]) for line in newer] == [
        (steps[-1].number + 1, steps[-1].number)
    ]
    try:
        yield opened
    finally:
        await opened.close()


@pytest.fixture
def copy(place: Place, world: FakeWorld) -> Any:
    """Hand out what opens a copy of a store."""
    return lambda store: place.copy(store, world)


class TestTomorrow(contract.StoreContract):
    pass


async def test_tomorrow_has_another_column_in_every_table(place: Place, store: Store) -> None:
    del store
    names = tables(place.schema.migrations())
    assert {"runs", "segments", "leases", "blobs", "audit"} <= set(names)
    for name in names:
        await place.ask(f"SELECT later_note, later_count FROM {name}")  # noqa: S608  # our own


async def test_a_newer_schema_that_says_nothing_is_refused(place: Place) -> None:
    await written(place, Step(99, "-- A step that names nobody.\nCREATE TABLE y (a TEXT);"))
    assert "newer version (schema 99" in await refused(place)


async def test_a_newer_schema_that_ended_this_version_is_refused(place: Place) -> None:
    steps = place.schema.migrations()
    later = tomorrow(steps)
    ended = Step(later.number + 1, f"-- Ends it.\n-- serves: {later.number}\nDROP TABLE laters;")
    await written(place, later, ended)
    assert "newer version" in await refused(place)
    with knowing(place.schema, [*steps, later]):
        await holds_the_run(place)


# ---------------------------------------------------------------- upgrades


async def test_a_plan_says_everything_and_changes_nothing(place: Place) -> None:
    steps = place.schema.migrations()
    later = tomorrow(steps)
    known = steps[-1].number
    new = await place.plan()
    assert (new.schema, new.known, list(new.steps), new.backup) == (0, known, steps, None)
    await written(place)
    with knowing(place.schema, [*steps, later]):
        found = await place.plan()
        assert (found.schema, found.known, list(found.steps)) == (known, known + 1, [later])
        assert found.steps[0].title == "What tomorrow adds."
        shared = isinstance(place, Base)
        assert found.beside is shared
        assert found.backup == (None if shared else f"{found.database}.before-{known + 1}")
    assert (await place.plan()).steps == []
    await holds_the_run(place)


async def test_an_upgrade_is_made_once(place: Place) -> None:
    steps = place.schema.migrations()
    await written(place)
    with knowing(place.schema, [*steps, tomorrow(steps)]):
        assert [step.number for step in (await place.up()).steps] == [steps[-1].number + 1]
        assert (await place.up()).steps == []
        await holds_the_run(place)


async def test_a_start_that_must_not_upgrade_is_refused(place: Place) -> None:
    assert "no schema yet" in await refused(place, migrate=False)
    assert (await place.plan()).schema == 0
    await written(place)
    await holds_the_run(place, migrate=False)
    steps = place.schema.migrations()
    with knowing(place.schema, [*steps, tomorrow(steps)]):
        message = await refused(place, migrate=False)
        assert f"has schema {steps[-1].number}, this version needs" in message
        assert "./orchestrator migrate up" in message
        await place.up()
        await holds_the_run(place, migrate=False)


async def test_an_upgrade_that_fails_changes_nothing(place: Place) -> None:
    await written(place)
    steps = place.schema.migrations()
    with knowing(place.schema, [*steps, tomorrow(steps), BAD]):
        assert "already exists" in await refused(place)
    assert (await place.plan()).schema == steps[-1].number
    with pytest.raises((apsw.SQLError, asyncpg.PostgresError)):
        await place.ask("SELECT later_note FROM runs")
    await holds_the_run(place)


# ---------------------------------------------------------------- SQLite


async def test_an_upgrade_begins_with_a_backup(file: File) -> None:
    await written(file)
    file.path.chmod(0o600)
    steps = sqlite_schema.migrations()
    with knowing(sqlite_schema, [*steps, Step(99, "ALTER TABLE runs ADD COLUMN later TEXT;")]):
        await holds_the_run(file)
    assert "newer version" in await refused(file)
    backup = Path(f"{file.path}.before-99")
    assert backup.stat().st_mode & 0o777 == 0o600
    file.path.unlink()
    backup.rename(file.path)
    await holds_the_run(file)


async def test_a_database_of_the_first_schema_goes_on(file: File) -> None:
    whole = sqlite_schema.migrations()
    with knowing(sqlite_schema, whole[:1]):
        await file.up()
    await file.ask(
        "INSERT INTO runs VALUES (1, 'run_1', 'default', 's', 'a', 'RUNNING', 3, 3, 1, NULL, 1, 3,"
        " '[]', NULL, 0, NULL, '{}', 'msg_1', 0, NULL, NULL, NULL, NULL, 1, 2, NULL, 9)"
    )
    await file.ask("INSERT INTO invocations VALUES ('run_1', 'user', '\"hi\"', NULL, NULL, NULL)")
    await file.ask(
        "INSERT INTO agents VALUES ('default', 'a', 'A', 'http://a', 'native', '[]', 'unknown',"
        " NULL, NULL, NULL, '{}', '{}', 'fail', NULL, 0, NULL, 1, 1)"
    )
    store = await file.open()
    run, agent = await store.get(Run, "run_1"), await store.get(Agent, "default", "a")
    asked = await store.get(Invocation, "run_1")
    await store.close()
    assert run is not None
    assert (run.status, run.head, run.attempting) == ("RUNNING", 3, False)
    assert agent is not None
    assert (agent.operator, agent.scopes) == (True, None)
    assert asked is not None
    assert (asked.content, asked.tracestate, asked.scopes) == ("hi", None, None)
    assert Path(f"{file.path}.before-{whole[-1].number}").exists()


async def test_a_plan_leaves_no_trace_beside_a_file(file: File) -> None:
    await file.plan()
    assert list(file.folder.iterdir()) == []
    await written(file)
    Path(f"{file.path}.lock").unlink()
    before = file.path.read_bytes()
    await file.plan()
    assert list(file.folder.iterdir()) == [file.path]
    assert file.path.read_bytes() == before


async def test_a_plan_knows_what_only_the_log_says(file: File) -> None:
    """A process that died after an upgrade leaves a file whose header is the old one."""
    await written(file)
    steps = sqlite_schema.migrations()
    left = File(file.folder / "left")
    left.folder.mkdir()
    db = apsw.Connection(str(file.path))
    db.execute("PRAGMA wal_autocheckpoint=0")
    db.execute(tomorrow(steps).script)
    sqlite_schema.stamp(db, tomorrow(steps))
    for end in ("", "-wal"):
        Path(f"{left.path}{end}").write_bytes(Path(f"{file.path}{end}").read_bytes())
    db.close()
    assert sqlite_schema.inspect(locate(left.url)).number == steps[-1].number
    assert (await left.plan()).schema == steps[-1].number + 1
    await holds_the_run(left)


async def test_a_file_that_is_open_is_not_upgraded(file: File) -> None:
    await written(file)
    steps = sqlite_schema.migrations()
    lock = LockFile.take(str(file.path))
    assert (await file.up()).steps == [], "there is nothing to do, so nobody is in the way"
    with knowing(sqlite_schema, [*steps, tomorrow(steps)]):
        with pytest.raises(DatabaseRefused, match=r"in use by a server \(process \d+\)"):
            await file.up()
        assert (await file.plan()).schema == steps[-1].number
        lock.release()
        assert (await file.up()).backup is not None
    await holds_the_run(file)


# ---------------------------------------------------------------- PostgreSQL

WAITING = "SELECT count(*) FROM pg_locks WHERE NOT granted AND locktype = '{}'"


async def waiting(base: Base, kind: str, count: int) -> None:
    """Return once so many wait for a lock of a kind."""
    async with asyncio.timeout(20):
        while (await base.ask(WAITING.format(kind)))[0][0] < count:
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("old", [False, True], ids=["empty", "old"])
async def test_of_servers_that_start_together_one_upgrades(base: Base, old: bool) -> None:
    steps = postgres_schema.migrations()
    if old:
        await written(base)
    gate = await asyncpg.connect(base.url)
    await gate.execute("SELECT pg_advisory_lock($1)", postgres_schema._LOCK)
    with knowing(postgres_schema, [*steps, tomorrow(steps)]), capture_logs() as logs:
        async with asyncio.TaskGroup() as tasks:
            opening = [tasks.create_task(base.open()) for _ in range(2)]
            await waiting(base, "advisory", 2)  # both have come, and neither has begun
            await gate.close()
        one, other = (task.result() for task in opening)
        await committed(one, r.accept(r.run(7, "s7")))
        assert await seqs(other, r.run(7)) == [1]
        await one.close()
        await other.close()
    assert [line["was"] for line in logs if line["event"] == "schema_upgraded"] == [
        steps[-1].number if old else 0
    ]
    applied = await base.ask("SELECT version, serves FROM orchestrator_schema ORDER BY version")
    assert [tuple(row) for row in applied] == [
        (step.number, step.serves) for step in [*steps, tomorrow(steps)]
    ]


async def test_an_older_server_goes_on_while_a_newer_one_upgrades(base: Base) -> None:
    steps = postgres_schema.migrations()
    older = await base.open()
    made = r.run(1)
    await committed(older, r.accept(made))
    stopped = asyncio.Event()

    async def speak() -> int:
        count = 0
        while not stopped.is_set():
            await committed(older, r.append(made, *r.deltas(1)))
            await committed(older, r.append(made, r.started()))
            count += 1
        return count

    with knowing(postgres_schema, [*steps, tomorrow(steps)]):
        async with asyncio.TaskGroup() as tasks:
            speaking = tasks.create_task(speak())
            while (await older.get(Run, made.run_id)).head < 9:  # type: ignore[union-attr]
                await asyncio.sleep(0.001)
            newer = await base.open()
            head = (await older.get(Run, made.run_id)).head  # type: ignore[union-attr]
            while (await newer.get(Run, made.run_id)).head < head + 9:  # type: ignore[union-attr]
                await asyncio.sleep(0.001)
            stopped.set()
    spoken = list(range(1, 2 * speaking.result() + 2))
    assert await seqs(newer, made, 0, 100_000) == spoken == await seqs(older, made, 0, 100_000)
    await committed(newer, r.append(made, *r.deltas(1)))
    await committed(older, r.append(made, *r.deltas(1)))
    assert (await seqs(older, made, 0, 100_000))[-2:] == [spoken[-1] + 1, spoken[-1] + 2]
    await older.close()
    await newer.close()


async def test_a_step_that_has_to_wait_lets_others_pass(base: Base) -> None:
    """Whoever reads for long keeps the step from its table, and must keep nobody else from it."""
    steps = postgres_schema.migrations()
    older = await base.open()
    reader = await asyncpg.connect(base.url)
    reading = reader.transaction()
    await reading.start()
    await reader.execute("LOCK TABLE runs IN ACCESS SHARE MODE")
    with knowing(postgres_schema, [*steps, tomorrow(steps)]):
        async with asyncio.TaskGroup() as tasks:
            upgrading = tasks.create_task(base.up())
            await waiting(base, "relation", 1)
            for number in range(20):  # some come while the step waits, and pass when it gives up
                await committed(older, r.accept(r.run(number, f"s{number}")))
            assert not upgrading.done()
            await reading.rollback()
    assert len(upgrading.result().steps) == 1
    await reader.close()
    assert await older.count(Run) == 20
    await older.close()


async def test_a_step_does_not_wait_for_ever(base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = postgres_schema.migrations()
    await written(base)
    monkeypatch.setattr(postgres_schema, "_TRIES", 2)
    monkeypatch.setattr(postgres_schema, "_PAUSE_S", 0.01)
    reader = await asyncpg.connect(base.url)
    async with reader.transaction():
        await reader.execute("LOCK TABLE runs IN ACCESS SHARE MODE")
        with knowing(postgres_schema, [*steps, tomorrow(steps)]):
            assert "somebody uses a table for very long" in await refused(base)
    await reader.close()
    await holds_the_run(base)


async def test_a_database_that_does_not_say_whom_it_serves(base: Base) -> None:
    """So the first releases left it."""
    await written(base)
    await base.ask("ALTER TABLE orchestrator_schema DROP COLUMN serves")
    await holds_the_run(base)
    steps = postgres_schema.migrations()
    with knowing(postgres_schema, [*steps, tomorrow(steps)]):
        await holds_the_run(base)
    await holds_the_run(base)
    await base.ask("INSERT INTO orchestrator_schema (version, applied_at) VALUES (999, now())")
    assert "newer version (schema 999" in await refused(base)
