"""PostgreSQL cut off, killed, crashed and raced for: nothing acknowledged is lost or doubled."""

import asyncio
import random
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any
from uuid import uuid4

import asyncpg
import msgspec
import pytest
from msgspec.structs import replace

from orchestrator.core import ids
from orchestrator.core.audit import broken
from orchestrator.core.errors import StorageFull, StoreFailure, Unavailable
from orchestrator.core.events import AgentStreamDelta, draft
from orchestrator.core.ops import Committed, Guard, Insert, Op, Outcome, Put, Refused
from orchestrator.core.records import NEXT, Agent, AuditEntry, Key, Message, Run, Session
from orchestrator.core.states import ENDED, OPEN, RunState
from orchestrator.ports import Store
from orchestrator.stores.postgres import PostgresStore, committer, open_store, unsettled
from orchestrator.stores.postgres.finishing import Fenced, Missed, finish, write_words
from orchestrator.stores.postgres.heads import Head
from orchestrator.stores.postgres.line import Line
from orchestrator.stores.postgres.segments import bucket_of
from orchestrator.testing import records as r
from orchestrator.testing.records import committed, stored
from orchestrator.testing.store_contract import seqs
from orchestrator.world import RealWorld

from .. import postgres
from ..rigs import Tally


@pytest.fixture(scope="module")
def server() -> Iterator[postgres.Server]:
    """Hand out a server that may be cut off and crashed; it writes to the disk as in earnest."""
    with postgres.running(fsync=True) as running:
        yield running


@pytest.fixture
async def url(server: postgres.Server) -> AsyncIterator[str]:
    """Hand out the address of a new database."""
    async with postgres.database(server.url()) as address:
        yield address


@pytest.fixture
async def store(url: str) -> AsyncIterator[PostgresStore]:
    opened = await open_store(url, world=RealWorld())
    yield opened
    await opened.close()


class Speaker:
    """Says numbered words into a run, again where the store was away, and knows what was taken."""

    def __init__(self, store: Store, made: Run) -> None:
        self.store = store
        self.run = made
        self.taken: list[str] = []
        self.away = 0
        self._said = 0

    async def say(self) -> None:
        """Say one word; return when it is taken."""
        self._said += 1
        text = f"{self._said} of {self.run.run_id}"
        op = Op(run_id=self.run.run_id, events=(draft("evt_w", r.AT, AgentStreamDelta(text=text)),))
        while True:
            answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
            self.store.append(op, answer.set_result)
            said = await answer
            if isinstance(said, Unavailable):
                self.away += 1
                await asyncio.sleep(0.01)
                continue
            assert isinstance(said, Committed), said
            self.taken.append(text)
            return

    async def heard(self, store: Store) -> list[str]:
        """Return the words of the run's log."""
        texts = list[str]()
        after = 0
        while batch := await store.read(self.run.run_id, after):
            assert [event.seq for event in batch] == list(range(after + 1, batch.seqs[-1] + 1))
            texts += [
                msgspec.json.decode(event.data)["payload"]["text"]
                for event in batch
                if event.type == AgentStreamDelta.type
            ]
            after = batch.seqs[-1]
        return texts


async def accepted(store: Store, count: int) -> list[Run]:
    """Accept runs, each of a session of its own, with ids as minted now."""
    made = [minted(f"s{n}") for n in range(count)]
    outcomes = await store.commit(*map(r.accept, made))
    assert all(isinstance(outcome, Committed) for outcome in outcomes)
    return made


def minted(session: str, at: int | None = None) -> Run:
    world = RealWorld()
    at = world.now() if at is None else at
    shard = ids.shard_of("default", session)
    return replace(r.run(1, session), run_id=ids.mint("run", at, world.noise(16), shard))


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
    server: postgres.Server, rounds_of: Callable[[int], int], tally: Tally
) -> None:
    tally.expect(*postgres.Proxy.HOW)
    async with postgres.database(server.url()) as url, postgres.Proxy(url) as proxy:
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


async def test_a_server_that_crashes_and_comes_back_loses_and_doubles_nothing(
    server: postgres.Server, rounds_of: Callable[[int], int], tally: Tally
) -> None:
    tally.expect("crashed", "away")
    async with postgres.database(server.url()) as url:
        store = await open_store(url, world=RealWorld())
        speakers = [Speaker(store, made) for made in await accepted(store, 4)]
        ended = asyncio.Event()

        async def talk(speaker: Speaker) -> None:
            while not ended.is_set():
                await speaker.say()

        async with asyncio.TaskGroup() as tasks:
            for speaker in speakers:
                tasks.create_task(talk(speaker))
            for _ in range(max(2, rounds_of(20))):
                await grown(speakers, 50)
                server.stop(signal.SIGQUIT)
                tally.fire("crashed")
                with pytest.raises(Unavailable):
                    await store.get(Run, speakers[0].run.run_id)
                with pytest.raises(Unavailable):
                    await store.commit(Op(writes=(Put(r.agent("never")),)))
                tally.fire("away")
                await asyncio.to_thread(server.start)
                async with asyncio.timeout(5):
                    await grown(speakers, 1)
                tally.round()
            ended.set()
        assert await store.get(Agent, "default", "never") is None
        for speaker in speakers:
            assert await speaker.heard(store) == speaker.taken
        await store.close()


async def grown(speakers: list[Speaker], by: int) -> None:
    """Wait until each has been heard that many times more."""
    wanted = [len(speaker.taken) + by for speaker in speakers]
    while any(len(s.taken) < n for s, n in zip(speakers, wanted, strict=True)):
        await asyncio.sleep(0.005)


class Race:
    """Replicas on one database that claim, write, give up, go on as zombies, and cancel."""

    def __init__(self, stores: list[PostgresStore], runs: list[Run], tally: Tally) -> None:
        self.stores = stores
        self.runs = runs
        self.tally = tally
        self.cancelled: list[str] = []
        self.said = 0

    async def own(self, n: int) -> None:
        """Take runs from whoever has given them up, until all are over."""
        store, owner = self.stores[n], f"o{n}"
        async with asyncio.TaskGroup() as tasks:
            while len(self.cancelled) < len(self.runs):
                await store.renew(owner, 60_000)
                for claim in await store.claim(owner, 4):
                    tasks.create_task(self._write(n, claim.run))
                await store.renew(owner, 0)  # and writes on all the same
                await asyncio.sleep(0.02)

    async def _write(self, n: int, run: Run) -> None:
        store, guard = self.stores[n], Guard(epoch=run.epoch, states=OPEN)
        while True:
            self.said += 1
            entry = AuditEntry(
                tenant="default", seq=NEXT, at=1, actor=f"o{n}", action="a", target="t"
            )
            line = r.message(0, "shared", message_id=f"msg_{self.said}")
            await committed(store, Op(writes=(Insert(entry), Insert(line))))
            begins = r.append(run, r.started(), guard=guard, status=RunState.RUNNING)
            words = r.append(run, *r.deltas(3), guard=guard)
            outcomes = await store.commit(words if self.said % 10 else begins)
            if isinstance(outcomes[0], Refused):
                assert outcomes[0].why in {"epoch", "state"}
                self.tally.fire("zombie refused")
                return

    async def shout(self, n: int) -> None:
        """Say words into all runs at once, in whatever order, until all are over."""
        order, guard = list(self.runs), Guard(states=OPEN)
        mixed = random.Random(n)
        while len(self.cancelled) < len(self.runs):
            mixed.shuffle(order)
            ops = [r.append(made, *r.deltas(1), guard=guard) for made in order]
            outcomes = await self.stores[n].commit(*ops)
            self.tally.fire("shouted", any(isinstance(one, Committed) for one in outcomes))

    async def cancel(self, n: int) -> None:
        """Cancel every run, unless somebody else was faster."""
        store = self.stores[n]
        for made in self.runs[4 * n :] + self.runs[: 4 * n]:
            outcome: Outcome | None = None
            while not isinstance(outcome, Committed):
                found = await stored(store, made)
                if found.status in ENDED:
                    self.tally.fire("lost the race")
                    break
                guard = Guard(version=found.version, states=OPEN)
                change = {"status": RunState.CANCELLED, "ended_at": 1}
                [outcome] = await store.commit(r.append(made, r.started(), guard=guard, **change))
            else:
                self.cancelled.append(made.run_id)


async def test_replicas_that_race_leave_no_hole_no_stale_word_and_no_deadlock(
    url: str, tally: Tally
) -> None:
    tally.expect("zombie refused", "lost the race", "shouted")
    stores = [await open_store(url, world=RealWorld()) for _ in range(3)]
    await committed(
        stores[0],
        Op(
            writes=(
                Insert(Session(tenant="default", session_id="shared", created_at=1, updated_at=1)),
            )
        ),
    )
    race = Race(stores, await accepted(stores[0], 12), tally)
    async with asyncio.TaskGroup() as tasks:
        for n in range(3):
            tasks.create_task(race.own(n))
            tasks.create_task(race.shout(n))
        while not all([(await stored(stores[0], made)).epoch > 2 for made in race.runs]):
            await asyncio.sleep(0.01)
        for n in range(3):
            tasks.create_task(race.cancel(n))
    assert sorted(race.cancelled) == sorted(made.run_id for made in race.runs)
    for made in race.runs:
        head = (await stored(stores[1], made)).head
        assert await seqs(stores[2], made, limit=1 << 20) == list(range(1, head + 1))
    lines = await stores[1].find(Message, order="pos", limit=1 << 20)
    assert [line.pos for line in lines] == list(range(1, race.said + 1))
    assert broken(await stores[1].find(AuditEntry, order="seq", limit=1 << 20)) is None
    told = [store.stats() for store in stores]
    for store in stores:
        await store.close()
    stale = (
        "SELECT count(*) FROM (SELECT epoch, lag(epoch) OVER (PARTITION BY run ORDER BY seq) AS "
        "before FROM segments) AS s WHERE epoch < before"
    )
    assert [tuple(row) for row in await postgres.ask(url, stale)] == [(0,)]
    deadlocks = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
    assert [tuple(row) for row in await postgres.ask(url, deadlocks)] == [(0,)]
    assert [one["commit_redos_total"] for one in told] == [0, 0, 0]


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


async def test_no_session_is_removed_while_it_gets_a_new_run(
    store: PostgresStore, url: str
) -> None:
    [old] = await accepted(store, 1)
    await committed(store, r.end(old, at=1000))
    holder = await asyncpg.connect(url)
    transaction = holder.transaction()
    await transaction.start()
    await holder.execute(
        "INSERT INTO idempotency_keys VALUES ('default', 's1', 'k', '', '', '', 1)"
    )
    new = minted(old.session_id)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(committed(store, r.accept(new, Insert(r.key("k", new)))))
        await waiting(holder, 1)
        trimming = tasks.create_task(store.trim(1001, 0))
        await waiting(holder, 2)
        await transaction.rollback()
    assert trimming.result().runs == 1
    assert await store.get(Session, "default", old.session_id) is not None
    await holder.close()


async def test_runs_of_a_session_are_seen_in_the_order_of_their_keys(
    store: PostgresStore, url: str
) -> None:
    holder, other = await asyncpg.connect(url), await open_store(url, world=RealWorld())
    first, second = minted("s1"), minted("s1")
    transaction = holder.transaction()
    await transaction.start()
    await holder.execute(
        "INSERT INTO idempotency_keys VALUES ('default', 's1', 'k', '', '', '', 1)"
    )
    async with asyncio.TaskGroup() as tasks:
        waits = replace(r.accept(first), writes=(Insert(r.key("k", first)),))
        tasks.create_task(committed(store, waits))
        await waiting(holder, 1)  # it has its key, and is not to be seen yet
        later = tasks.create_task(committed(other, replace(r.accept(second), writes=())))
        while not later.done() and await holder.fetchval(UNGRANTED) < 2:
            await asyncio.sleep(0)
        assert not later.done()
        await transaction.rollback()
    keys = [(await stored(store, made)).key for made in (first, second)]
    assert keys == sorted(keys)
    await holder.close()
    await other.close()


UNGRANTED = "SELECT count(*) FROM pg_locks WHERE NOT granted"


async def waiting(holder: Any, count: int) -> None:
    """Wait until so many wait for a lock."""
    while await holder.fetchval(UNGRANTED) < count:
        await asyncio.sleep(0)


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
