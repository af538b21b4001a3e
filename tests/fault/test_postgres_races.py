"""Replicas that race on PostgreSQL: owners, zombies, tool results, cancels, removals."""

import asyncio
import random
from collections.abc import Callable

import asyncpg
import msgspec
from msgspec.structs import replace

from orchestrator.core.audit import broken
from orchestrator.core.events import AgentStreamDelta, draft
from orchestrator.core.ops import Committed, Guard, Insert, Op, Outcome, Refused
from orchestrator.core.records import NEXT, AuditEntry, Message, Run, Session
from orchestrator.core.states import ENDED, OPEN, RunState
from orchestrator.stores.postgres import PostgresStore, open_store
from orchestrator.testing import records as r
from orchestrator.testing.records import committed, stored
from orchestrator.testing.store_contract import seqs
from orchestrator.world import RealWorld

from .. import postgres
from ..rigs import Tally
from .speakers import UNGRANTED, accepted, minted, waiting

SOME = 24
"""How many runs at most an owner asks for, and a batch of words speaks into."""
WRITES_MAX = 50
"""After which an owner falls silent."""
REDOS_SHARE = 0.01
"""Of all commits, how many may have to be made again for others' sake."""


class Race:
    """Replicas on one database that claim, write, give up, go on as zombies, and interfere."""

    def __init__(self, stores: list[PostgresStore], runs: list[Run], tally: Tally) -> None:
        self.stores = stores
        self.runs = runs
        self.tally = tally
        self.cancelled: list[str] = []
        self.said = self.noted = self.writing = 0

    @property
    def over(self) -> bool:
        """Return whether every run is cancelled."""
        return len(self.cancelled) == len(self.runs)

    async def own(self, n: int) -> None:
        """Take runs from whoever has given them up, until all are over."""
        store, owner, mixed = self.stores[n], f"o{n}", random.Random(n)
        async with asyncio.TaskGroup() as tasks:
            while not self.over:
                await store.renew(owner, 60_000)
                some = [made.run_id for made in self._some(mixed)]
                for claim in await store.claim(owner, 8, some if mixed.random() < 0.9 else ()):
                    self.writing += 1
                    tasks.create_task(self._write(n, claim.run))
                await store.renew(owner, 0)  # and writes on all the same
                await asyncio.sleep(0.02)
                while self.writing > 2 * len(self.runs):  # half of them are zombies
                    await asyncio.sleep(0.01)

    def _some(self, mixed: random.Random) -> list[Run]:
        return mixed.sample(self.runs, min(SOME, len(self.runs)))

    async def _write(self, n: int, run: Run) -> None:
        store, guard = self.stores[n], Guard(epoch=run.epoch, states=OPEN)
        payload = AgentStreamDelta(text=f"{run.epoch} by o{n}")
        for _ in range(WRITES_MAX):
            self.said += 1
            if self.said % 8 == 0:
                await self._note(n)
            begins = r.append(run, r.started(), guard=guard, status=RunState.RUNNING)
            words = r.append(run, *[draft("evt_w", r.AT, payload)] * 3, guard=guard)
            outcomes = await store.commit(words if self.said % 10 else begins)
            if isinstance(outcomes[0], Refused):
                assert outcomes[0].why in {"epoch", "state"}
                self.tally.fire("zombie refused")
                break
        self.writing -= 1

    async def _note(self, n: int) -> None:
        """Write what everybody has to queue for: an entry of a tenant, a message of a session."""
        self.noted += 1
        entry = AuditEntry(tenant="default", seq=NEXT, at=1, actor=f"o{n}", action="a", target="t")
        line = r.message(0, "shared", message_id=f"msg_{self.noted}")
        await committed(self.stores[n], Op(writes=(Insert(entry), Insert(line))))

    async def shout(self, n: int) -> None:
        """Say words into many runs at once, in whatever order, until all are over."""
        mixed, guard = random.Random(n), Guard(states=OPEN)
        while not self.over:
            ops = [r.append(made, *r.deltas(1), guard=guard) for made in self._some(mixed)]
            outcomes = await self.stores[n].commit(*ops)
            self.tally.fire("shouted", any(isinstance(one, Committed) for one in outcomes))

    async def answer(self, n: int) -> None:
        """Have runs wait for a tool and bring its result, whoever drives them, until all are over.

        A decision rests on what was read before; whoever was faster has it refused.
        """
        store, mixed = self.stores[n], random.Random(n)
        while not self.over:
            made = mixed.choice(self.runs)
            for state in (RunState.PAUSED_WAITING_TOOL, RunState.RUNNING):
                found = await stored(store, made)
                guard = Guard(version=found.version, states=OPEN)
                op = r.append(made, r.started(), guard=guard, status=state)
                [outcome] = await store.commit(op)
                kind = "tool result" if state == RunState.RUNNING else "tool waited for"
                self.tally.fire(kind if isinstance(outcome, Committed) else "decided on old news")

    async def cancel(self, n: int) -> None:
        """Cancel every run, unless somebody else was faster."""
        store, first = self.stores[n], n * len(self.runs) // 3
        for made in self.runs[first:] + self.runs[:first]:
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

    async def run(self) -> None:
        """Race until every run has changed hands, then cancel them all."""
        async with asyncio.TaskGroup() as tasks:
            for n in range(len(self.stores)):
                for part in (self.own, self.shout, self.answer):
                    tasks.create_task(part(n))
            for made in self.runs:
                while (await stored(self.stores[0], made)).epoch < 3:
                    await asyncio.sleep(0.01)
                self.tally.round()
            for n in range(len(self.stores)):
                tasks.create_task(self.cancel(n))


async def test_replicas_that_race_leave_no_hole_no_stale_word_and_no_deadlock(
    url: str, rounds_of: Callable[[int], int], tally: Tally
) -> None:
    tally.expect("zombie refused", "lost the race", "shouted", "tool result", "decided on old news")
    stores = [await open_store(url, world=RealWorld()) for _ in range(3)]
    shared = Session(tenant="default", session_id="shared", created_at=1, updated_at=1)
    await committed(stores[0], Op(writes=(Insert(shared),)))
    race = Race(stores, await accepted(stores[0], max(12, rounds_of(200))), tally)
    await race.run()
    assert sorted(race.cancelled) == sorted(made.run_id for made in race.runs)
    for made in race.runs:
        head = (await stored(stores[1], made)).head
        assert await seqs(stores[2], made, limit=1 << 20) == list(range(1, head + 1))
    lines = await stores[1].find(Message, order="pos", limit=1 << 20)
    assert [line.pos for line in lines] == list(range(1, race.noted + 1))
    assert broken(await stores[1].find(AuditEntry, order="seq", limit=1 << 20)) is None
    told = [store.stats() for store in stores]
    for store in stores:
        await store.close()
    assert await stale_words(url) == 0
    deadlocks = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
    assert [tuple(row) for row in await postgres.ask(url, deadlocks)] == [(0,)]
    for name in ("commits_total", "commit_redos_total", "commit_heads_missed_total"):
        tally.fire(name, sum(int(one[name]) for one in told))
    assert tally.fired["commit_redos_total"] <= REDOS_SHARE * tally.fired["commits_total"]


async def stale_words(url: str) -> int:
    """Return how many words stand in a log that their owner said after he had lost the run."""
    found = 0
    newest: dict[int, int] = {}
    rows = await postgres.ask(url, "SELECT run, epoch, data FROM segments ORDER BY run, seq")
    for run, epoch, data in rows:
        assert epoch >= newest.get(run, 0)
        newest[run] = epoch
        texts = [event["payload"].get("text", "") for event in msgspec.json.decode(data)]
        found += sum(" by " in text and int(text.split()[0]) != epoch for text in texts)
    assert rows
    return found


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
