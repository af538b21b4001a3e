"""A copy into PostgreSQL is whole, proven and byte for byte the same, or it is not there at all."""

import asyncio
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import apsw
import asyncpg
import pytest

from orchestrator.core.errors import DatabaseRefused, StoreFailure, Unavailable
from orchestrator.core.ops import Op, Put
from orchestrator.core.records import RECORDS, Blob, Lease, Message, Run
from orchestrator.core.states import RunState
from orchestrator.ports import Where
from orchestrator.stores import copying, postgres, sqlite
from orchestrator.stores.postgres import loading, schema
from orchestrator.stores.postgres.clock import WorldClock
from orchestrator.stores.steps import Step
from orchestrator.testing import records as r
from orchestrator.testing.fake_world import FakeWorld
from orchestrator.testing.records import committed

from .. import postgres as running
from ..processes import spawn, until
from .copies import ALL, beside, everything, fill, held, moved, opened


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """Hand out the address of a server of our own, for a proxy must find its socket."""
    with running.running(fsync=False) as one:
        yield one.url()


@pytest.fixture
async def target(server: str) -> AsyncIterator[str]:
    """Hand out the address of a new database."""
    async with running.database(server) as address:
        yield address


@pytest.fixture
def world() -> FakeWorld:
    return FakeWorld()


@pytest.fixture(scope="module")
def varied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Hand out a database that holds some of everything, for others to take a copy of."""
    path = tmp_path_factory.mktemp("varied") / "o.db"

    async def make() -> None:
        world = FakeWorld()
        store = await sqlite.open_store(f"file:{path}", world=world)
        await fill(store, world)
        await store.close()

    asyncio.run(make())
    return path


@pytest.fixture
def source(varied: Path, tmp_path: Path) -> Path:
    """Hand out a database that holds some of everything; no server has it."""
    return Path(shutil.copy(varied, tmp_path))


async def test_everything_is_there_and_reads_the_same(
    source: Path, target: str, world: FakeWorld
) -> None:
    before = source.read_bytes()
    done = await moved(source, target)
    assert source.read_bytes() == before, "the file is not written to"
    assert not Path(f"{source}-wal").stat().st_size
    assert done.keys() == {kind.TABLE for kind in RECORDS if kind is not Lease} | {"segments"}
    assert all(one.rows for one in done.values()), "this test has some of everything"
    async with AsyncExitStack() as stack:
        file, database = await opened(stack, source, target, world)
        wanted = await everything(file)
        assert await everything(database) == wanted
        assert wanted["audit", "t"].broken_at is None
        assert wanted["audit", "t"].entries == 3
        [trimmed] = [run for run in wanted["runs"] if run.trimmed]
        assert len(wanted[trimmed.run_id, 0]) == 2
        assert any(run.forks == [2, 4] for run in wanted["runs"])
        assert len(max(wanted[r.run(1).run_id, 0], key=len)) > copying.PAGE_BYTES // 4
        for session in wanted["sessions"]:
            where: list[Where] = [
                ("tenant", "=", session.tenant),
                ("session_id", "=", session.session_id),
            ]
            pages = [await one.find(Message, *where, order="pos") for one in (file, database)]
            assert pages[0] == pages[1]
    assert await held(target) == {**await held(target), **{t: one.rows for t, one in done.items()
                                                           if t != "blobs"}}  # fmt: skip


async def test_texts_with_a_nul_are_kept_without_it_and_counted(source: Path, target: str) -> None:
    done = await moved(source, target)
    changed = {one.table: one.changed for one in done.values() if one.changed}
    # A NUL within JSON is written as an escape, and stays.
    assert changed == {"agents": 1, "runs": 1, "sessions": 1, "idempotency_keys": 1}
    found = await running.ask(target, 'SELECT key FROM idempotency_keys ORDER BY key COLLATE "C"')
    assert [row[0] for row in found] == ["a", "aa", "ab", "a\ufffdz", "~", "é"]


async def test_what_is_open_goes_on_and_new_runs_come_behind(
    source: Path, target: str, world: FakeWorld
) -> None:
    await moved(source, target)
    store = await postgres.open_store(target, world=world, clock=WorldClock(world))
    assert await store.count(Lease) == 0, "a lease is a living process's"
    assert await store.get(Blob, "host") is None
    await store.renew("heir", 10_000)
    [claimed] = await store.claim("heir", 1, [r.run(2).run_id])
    assert (claimed.run.status, claimed.lost_by) == (RunState.RUNNING, "gone")
    assert claimed.run.head == 7, "with the words that the row did not know of"
    [more] = await committed(store, r.append(claimed.run, *r.deltas(1)))
    assert more.head == 8
    highest = max(run.key for run in await store.find(Run, limit=ALL))
    [new] = await committed(store, r.accept(r.run(500)))
    assert new.key == highest + 2, "behind one that is gone, too"
    await store.close()


async def test_an_empty_database_is_copied(tmp_path: Path, target: str, world: FakeWorld) -> None:
    store = await sqlite.open_store(f"file:{tmp_path}/e.db", world=world)
    await store.close()
    done = await moved(tmp_path / "e.db", target)
    assert {one.rows for one in done.values()} == {0}
    assert len({one.hash for one in done.values()}) == 1
    again = await moved(tmp_path / "e.db", target)
    assert again == done, "nothing was there, so nothing is in the way"


async def test_hashes_say_whether_two_are_the_same(
    source: Path, server: str, target: str, world: FakeWorld
) -> None:
    first = await moved(source, target)
    async with running.database(server) as other:
        assert await moved(source, other) == first
    store = await sqlite.open_store(f"file:{source}", world=world)
    await committed(store, Op(writes=(Put(r.agent("zed", name="n\ufffdul!")),)))
    await store.close()
    async with running.database(server) as third:
        changed = await moved(source, third)
    assert {t for t in first if first[t].hash != changed[t].hash} == {"agents"}


async def test_a_host_that_stopped_uncleanly_begins_another_generation(
    tmp_path: Path, target: str
) -> None:
    before = FakeWorld(boot_id="before")
    store = await sqlite.open_store(f"file:{tmp_path}/o.db", world=before)
    await committed(store, r.accept(r.run(1)), r.accept(r.run(2)), r.end(r.run(2)))
    await committed(store, r.append(r.run(1), *r.deltas(3)))
    for folder in (tmp_path / "cut", tmp_path / "started"):
        folder.mkdir()
        for file in tmp_path.glob("o.db*"):
            shutil.copy(file, folder)
    await store.close()
    cut = tmp_path / "cut" / "o.db"
    files = [cut, Path(f"{cut}-wal")]
    whole = [file.read_bytes() for file in files]
    await moved(cut, target)
    assert [file.read_bytes() for file in files] == whole
    after = FakeWorld(boot_id="after")
    async with AsyncExitStack() as stack:
        stores = await opened(stack, tmp_path / "started" / "o.db", target, after)
        for name, forks in ((r.run(1).run_id, [4]), (r.run(2).run_id, [])):
            found = [await one.get(Run, name) for one in stores]
            assert [run.forks for run in found if run] == [forks, forks]


# ---------------------------------------------------------------- what is refused


LATER = "SELECT 1 FROM information_schema.columns WHERE column_name = 'later'"


async def test_a_target_that_holds_anything_is_left_untouched(
    source: Path, target: str, world: FakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = await postgres.open_store(target, world=world)
    await committed(store, Op(writes=(Put(r.agent("theirs")),)))
    await store.close()
    before = await held(target)
    steps = [*schema.migrations(), Step(99, "ALTER TABLE runs ADD COLUMN later TEXT;")]
    with monkeypatch.context() as patched:
        patched.setattr(schema, "migrations", lambda: steps)
        with pytest.raises(DatabaseRefused, match="its table agents is not empty"):
            await moved(source, target)
    assert await held(target) == before
    assert not await running.ask(target, LATER), "not even its schema was brought up to date"
    with pytest.raises(DatabaseRefused, match="its table agents is not empty"):
        await moved(source, target)
    await running.ask(target, "DELETE FROM agents", "SELECT")
    await moved(source, target)
    with pytest.raises(DatabaseRefused, match="is in use"):
        await moved(source, target)


async def test_a_target_with_a_server_on_it_is_refused(source: Path, target: str) -> None:
    store = await postgres.open_store(target, world=FakeWorld())
    await store.renew("server", 60_000)
    with pytest.raises(DatabaseRefused, match="has a server running on it"):
        await moved(source, target)
    await store.renew("server", 0)
    await store.close()
    assert (await moved(source, target))["runs"].rows == 6


async def test_nobody_writes_to_the_target_meanwhile(source: Path, target: str) -> None:
    await postgres.prepare(target)
    said: list[str] = []

    def told(verb: str, table: str, _: Any) -> None:
        if verb == "check" and table == "agents" and not said:
            said.append(beside(write))

    async def write() -> str:
        insert = "INSERT INTO blobs VALUES ('x', '', 1)"
        try:
            await running.ask(target, "SET lock_timeout = '50ms'", insert, "SELECT")
        except Exception as error:  # noqa: BLE001  # told
            return str(error)
        return "written"

    await moved(source, target, told)
    assert said == ["canceling statement due to lock timeout"]


async def test_another_programs_database_is_no_target(source: Path, target: str) -> None:
    await running.ask(target, "CREATE TABLE runs (theirs int)", "SELECT")
    with pytest.raises(DatabaseRefused, match="another program"):
        await moved(source, target)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("postgres://u:secret@127.0.0.1:1/db", "cannot be reached"),
        ("mysql://u:secret@h/db", "TARGET has an unknown form"),
        ("postgres://u:secret@h", "TARGET 'h' names no database"),
    ],
)
async def test_addresses_that_lead_nowhere_are_refused(source: Path, url: str, words: str) -> None:
    with pytest.raises(DatabaseRefused) as caught:
        await moved(source, url)
    assert words in caught.value.message
    assert "secret" not in caught.value.message


async def test_a_file_that_a_server_has_is_no_source(
    source: Path, target: str, world: FakeWorld
) -> None:
    store = await sqlite.open_store(f"file:{source}", world=world)
    with pytest.raises(DatabaseRefused, match=r"in use by the server \(process \d+\).*stop it"):
        await moved(source, target)
    await store.close()

    said: list[str] = []

    def told(*_: Any) -> None:
        if not said:
            said.append(beside(lambda: _refusal(source)))

    await moved(source, target, told)
    assert "in use by another server" in said[0]


async def _refusal(path: Path) -> str:
    with pytest.raises(DatabaseRefused) as caught:
        await sqlite.open_store(f"file:{path}", world=FakeWorld())
    return caught.value.message


@pytest.mark.parametrize(
    ("version", "words"), [(1, "migrate up"), (900_900, "newer version"), (1999, "copy it with")]
)
async def test_only_the_present_schema_is_copied(
    source: Path, target: str, version: int, words: str
) -> None:
    db = apsw.Connection(str(source))
    db.execute(f"PRAGMA user_version={version}")
    db.close()
    before = source.read_bytes()
    with pytest.raises(DatabaseRefused, match=words):
        await moved(source, target)
    assert source.read_bytes() == before


async def test_a_damaged_file_is_named(source: Path, target: str) -> None:
    db = apsw.Connection(str(source))
    db.execute("UPDATE agents SET name = CAST(x'ff00fe' AS TEXT)")
    db.close()
    with pytest.raises(DatabaseRefused, match=r"the table agents of .* cannot be read"):
        await moved(source, target)
    assert set((await held(target)).values()) == {0}
    db = apsw.Connection(str(source))
    db.execute("UPDATE agents SET name = 'whole', auth = 7")
    db.close()
    with pytest.raises(StoreFailure, match="does not take the copy"):
        await moved(source, target)


# ---------------------------------------------------------------- whole or not at all

CUT = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'orchestrator'"
)


@pytest.mark.parametrize(
    ("verb", "table"),
    [("copy", "runs"), ("copy", "segments"), ("check", "agents"), ("check", "segments")],
)
async def test_a_connection_lost_in_the_middle_leaves_nothing(
    source: Path, target: str, verb: str, table: str
) -> None:
    before, cut = source.read_bytes(), list[int]()

    def told(*now: Any) -> None:
        if now[:2] == (verb, table) and not cut:
            cut.append(len(beside(lambda: running.ask(target, CUT))))

    with pytest.raises(Unavailable, match="was lost, nothing of the copy is there"):
        await moved(source, target, told)
    assert cut == [1]
    assert set((await held(target)).values()) == {0}
    assert source.read_bytes() == before
    assert (await moved(source, target))["runs"].rows == 6


@pytest.mark.parametrize(("how", "there"), [("before", 0), ("between", 6), ("after", 6)])
async def test_a_commit_without_an_answer_is_said_to_be_one(
    source: Path, server: str, target: str, how: str, there: int
) -> None:
    async with running.Proxy(server) as proxy:

        def told(*now: Any) -> None:
            if now[:2] == ("check", "segments"):
                proxy.armed = how

        with pytest.raises(Unavailable, match="either whole or not there"):
            await moved(source, proxy.url(target), told)
        assert proxy.fired[how] == 1
    async with asyncio.timeout(20):
        while (await held(target))["runs"] != there:
            await asyncio.sleep(0.01)
    if there:
        with pytest.raises(DatabaseRefused, match="is in use"):
            await moved(source, target)
    else:
        await moved(source, target)


WAITS = """
CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN
    PERFORM set_config('lock_timeout', '0', true);
    PERFORM pg_advisory_xact_lock(77);
    RETURN NEW;
END $$;
CREATE TRIGGER wait BEFORE INSERT ON segments FOR EACH ROW EXECUTE FUNCTION wait();
"""
WAITING_FOR_IT = "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
OTHERS = "SELECT 1 FROM pg_stat_activity WHERE application_name = 'orchestrator'"


@pytest.mark.parametrize(("sign", "code"), [(signal.SIGKILL, -9), (signal.SIGINT, 130)])
async def test_a_copy_that_is_ended_leaves_nothing(
    source: Path, target: str, tmp_path: Path, sign: signal.Signals, code: int
) -> None:
    await postgres.prepare(target)
    await running.ask(target, WAITS, "SELECT")
    before = source.read_bytes()
    async with AsyncExitStack() as stack:
        holder = await asyncpg.connect(target)
        stack.push_async_callback(holder.close)
        await holder.execute("SELECT pg_advisory_lock(77)")
        command = [sys.executable, "-m", "orchestrator", "copy", target]
        env = {"DATABASE_URL": f"file:{source}"}
        process = spawn(command, tmp_path, tmp_path / "log", env)
        stack.callback(process.kill)
        await asyncio.to_thread(
            until, lambda: asyncio.run(running.ask(target, WAITING_FOR_IT)), "the log is copied"
        )
        process.send_signal(sign)
        assert process.wait(30) == code, (tmp_path / "log").read_text()
    await asyncio.to_thread(
        until, lambda: not asyncio.run(running.ask(target, OTHERS)), "its connection has gone"
    )
    assert set((await held(target)).values()) == {0}
    assert source.read_bytes() == before
    await moved(source, target)


@pytest.mark.parametrize(
    ("table", "body", "words"),
    [
        ("agents", "IF NEW.agent_id = 'zed' THEN NEW.draining = FALSE; END IF; RETURN NEW;",
         "the table agents .* differs is tenant default, agent_id zed"),
        ("idempotency_keys", "IF NEW.key = 'aa' THEN RETURN NULL; END IF; RETURN NEW;",
         "6 rows .* became 5 .* differs is tenant default, scope s1, key aa"),
        ("segments", "NEW.data = set_byte(NEW.data, 9, 33); RETURN NEW;",
         "the table segments .* differs is bucket 1970-01-01, run \\d+, seq 1"),
        ("blobs", "NEW.data = NEW.data || 'x'::bytea; RETURN NEW;",
         "the table blobs .* differs is name empty"),
    ],
    ids=["changed", "dropped", "in the log", "longer"],
)  # fmt: skip
async def test_a_row_that_is_not_the_same_ends_the_copy(
    source: Path, target: str, table: str, body: str, words: str
) -> None:
    await postgres.prepare(target)
    planted = (
        f"CREATE FUNCTION plant() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {body} END $$",
        f"CREATE TRIGGER plant BEFORE INSERT ON {table} FOR EACH ROW EXECUTE FUNCTION plant()",
    )
    await running.ask(target, *planted, "SELECT")
    with pytest.raises(StoreFailure, match=words):
        await moved(source, target)
    assert set((await held(target)).values()) == {0}
    await running.ask(target, "DROP FUNCTION plant() CASCADE", "SELECT")
    await moved(source, target)


async def test_a_row_too_many_ends_the_copy(
    source: Path, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_page = loading.Loading.load

    async def twice(self: loading.Loading, part: copying.Part, page: copying.Page) -> None:
        await load_page(self, part, page)
        if part.name == "timers":
            await load_page(self, part, [("run_zz", "deadline", 1)])

    monkeypatch.setattr(loading.Loading, "load", twice)
    with pytest.raises(StoreFailure, match=r"1 rows .* became 2 .* run_id run_zz, kind deadline"):
        await moved(source, target)


def test_pages_are_bounded() -> None:
    small = list(copying.paged((n, "é") for n in range(2500)))
    assert list(map(len, small)) == [1000, 1000, 500]
    large = list(copying.paged((n, bytes(400_000)) for n in range(7)))
    assert list(map(len, large)) == [3, 3, 1]
    assert list(copying.paged(())) == []
