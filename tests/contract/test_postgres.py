"""PostgreSQL keeps the store's contract; and what holds for it alone: schema, indexes, clock."""

import asyncio
import re
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from msgspec.structs import replace

from orchestrator.core import ids
from orchestrator.core.audit import broken
from orchestrator.core.errors import DatabaseRefused, Unavailable
from orchestrator.core.events import AgentStreamDelta, draft
from orchestrator.core.ops import Committed, Guard, Insert, Op, Put, Refused
from orchestrator.core.records import NEXT, RECORDS, Agent, AuditEntry, Message, Run, Session
from orchestrator.core.states import OPEN, RunState
from orchestrator.ports import Store
from orchestrator.stores.postgres import (
    PostgresStore,
    apply,
    buckets,
    claims,
    open_store,
    pool,
    reader,
    schema,
    segments,
)
from orchestrator.stores.postgres.clock import NOW, DatabaseClock, WorldClock
from orchestrator.stores.postgres.query import Bound, condition
from orchestrator.stores.postgres.tables import TABLES
from orchestrator.testing import records as r
from orchestrator.testing import store_contract as contract
from orchestrator.testing.fake_world import FakeWorld
from orchestrator.testing.records import committed
from orchestrator.testing.store_contract import seqs
from orchestrator.world import RealWorld

from .. import postgres

Copy = Callable[[Store], AbstractAsyncContextManager[Store]]


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """Hand out the address of a server; what it forgets in a power cut is not the question here."""
    with postgres.address() as url:
        yield url


@pytest.fixture
async def url(server: str) -> AsyncIterator[str]:
    """Hand out the address of a new database."""
    async with postgres.database(server) as address:
        yield address


@pytest.fixture
def world() -> FakeWorld:
    return FakeWorld()


@pytest.fixture
async def store(url: str, world: FakeWorld) -> AsyncIterator[PostgresStore]:
    """Hand out a new store whose clock is the test's."""
    opened = await open_store(url, world=world, clock=WorldClock(world))
    try:
        yield opened
    finally:
        await opened.close()


@pytest.fixture
def copy(server: str, url: str, world: FakeWorld, tmp_path: Path) -> Copy:
    """Hand out what opens a copy of a store, made as its `backup` says."""

    @asynccontextmanager
    async def opened(store: Store) -> AsyncIterator[Store]:
        programs = postgres.binaries()
        async with postgres.database(server) as other:
            dumped = str(tmp_path / "copy.dump")
            for program in (("pg_dump", "--format=custom", f"--file={dumped}", url),
                            ("pg_restore", f"--dbname={other}", dumped)):  # fmt: skip
                subprocess.run([programs / program[0], *program[1:]], check=True)
            copied = await open_store(other, world=world, clock=WorldClock(world))
            try:
                yield copied
            finally:
                await copied.close()

    return opened


class TestStore(contract.StoreContract):
    pass


# ---------------------------------------------------------------- what holds for it alone


def test_the_lists_of_states_are_those_of_the_tables() -> None:
    script = "".join(text for _, text in schema.migrations())
    checks = re.findall(r"CHECK \(status IN \((.*?)\)\)", script, re.DOTALL)
    listed = [set(re.findall(r"'(\w+)'", found)) for found in checks]
    assert listed == [{str(state) for state in RunState}]
    holding = re.findall(r"WHERE status IN \((.*?)\)", script)
    assert [set(re.findall(r"'(\w+)'", found)) for found in holding] == [{"CREATED", "RUNNING"}] * 2


COLUMNS = "SELECT attname FROM pg_attribute WHERE attrelid = '{}'::regclass AND attnum > 0"


async def test_every_record_has_its_table_and_every_field_its_column(
    store: PostgresStore, url: str
) -> None:
    for kind in RECORDS:
        columns = [row[0] for row in await postgres.ask(url, COLUMNS.format(kind.TABLE))]
        assert sorted(columns) == sorted(kind.__struct_fields__)


async def test_the_view_shows_events_under_the_names_of_the_wire(
    store: PostgresStore, url: str
) -> None:
    made = r.run(1)
    said = draft("evt_n", r.AT, AgentStreamDelta(text='NUL \0, "\\u0000" and ü'))
    await store.commit(r.accept(made), r.append(made, *r.deltas(300), said))
    rows = await postgres.ask(url, "SELECT * FROM events ORDER BY seq")
    assert list(rows[0].keys()) == ["event_id", "run_id", "seq", "ts", "type", "payload"]
    assert [row["seq"] for row in rows] == list(range(1, 303))
    assert tuple(rows[5])[1:] == (made.run_id, 6, r.AT, "agent_stream_delta", '{"text":"word 4"}')
    assert "NUL \\ufffd" in rows[-1]["payload"]


async def test_texts_with_a_nul_are_kept_without_it(store: PostgresStore) -> None:
    await committed(store, Op(writes=(Put(r.agent("a\0b", name="x\0")),)))
    found = await store.get(Agent, "default", "a\0b")
    assert found is not None
    assert (found.agent_id, found.name) == ("a\ufffdb", "x\ufffd")
    assert await store.count(Agent, ("agent_id", "in", ["a\0b"])) == 1


async def test_a_nul_does_not_break_the_chain_of_the_audit_log(store: PostgresStore) -> None:
    said = AuditEntry(tenant="t\0", seq=NEXT, at=r.AT, actor="me\0", action="a\0", target="\0x")
    for _ in range(2):
        await committed(store, Op(writes=(Insert(said),)))
    found = await store.find(AuditEntry, ("tenant", "=", "t\0"), order="seq")
    assert [(one.seq, one.actor, one.target) for one in found] == [
        (1, "me\ufffd", "\ufffdx"), (2, "me\ufffd", "\ufffdx"),
    ]  # fmt: skip
    assert broken(found) is None


_NEXT = {"$1": "NULL", "$2": "'me'", "$3": "10", "$4": "ARRAY['x']"}
MARKS = ("$2", "$3", "$4")
HOT = {
    "claim": (claims._ALL, _NEXT),
    "claim by id": (claims._SOME, _NEXT),
    "read": (reader._of_day(segments.bucket_of("x")), {"$1": "'x'"} | dict.fromkeys(MARKS, "9")),
    "where runs stand": (apply._HEADS, {"$1": "ARRAY['x']"}),
    "due timers": (reader._DUE, {"$1": "1", "$2": "9"}),
}  # fmt: skip
FINDS: dict[str, tuple[type[Any], list[Any], str]] = {
    "children": (Run, [("parent_run_id", "=", "x"), ("status", "in", sorted(OPEN))], ""),
    "runs of a session": (
        Run, [("tenant", "=", "d"), ("session_id", "=", "s"), ("key", ">", 0)], "key",
    ),
    "a transcript": (
        Message, [("tenant", "=", "d"), ("session_id", "=", "s"), ("pos", "<", 9)], "-pos",
    ),
    "runs of a tenant": (Run, [("tenant", "=", "d"), ("key", "<", 9)], "-key"),
}  # fmt: skip


async def plan(url: str, text: str) -> str:
    """Return how a statement is carried out where the tables are large."""
    off = [f"SET enable_{way} = off" for way in ("seqscan", "bitmapscan", "sort")]
    return "\n".join(row[0] for row in await postgres.ask(url, *off, f"EXPLAIN {text}"))


@pytest.mark.parametrize("name", HOT)
async def test_hot_statements_use_an_index(store: PostgresStore, url: str, name: str) -> None:
    await committed(store, r.accept(r.run(1)))
    text, values = HOT[name]
    found = await plan(url, re.sub(r"\$\d", lambda mark: values[mark.group()], text))
    assert "Seq Scan" not in found.replace("Seq Scan on leases", ""), found


@pytest.mark.parametrize("name", FINDS)
async def test_lists_use_an_index_and_need_no_sorting(
    store: PostgresStore, url: str, name: str
) -> None:
    kind, where, order = FINDS[name]
    bound = Bound()
    text = f"{condition(TABLES[kind], where, bound)}{TABLES[kind].ordering(order)}"
    values = [f"'{one}'" if isinstance(one, str) else str(one) for one in bound.values]
    filled = re.sub(r"\$(\d)", lambda mark: values[int(mark.group(1)) - 1], text)
    found = await plan(url, f"SELECT * FROM {kind.TABLE}{filled} LIMIT 9")  # noqa: S608  # ours
    assert "Seq Scan" not in found
    assert "Sort" not in found


async def test_a_zombies_words_are_refused_though_nobody_has_said_any_since(
    store: PostgresStore, url: str, world: FakeWorld
) -> None:
    made = r.run(1)
    other = await open_store(url, world=world, clock=WorldClock(world))
    await committed(store, r.accept(made))
    await store.renew("dead", 10)
    [claim] = await store.claim("dead", 1)
    words = r.append(made, *r.deltas(1), guard=Guard(epoch=claim.run.epoch))
    await committed(store, words)
    await committed(store, words)
    assert store.stats()["commits_of_words_total"] == 1
    world.time += 10
    await other.renew("heir", 10)
    assert len(await other.claim("heir", 1)) == 1
    assert await store.commit(words) == [Refused("epoch")]
    assert store.stats()["commit_heads_missed_total"] == 1
    await committed(other, r.begin(made))
    await committed(store, r.append(made, *r.deltas(1)))
    assert await seqs(store, made) == [1, 2, 3, 4, 5]
    await other.close()


async def test_a_commit_waits_for_the_disk_whatever_the_database_is_set_to(url: str) -> None:
    name = url.partition("?")[0].rpartition("/")[2]
    await postgres.ask(url, f"ALTER DATABASE {name} SET synchronous_commit = off", "SELECT")
    store = await open_store(url, world=RealWorld())
    async with store._pool.connection() as reading:
        writing = await store._writer._line.connection()
        for db in (reading, writing):
            assert await db.fetchval("SHOW synchronous_commit") == "on"
    await store.close()


async def test_the_time_is_the_databases(url: str) -> None:
    world = RealWorld()
    clock = DatabaseClock(world)
    store = await open_store(url, world=world, clock=clock)
    slack = clock.error_s * 1000 + 1
    before = store.now()
    [[told]] = await postgres.ask(url, f"SELECT {NOW.format(mark='NULL')}")
    assert before - slack <= told <= store.now() + slack
    clock.heard(0.0, 0.0, told + 3_600_000)
    assert store.now() > told + 3_000_000, "the database's clock was set"
    await store.close()


async def test_days_without_runs_are_dropped(url: str) -> None:
    world, day = RealWorld(), segments.DAY_MS
    store = await open_store(url, world=world)
    ids_of = [ids.mint("run", world.now() - age * day, world.noise(16), "aa") for age in (9, 8, 0)]
    old, kept, fresh = (replace(r.run(n), run_id=name) for n, name in enumerate(ids_of))
    await committed(store, *map(r.accept, (old, kept, fresh)))
    await committed(store, r.end(old, at=1000), r.end(fresh, at=1000))
    assert (await store.trim(1001, 0)).runs == 2
    left = [row[0] for row in await postgres.ask(url, buckets._LISTED)]
    assert sorted(left) == [buckets.name_of(segments.bucket_of(n)) for n in sorted(ids_of[1:])]
    assert await store.read(old.run_id, 0) == []
    assert await seqs(store, kept) == [1]
    again = replace(old, message_id="msg_late")
    await committed(store, r.accept(again))
    assert await seqs(store, again) == [1], "a day that is needed again is made again"
    await store.close()


async def test_an_op_at_fault_does_not_spoil_its_batch(store: PostgresStore) -> None:
    made = r.run(1)
    await committed(store, r.accept(made))
    async with asyncio.TaskGroup() as tasks:
        good = [tasks.create_task(store.commit(r.append(made, *r.deltas(1)))) for _ in range(5)]
        bad = tasks.create_task(_raised(store.commit(r.append(made, *r.deltas(1), depth="deep"))))
    assert bad.result() == "DataError"
    assert all(isinstance(task.result()[0], Committed) for task in good)
    assert await seqs(store, made) == [1, 2, 3, 4, 5, 6]


async def _raised(asked: Awaitable[Any]) -> str:
    """Return the type of the error that something ends with."""
    with pytest.raises(asyncpg.DataError) as caught:
        await asked
    return caught.typename


async def test_whoever_waits_too_long_for_a_connection_is_told(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "WAIT_S", 0.05)
    store = await open_store(url, world=RealWorld(), pool=1)
    made = r.run(1)
    await committed(store, r.accept(made))
    holder = await asyncpg.connect(url)
    transaction = holder.transaction()
    await transaction.start()
    await holder.execute("LOCK TABLE sessions")
    async with asyncio.TaskGroup() as tasks:
        first = tasks.create_task(store.count(Session))
        while not store.stats()["pool_used"]:
            await asyncio.sleep(0)
        with pytest.raises(Unavailable, match="busy"):
            await store.get(Run, made.run_id)
        await transaction.rollback()
    assert first.result() == 1
    assert await store.get(Run, made.run_id) is not None
    assert (store.stats()["pool_refused_total"], store.stats()["pool_used"]) == (1, 0)
    await holder.close()
    await store.close()


# ---------------------------------------------------------------- whose database it is


async def refused(url: str) -> str:
    """Return the sentence with which a database is refused."""
    with pytest.raises(DatabaseRefused) as caught:
        await open_store(url, world=FakeWorld())
    return caught.value.message


THEIRS = "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace ORDER BY 1"


@pytest.mark.parametrize(
    ("made", "words"),
    [
        ("CREATE TABLE runs (theirs int)", "another program"),
        ("CREATE VIEW events AS SELECT 1 AS one", "another program"),
        ("CREATE TABLE orchestrator_schema (theirs int)", "another program"),
        ("CREATE TABLE orchestrator_schema AS SELECT 999 AS version, now() AS at", "newer version"),
    ],
)
async def test_databases_that_are_not_ours_are_left_untouched(
    url: str, made: str, words: str
) -> None:
    await postgres.ask(url, made, "SELECT")
    before = await postgres.ask(url, THEIRS)
    assert words in await refused(url)
    assert await postgres.ask(url, THEIRS) == before


async def test_a_schema_of_our_own_in_a_database_of_others(url: str) -> None:
    await postgres.ask(url, "CREATE TABLE runs (theirs int)", "CREATE SCHEMA ours", "SELECT")
    more = "&" if "?" in url else "?"
    store = await open_store(f"{url}{more}search_path=ours", world=RealWorld())
    await committed(store, r.accept(r.run(1)))
    assert await seqs(store, r.run(1)) == [1]
    await store.close()


async def test_replicas_that_start_together_make_one_schema(url: str) -> None:
    async with asyncio.TaskGroup() as tasks:
        opening = [tasks.create_task(open_store(url, world=RealWorld())) for _ in range(4)]
    stores = [task.result() for task in opening]
    await committed(stores[0], r.accept(r.run(1)))
    assert await seqs(stores[3], r.run(1)) == [1]
    for store in stores:
        await store.close()


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("postgres://u:secret@127.0.0.1:1/db", "cannot be reached"),
        ("postgresql://u:secret@/db?host=/nowhere", "cannot be reached"),
        ("postgres://u:secret@h:port/db", "cannot be read"),
        ("postgres://u:secret@h", "names no database"),
        ("mysql://u:secret@h/db", "unknown form"),
        ("", "unknown form"),
    ],
)
async def test_addresses_that_lead_nowhere_are_refused(url: str, words: str) -> None:
    message = await refused(url)
    assert words in message
    assert "secret" not in message


async def test_what_the_server_lacks_is_said(
    server: str, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "createdb" in await refused(postgres.named(server, "nothing_of_that_name"))
    monkeypatch.setattr(schema, "SERVER_NEEDED", 99)
    assert "version 99 or newer" in await refused(url)
