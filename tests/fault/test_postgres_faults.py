"""PostgreSQL's connections cut off, killed and refused: nothing acknowledged is lost or doubled."""

import asyncio
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from typing import Any
from uuid import uuid4

import asyncpg
import pytest
from msgspec.structs import replace

from orchestrator.buses.postgres import PostgresBus
from orchestrator.core.errors import StorageFull, StoreFailure, Unavailable
from orchestrator.core.ops import Insert, Op
from orchestrator.core.records import Key, Run, Session
from orchestrator.ports import Hint
from orchestrator.stores.postgres import PostgresStore, committer, open_store, unsettled
from orchestrator.stores.postgres.finishing import Fenced, Missed, finish, write_words
from orchestrator.stores.postgres.heads import Head
from orchestrator.stores.postgres.line import Line
from orchestrator.stores.postgres.segments import bucket_of
from orchestrator.testing import records as r
from orchestrator.testing.records import committed
from orchestrator.testing.store_contract import seqs
from orchestrator.world import RealWorld

from .. import postgres
from ..rigs import Tally
from .speakers import Speaker, accepted, grown, waiting


async def test_a_connection_that_is_killed_in_a_batch_loses_and_doubles_nothing(
    url: str, tally: Tally
) -> None:
    tally.expect("killed")
    store = await open_store(url, world=RealWorld())
    [made] = await accepted(store, 1)
    speaker = Speaker(store, made)
    for _ in range(5):
        holder = await asyncpg.connect(url)
        transaction = holder.transaction()
        await transaction.start()
        await holder.execute("SELECT 1 FROM runs WHERE run_id = $1 FOR UPDATE", made.run_id)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(speaker.say())
            killed: list[Any] = []
            while not killed:
                killed = await holder.fetch(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE datname = current_database() AND wait_event_type = 'Lock'"
                )
            tally.fire("killed")
            await transaction.rollback()
        await holder.close()
    assert store.stats()["writer_connections_lost_total"] == 5
    assert await speaker.heard(store) == speaker.taken
    assert speaker.away == 0, "nothing was sent, so it was sent again"
    await store.close()


async def test_a_connection_cut_at_its_commit_loses_and_doubles_nothing(
    database_server: postgres.Server, rounds_of: Callable[[int], int], tally: Tally
) -> None:
    tally.expect(*postgres.Proxy.HOW)
    async with postgres.database(database_server.url()) as url, postgres.Proxy(url) as proxy:
        store = await open_store(proxy.url(url), world=RealWorld())
        direct = await open_store(url, world=RealWorld())
        speakers = [Speaker(store, made) for made in await accepted(store, 3)]
        keys = [r.key(f"k{n}", speakers[0].run) for n in range(max(20, rounds_of(200)))]
        for n, key in enumerate(keys):
            proxy.armed = proxy.HOW[n % 3]
            async with asyncio.TaskGroup() as tasks:
                for speaker in speakers[: 1 + n % 4]:
                    tasks.create_task(speaker.say())
                if n % 4 > 1:
                    tasks.create_task(committed(store, Op(writes=(Insert(key),))))
            assert not proxy.armed
            tally.round()
        for how, count in proxy.fired.items():
            tally.fire(how, count)
        for speaker in speakers:
            assert await speaker.heard(direct) == speaker.taken
        told = store.stats()
        assert told["commits_unknown_total"] == len(keys)
        assert told["commits_found_total"] >= proxy.fired["after"]
        assert told["commits_found_total"] <= proxy.fired["after"] + proxy.fired["between"]
        await store.close()
        await direct.close()


BACKENDS = {"writer": "orchestrator writer", "pool": "orchestrator", "bus": "orchestrator bus"}
BACKEND = """
SELECT pid FROM pg_stat_activity
WHERE datname = current_database() AND application_name = $1 ORDER BY backend_start LIMIT 1
"""


@pytest.mark.parametrize("how", ["terminated", "killed"])
@pytest.mark.parametrize("who", BACKENDS)
async def test_a_backend_that_goes_takes_nothing_along(
    url: str, who: str, how: str, tally: Tally
) -> None:
    tally.expect(f"{who} {how}")
    store = await open_store(url, world=RealWorld())
    speakers = [Speaker(store, made) for made in await accepted(store, 3)]
    bus, far = (PostgresBus(url, RealWorld()) for _ in range(2))
    ended = asyncio.Event()
    async with asyncio.TaskGroup() as tasks, bus.running(), far.running():
        for speaker in speakers:
            tasks.create_task(speaker.talk(ended))
        await hears(far, bus)
        await there(store, speakers[0].run)
        await grown(speakers, 5)
        await let_go(url, BACKENDS[who], how)
        tally.fire(f"{who} {how}")
        await grown(speakers, 5)
        await there(store, speakers[0].run)
        await hears(far, bus)
        ended.set()
    told = store.stats()
    everyone = how == "killed"  # the server ends all others, too, and starts them anew
    for name, whose in (("writer_connections_lost_total", "writer"),
                        ("connections_lost_total", "pool")):  # fmt: skip
        assert (told[name] > 0) == (everyone or who == whose), name
    for speaker in speakers:
        assert await speaker.heard(store) == speaker.taken
    await store.close()


async def let_go(url: str, name: str, how: str) -> None:
    """End the oldest backend of that name, by its own means or by kill -9."""
    holder = await asyncpg.connect(url)
    pid = await holder.fetchval(BACKEND, name)
    if how == "killed":
        os.kill(pid, signal.SIGKILL)
    else:
        assert await holder.fetchval("SELECT pg_terminate_backend($1, 5000)", pid)
    with suppress(*LOST):
        await holder.close()


LOST = (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError)


async def there(store: PostgresStore, made: Run) -> None:
    """Read a run, again where the store is away."""
    while True:
        with suppress(Unavailable):
            assert await store.get(Run, made.run_id) is not None
            return
        await asyncio.sleep(0.01)


async def hears(speaker: PostgresBus, listener: PostgresBus) -> None:
    """Wait until one bus hears another."""
    before = listener.heard
    while listener.heard == before:
        speaker.publish("run:hello", Hint("hello", 1))
        await asyncio.sleep(0.02)


async def test_who_heard_unavailable_and_asks_again_hears_what_became_of_it(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unsettled, "PATIENCE_S", 0.0)
    async with postgres.Proxy(url) as proxy:
        store = await open_store(proxy.url(url), world=RealWorld())
        [made] = await accepted(store, 1)
        op = r.append(made, *r.deltas(2))
        for how, found in (("after", 1), ("before", 1)):
            proxy.armed, proxy.refusing = how, True
            with pytest.raises(Unavailable):
                await store.commit(op)
            with pytest.raises(Unavailable):
                await store.commit(r.append(made, *r.deltas(1)))
            proxy.refusing = False
            await committed(store, op)
            assert store.stats()["commits_found_total"] == found
        assert proxy.fired == {"after": 1, "before": 1}
        assert await seqs(store, made) == [1, 2, 3, 4, 5]
        await store.close()


FAIL = """
DROP FUNCTION IF EXISTS fail CASCADE; DROP SEQUENCE IF EXISTS failed; CREATE SEQUENCE failed;
CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    IF nextval('failed') <= {times} THEN
        RAISE EXCEPTION 'planted' USING ERRCODE = '{state}';
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER failing AFTER UPDATE ON runs EXECUTE FUNCTION fail();
"""


async def plant(url: str, times: int, state: str) -> None:
    """Have the server fail as often as is said where a run's row is changed."""
    await postgres.ask(url, FAIL.format(times=times, state=state), "SELECT")


async def test_what_loses_to_another_transaction_is_made_again(
    store: PostgresStore, url: str
) -> None:
    [made] = await accepted(store, 1)
    await plant(url, times=3, state="40001")
    await committed(store, r.append(made, *r.deltas(2)))
    assert store.stats()["commit_redos_total"] == 3
    assert await seqs(store, made) == [1, 2, 3]


async def test_what_always_loses_is_refused_and_may_come_again(
    store: PostgresStore, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(committer, "REDOS_MAX", 3)
    [made] = await accepted(store, 1)
    await plant(url, times=3, state="40P01")
    with pytest.raises(Unavailable, match="same rows"):
        await store.commit(r.append(made, *r.deltas(2)))
    await committed(store, r.append(made, *r.deltas(1)))
    assert await seqs(store, made) == [1, 2]


async def test_a_full_disk_passes_and_a_damaged_database_does_not(
    store: PostgresStore, url: str
) -> None:
    [made] = await accepted(store, 1)
    await plant(url, times=1, state="53100")
    with pytest.raises(StorageFull):
        await store.commit(r.append(made, *r.deltas(1)))
    await committed(store, r.append(made, *r.deltas(1)))
    await plant(url, times=1, state="XX001")  # fmt: skip
    for _ in range(2):
        with pytest.raises(StoreFailure, match="damaged"):
            await store.commit(r.append(made, *r.deltas(1)))
    assert await seqs(store, made) == [1, 2], "reads go on"
    await postgres.ask(url, "DROP TABLE keys", "SELECT")
    with pytest.raises(StoreFailure, match="beneath us"):
        await store.count(Key)


async def test_a_reader_who_leaves_in_the_middle_leaves_the_pool_whole(url: str) -> None:
    store = await open_store(url, world=RealWorld(), pool=1)
    holder = await asyncpg.connect(url)
    transaction = holder.transaction()
    await transaction.start()
    await holder.execute("LOCK TABLE sessions")
    async with asyncio.TaskGroup() as tasks:
        reading = tasks.create_task(store.count(Session))
        await waiting(holder, 1)
        reading.cancel()
    await transaction.rollback()
    assert reading.cancelled()
    assert await store.count(Session) == 0
    assert store.stats()["connections_lost_total"] == 1
    await holder.close()
    await store.close()


async def test_a_batch_that_was_given_up_can_never_arrive(store: PostgresStore, url: str) -> None:
    [made] = await accepted(store, 1)
    line = Line(url, uuid4())
    db, number = await line.connection(), line.next()
    head = Head(1, 1, 0, "CREATED", 1, "default", "s0")
    rows = [(bucket_of(made.run_id), 1, 2, 1, 0, 1, b"[]")]
    runs = {made.run_id: (head, replace(head, head=2))}
    assert not await line.committed(number)
    with pytest.raises(Missed):
        await write_words(db, rows, runs, line.writer, number)
    with pytest.raises(Fenced):
        async with db.transaction():
            await finish(db, rows, [], line.writer, number)
    await write_words(db, rows, runs, line.writer, line.next())
    assert await line.committed(line.number)
    await line.close()
