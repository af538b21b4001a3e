"""What every store must keep to; a driver's tests subclass it and hand in a `store` fixture.

The store's clock is a FakeWorld at `world`. Each test is one promise of `ports.Store`.
"""

import asyncio
from typing import Any

import msgspec

from orchestrator.core.events import AgentStreamDelta, draft
from orchestrator.core.ops import Committed, Delete, Guard, Insert, Op, Patch, Put, Refused
from orchestrator.core.records import (
    HEAD,
    NEXT,
    PENDING,
    WAITING,
    Agent,
    Blob,
    Cursor,
    IdempotencyKey,
    Instance,
    Invocation,
    Lease,
    Message,
    Run,
    Session,
    Timer,
)
from orchestrator.core.states import RunState
from orchestrator.ports import Store
from orchestrator.testing import records as r
from orchestrator.testing.fake_world import FakeWorld
from orchestrator.testing.records import committed, stored
from orchestrator.testing.store_room_contract import TheRoom

TTL = 15_000


async def seqs(store: Store, made: Run, after: int = 0, limit: int = 1000) -> list[int]:
    """Return the numbers of the events that a read hands out."""
    return [event.seq for event in await store.read(made.run_id, after, limit)]


class TheLog:
    """Events: numbered in the commit, whole or not at all, the same for every reader."""

    async def test_events_are_numbered_in_the_commit(self, store: Store) -> None:
        made = r.run(1)
        [created] = await committed(store, r.accept(made))
        assert (created.head, created.version) == (1, 1)
        [appended] = await committed(store, r.append(made, *r.deltas(3)))
        assert (appended.head, appended.version) == (4, 1), "deltas do not count as versions"
        assert [event.seq for event in appended.events] == [2, 3, 4]
        events = await store.read(made.run_id, 0)
        assert events[1:] == list(appended.events)
        body = msgspec.json.decode(events[1].data)
        assert list(body) == ["event_id", "run_id", "seq", "ts", "type", "payload"]
        assert (body["run_id"], body["seq"], body["payload"]) == (
            made.run_id,
            2,
            {"text": "word 0"},
        )

    async def test_concurrent_appends_leave_no_hole_and_no_double(self, store: Store) -> None:
        runs = [r.run(n, f"s{n}") for n in range(4)]
        await committed(store, *map(r.accept, runs))
        async with asyncio.TaskGroup() as tasks:
            for n in range(200):
                op = r.append(runs[n % 4], *r.deltas(1 + n % 3))
                tasks.create_task(committed(store, op))
        for made in runs:
            head = (await stored(store, made)).head
            assert await seqs(store, made) == list(range(1, head + 1))
        assert sum([(await stored(store, made)).head for made in runs]) == 4 + 399

    async def test_appended_words_are_there_when_it_is_told(self, store: Store) -> None:
        made = r.run(1)
        await committed(store, r.accept(made))
        ops = [r.append(made, *r.deltas(count)) for count in (2, 1, 3)]
        ops[1] = r.append(made, *r.deltas(1), guard=Guard(epoch=7))
        told: list[asyncio.Future[Any]] = [asyncio.get_running_loop().create_future() for _ in ops]
        for op, future in zip(ops, told, strict=True):
            store.append(op, future.set_result)
        first, refused, last = [await future for future in told]
        assert (first.head, refused, last.head) == (3, Refused("epoch"), 6)
        assert await store.read(made.run_id, 1) == [*first.events, *last.events]

    async def test_a_read_begins_anywhere(self, store: Store) -> None:
        made = r.run(1)
        await committed(store, r.accept(made))
        for size in (1, 300, 2, 700, 1):
            await committed(store, r.append(made, *r.deltas(size)))
        last = 1 + 1004
        for after in (0, 1, 2, 3, 150, 301, 302, 303, 304, 500, last - 1):
            for limit in (1, 2, 64, 65, 1000, 2000):
                wanted = list(range(after + 1, min(after + limit, last) + 1))
                assert await seqs(store, made, after, limit) == wanted, (after, limit)
        assert await seqs(store, made, last) == []
        assert await seqs(store, made, last + 50) == []
        assert await store.read("run_unknown", 0) == []

    async def test_bytes_come_back_as_they_went_in(self, store: Store) -> None:
        made = r.run(1)
        await committed(store, r.accept(made))
        text = 'a"\\\u0000\u2028\U0001f600' + "é" * 50_000
        drafts = [draft("evt_x", r.AT, AgentStreamDelta(text=text))] * 3
        [outcome] = await committed(store, r.append(made, *drafts))
        assert await store.read(made.run_id, 1) == list(outcome.events)
        assert msgspec.json.decode(outcome.events[0].data)["payload"]["text"] == text


class TheGuards:
    """Races are decided by what a commit asks for, and the loser leaves no trace."""

    async def test_each_guard_refuses_with_its_own_word(self, store: Store) -> None:
        made = r.run(1)
        await committed(store, r.accept(made))
        refusals = {
            "version": Guard(version=7),
            "epoch": Guard(epoch=3),
            "state": Guard(states=frozenset({RunState.RUNNING})),
        }
        for why, guard in refusals.items():
            [outcome] = await store.commit(r.append(made, r.started(), guard=guard))
            assert outcome == Refused(why)
        [outcome] = await store.commit(r.append(r.run(9), r.started()))
        assert outcome == Refused("missing")
        assert await seqs(store, made) == [1]
        good = Guard(version=1, epoch=0, states=frozenset({RunState.CREATED, RunState.DONE}))
        await committed(store, r.append(made, r.started(), guard=good))

    async def test_a_refused_op_leaves_the_others_standing(self, store: Store) -> None:
        first, second = r.run(1), r.run(2, "s2")
        await committed(store, r.accept(first), r.accept(second))
        outcomes = await store.commit(
            r.append(first, *r.deltas(1)),
            Op(run_id=first.run_id, guard=Guard(version=9), events=r.deltas(5),
               writes=(Put(Blob(name="never", data=b"", created_at=r.AT)),)),
            r.append(second, *r.deltas(2)),
        )  # fmt: skip
        assert [type(outcome) for outcome in outcomes] == [Committed, Refused, Committed]
        assert await seqs(store, first) == [1, 2]
        assert await seqs(store, second) == [1, 2, 3]
        assert await store.get(Blob, "never") is None

    async def test_who_is_refused_sees_what_stands_there_now(self, store: Store) -> None:
        made = r.run(1)
        await committed(store, r.accept(made))
        outcomes = await store.commit(r.append(made, *r.deltas(2)), r.accept(made))
        assert isinstance(outcomes[0], Committed)
        assert outcomes[1] == Refused("exists", await stored(store, made))

    async def test_a_write_that_is_refused_takes_its_op_with_it(self, store: Store) -> None:
        made = r.run(1)
        await committed(store, r.accept(made))
        writes: tuple[Any, ...] = (
            Put(Blob(name="b", data=b"x", created_at=r.AT)),
            Delete(Timer, (made.run_id, "deadline"), required=True),
        )
        op = Op(run_id=made.run_id, events=r.deltas(3), writes=writes)
        assert await store.commit(op) == [Refused("missing")]
        assert await seqs(store, made) == [1]
        assert await store.get(Blob, "b") is None

    async def test_one_of_many_deciders_wins(self, store: Store) -> None:
        made = r.run(1)
        await committed(store, r.accept(made))
        op = r.append(made, r.started(), guard=Guard(version=1), status=RunState.CANCELLED)
        async with asyncio.TaskGroup() as tasks:
            tries = [tasks.create_task(store.commit(op)) for _ in range(50)]
        outcomes = [task.result()[0] for task in tries]
        assert sum(isinstance(outcome, Committed) for outcome in outcomes) == 1
        assert {o.why for o in outcomes if isinstance(o, Refused)} == {"version"}

    async def test_one_of_many_callers_gets_the_key(self, store: Store) -> None:
        runs = [r.run(n) for n in range(100)]
        ops = [r.accept(made, Insert(r.key("k", made))) for made in runs]
        async with asyncio.TaskGroup() as tasks:
            tries = [tasks.create_task(store.commit(op)) for op in ops]
        outcomes = [task.result()[0] for task in tries]
        [winner] = [n for n, o in enumerate(outcomes) if isinstance(o, Committed)]
        for outcome in outcomes:
            if isinstance(outcome, Refused):
                assert outcome == Refused("exists", r.key("k", runs[winner]))
        assert await store.count(Run) == 1
        assert await store.get(IdempotencyKey, "default", "s1", "k") == r.key("k", runs[winner])


class TheRecords:
    """Rows: written as ops say, found by what is asked."""

    async def test_records_come_back_equal(self, store: Store) -> None:
        agent = r.agent("a", capabilities=["x", "ü"], auth=b"\x00sealed", max_concurrency=3)
        session = Session(tenant="default", session_id="s9", created_at=1, updated_at=2)
        instance = Instance(
            tenant="default", agent_id="a", instance_id="i", endpoint="http://i", draining=True,
            created_at=1, updated_at=2,
        )  # fmt: skip
        timer = Timer(run_id="run_1", kind="deadline", due_at=5)
        cursor = Cursor(follower="f", run_id="run_1", seq=7, updated_at=1)
        said = r.message(1, content=[{"type": "text", "text": "ö\u0000"}], metadata={"a": None})
        rows = (agent, instance, session, timer, cursor)
        await committed(store, Op(writes=tuple(Put(row) for row in rows)))
        await committed(store, Op(writes=(Insert(said),)))
        assert await store.get(Agent, "default", "a") == agent
        assert await store.get(Instance, "default", "a", "i") == instance
        assert await store.get(Session, "default", "s9") == session
        assert await store.get(Timer, "run_1", "deadline") == timer
        assert await store.get(Cursor, "f", "run_1") == cursor
        found = await store.get(Message, "msg_1")
        assert found is not None
        assert (found.content, found.metadata) == (said.content, said.metadata)
        assert await store.get(Agent, "other", "a") is None

    async def test_put_keeps_what_it_is_told_to(self, store: Store) -> None:
        await committed(store, Op(writes=(Put(r.agent("a")),)))
        again = r.agent("a", name="New", created_at=r.AT + 5)
        await committed(store, Op(writes=(Put(again, keep=("created_at",)),)))
        found = await store.get(Agent, "default", "a")
        assert found is not None
        assert (found.name, found.created_at) == ("New", r.AT)

    async def test_patches_are_guarded(self, store: Store) -> None:
        await committed(store, Op(writes=(Put(r.agent("a", status="healthy")),)))
        key = ("default", "a")
        wrong = Patch(Agent, key, {"status": "x"}, where={"status": "sick"}, required=True)
        assert await store.commit(Op(writes=(wrong,))) == [Refused("missing")]
        right = Patch(Agent, key, {"status": "sick"}, where={"status": "healthy"}, required=True)
        await committed(store, Op(writes=(right,)))
        found = await store.get(Agent, *key)
        assert found is not None
        assert found.status == "sick"
        await committed(store, Op(writes=(Delete(Agent, key),)))
        assert await store.get(Agent, *key) is None

    async def test_conditions_narrow_and_order(self, store: Store) -> None:
        for n in range(6):
            made = r.run(n, f"s{n % 2}", labels={"n": str(n)})
            await committed(store, r.accept(made))
        await committed(store, r.end(r.run(0), at=r.AT + 9), r.begin(r.run(1)))
        found = await store.find(Run, ("session_id", "=", "s0"), order="-created_at", limit=2)
        assert [run.run_id for run in found] == [r.run(4).run_id, r.run(2).run_id]
        assert found[0].labels == {"n": "4"}
        assert await store.count(Run, ("status", "in", [RunState.DONE, RunState.RUNNING])) == 2
        assert await store.count(Run, ("ended_at", "!=", None)) == 1
        assert await store.count(Run, ("ended_at", "=", None)) == 5
        assert await store.count(Run, ("created_at", ">", r.AT + 2)) == 3
        assert await store.count(Run, ("created_at", "<=", r.AT + 2)) == 3
        assert await store.count(Run, ("session_id", "=", "s'; DROP TABLE runs")) == 0
        assert await store.count(Run, ("status", "in", ["'x"])) == 0
        keys = [run.key for run in await store.find(Run, order="key")]
        assert keys == sorted(keys)
        await committed(store, Op(writes=(Put(r.agent("a", capabilities=["x", "y"])),)))
        assert await store.count(Agent, ("capabilities", "has", "y")) == 1
        assert await store.count(Agent, ("capabilities", "has", "z")) == 0

    async def test_messages_get_their_places(self, store: Store) -> None:
        made = r.run(1)
        waiting = [r.message(n, pos=WAITING) for n in (1, 2)]
        await committed(store, r.accept(made, *map(Insert, waiting)))
        await committed(store, Op(writes=(Insert(r.message(3)),)))
        places = [m.message_id for m in await store.find(Message, order="pos")]
        assert places == ["msg_3", "msg_1", "msg_2"]
        await committed(store, Op(writes=(Patch(Message, ("msg_1",), {"pos": NEXT}),)))
        found = {m.message_id: m.pos for m in await store.find(Message, order="pos")}
        assert (found["msg_3"], found["msg_1"]) == (1, 2)
        assert found["msg_2"] > PENDING

    async def test_a_message_that_is_put_gets_its_place_too(self, store: Store) -> None:
        await committed(store, r.accept(r.run(1)))
        await committed(store, Op(writes=(Put(r.message(1)), Put(r.message(2)))))
        await committed(store, Op(writes=(Put(r.message(1)),)))
        places = [(m.message_id, m.pos) for m in await store.find(Message, order="pos")]
        assert places == [("msg_2", 2), ("msg_1", 3)]

    async def test_conditions_on_a_head_know_the_last_word(self, store: Store) -> None:
        made = r.run(1)
        await committed(store, r.accept(made))
        await committed(store, r.append(made, *r.deltas(3)))
        for where in (("head", ">", 3), ("head", "=", 4), ("head", "in", [4])):
            assert await store.count(Run, where) == 1, where
        assert await store.count(Run, ("head", "<", 4)) == 0

    async def test_an_attempt_notes_where_it_began(self, store: Store) -> None:
        made = r.run(1)
        await committed(store, r.accept(made))
        await committed(store, r.append(made, *r.deltas(2), r.started(), attempt_seq=HEAD))
        assert (await stored(store, made)).attempt_seq == 4


class TheOwners:
    """Who may run what, and for how long."""

    async def test_sessions_go_in_order_and_children_do_not_wait(self, store: Store) -> None:
        first, second, other = r.run(1), r.run(2), r.run(3, "s2")
        child = r.run(4, parent_run_id=first.run_id)
        await committed(store, *map(r.accept, (first, second, other, child)))
        await store.renew("me", TTL)
        claimed = await store.claim("me", 10)
        assert [c.run.run_id for c in claimed] == [first.run_id, other.run_id, child.run_id]
        assert {(c.run.owner, c.run.epoch, c.lost_by) for c in claimed} == {("me", 1, None)}
        assert await store.claim("me", 10) == []
        await committed(store, r.begin(first))
        assert await store.claim("me", 10) == []
        await committed(store, r.end(first))
        assert [c.run.run_id for c in await store.claim("me", 10)] == [second.run_id]

    async def test_a_parallel_run_neither_waits_for_its_session_nor_holds_it(
        self, store: Store
    ) -> None:
        first, beside, second = r.run(1), r.run(2, parallel=True), r.run(3)
        await committed(store, *map(r.accept, (first, beside)))
        await store.renew("me", TTL)
        claimed = await store.claim("me", 10)
        assert [c.run.run_id for c in claimed] == [first.run_id, beside.run_id]
        await committed(store, r.begin(first), r.begin(beside), r.accept(second), r.end(first))
        assert [c.run.run_id for c in await store.claim("me", 10)] == [second.run_id]

    async def test_claims_are_bounded_and_narrowed(self, store: Store) -> None:
        runs = [r.run(n, f"s{n}") for n in range(5)]
        await committed(store, *map(r.accept, runs))
        await store.renew("me", TTL)
        wanted = [runs[3].run_id, "run_unknown"]
        assert [c.run.run_id for c in await store.claim("me", 10, wanted)] == [runs[3].run_id]
        assert [c.run.run_id for c in await store.claim("me", 2)] == [
            runs[0].run_id,
            runs[1].run_id,
        ]

    async def test_a_paused_run_neither_holds_its_session_nor_is_claimed(
        self, store: Store
    ) -> None:
        first, second = r.run(1), r.run(2)
        await committed(store, r.accept(first), r.accept(second))
        await committed(store, r.append(first, status=RunState.PAUSED_WAITING_APPROVAL))
        await store.renew("me", TTL)
        assert [c.run.run_id for c in await store.claim("me", 10)] == [second.run_id]

    async def test_a_dead_owners_runs_change_hands(self, store: Store, world: FakeWorld) -> None:
        begun, waiting = r.run(1), r.run(2, "s2")
        await committed(store, r.accept(begun), r.accept(waiting))
        await store.renew("dead", TTL)
        assert len(await store.claim("dead", 10)) == 2
        await committed(store, r.begin(begun))
        await store.renew("heir", 10 * TTL)
        world.time += TTL - 1
        assert await store.claim("heir", 10) == []
        world.time += 1
        claimed = await store.claim("heir", 10)
        assert [(c.run.run_id, c.lost_by, c.run.epoch) for c in claimed] == [
            (begun.run_id, "dead", 2),
            (waiting.run_id, None, 2),
        ]
        [outcome] = await store.commit(r.append(begun, *r.deltas(1), guard=Guard(epoch=1)))
        assert outcome == Refused("epoch"), "the zombie's write"

    async def test_only_who_lives_may_claim_and_nobody_what_is_his(
        self, store: Store, world: FakeWorld
    ) -> None:
        begun, waiting = r.run(1), r.run(2, "s2")
        await committed(store, r.accept(begun), r.accept(waiting))
        assert await store.claim("me", 10) == [], "no lease yet"
        await store.renew("me", TTL)
        assert [c.run.run_id for c in await store.claim("me", 1)] == [begun.run_id]
        await committed(store, r.begin(begun))
        world.time += TTL
        assert await store.claim("me", 10) == [], "neither what is his nor what is free"
        await store.renew("me", TTL)
        assert [c.run.run_id for c in await store.claim("me", 10)] == [waiting.run_id]
        await store.renew("me", 0)
        assert await store.claim("me", 10) == []

    async def test_a_lease_is_given_up_at_once(self, store: Store) -> None:
        made = r.run(1)
        await committed(store, r.accept(made))
        await store.renew("me", TTL)
        await store.claim("me", 1)
        await store.renew("me", 0)
        assert await store.get(Lease, "me") is None
        await store.renew("heir", TTL)
        assert [c.run.epoch for c in await store.claim("heir", 1)] == [2]

    async def test_one_run_goes_to_one_of_many_claimants(self, store: Store) -> None:
        await committed(store, *(r.accept(r.run(n, f"s{n}")) for n in range(20)))
        owners = [f"o{n}" for n in range(10)]
        for owner in owners:
            await store.renew(owner, TTL)
        async with asyncio.TaskGroup() as tasks:
            claims = [tasks.create_task(store.claim(owner, 5)) for owner in owners]
        taken = [c.run.run_id for task in claims for c in task.result()]
        assert len(taken) == len(set(taken)) == 20

    async def test_timers_come_due_in_order_and_are_fired_once(
        self, store: Store, world: FakeWorld
    ) -> None:
        for n, after in enumerate((30, 10, 20)):
            timer = Timer(run_id=f"run_{n}", kind="deadline", due_at=world.time + after)
            await committed(store, Op(writes=(Insert(timer),)))
        assert await store.due() == []
        world.time += 20
        assert [timer.run_id for timer in await store.due()] == ["run_1", "run_2"]
        fire = Op(writes=(Delete(Timer, ("run_1", "deadline"), required=True),))
        outcomes = await store.commit(fire, fire)
        assert [type(outcome) for outcome in outcomes] == [Committed, Refused]


class TheKeeping:
    """What goes when it is old, and what never does."""

    async def test_old_deltas_go_and_the_rest_keeps_number_and_bytes(self, store: Store) -> None:
        old, fresh, live = (r.run(n, f"s{n}") for n in (1, 2, 3))
        for made in (old, fresh, live):
            await committed(store, r.accept(made), r.append(made, *r.deltas(300)), r.begin(made))
        await committed(store, r.end(old, at=1000), r.end(fresh, at=3000))
        before = await store.read(old.run_id, 0, 2000)
        assert (await store.trim(0, 2000)).deltas == 300
        after = await store.read(old.run_id, 0, 2000)
        assert [event.seq for event in after] == [1, 302, 303]
        assert set(after) <= set(before)
        assert (await stored(store, old)).trimmed is True
        assert len(await seqs(store, fresh)) == len(await seqs(store, live)) + 1 == 303
        assert (await store.trim(0, 2000)).deltas == 0

    async def test_no_number_is_given_again_after_its_event_went(self, store: Store) -> None:
        made = r.run(1)
        await committed(store, r.accept(made), r.end(made, at=1000), r.append(made, *r.deltas(3)))
        assert (await store.trim(0, 2000)).deltas == 3
        [late] = await committed(store, r.append(made, *r.deltas(1)))
        assert (late.head, await seqs(store, made)) == (6, [1, 2, 6])

    async def test_old_runs_go_whole(self, store: Store) -> None:
        old, open_one = r.run(1), r.run(2, "s2")
        timer = Timer(run_id=old.run_id, kind="deadline", due_at=1)
        cursor = Cursor(follower="f", run_id=old.run_id, seq=1, updated_at=1)
        asked = Invocation(run_id=old.run_id, role="user", content="hi")
        of_it = (r.message(1, run_id=old.run_id), r.key("k", old), timer, cursor, asked)
        await committed(store, r.accept(old, *map(Insert, of_it)), r.accept(open_one))
        await committed(store, r.end(old, at=1000))
        assert (await store.trim(1000, 0)).runs == 0, "not older than that"
        assert (await store.trim(1001, 0)).runs == 1
        assert await store.get(Run, old.run_id) is None
        assert await store.read(old.run_id, 0) == []
        for row in of_it:
            assert await store.count(type(row)) == 0, row
        assert await store.get(Session, "default", "s1") is None
        assert await store.get(Session, "default", "s2") is not None
        assert await store.get(Run, open_one.run_id) is not None

    async def test_a_backup_is_whole(self, store: Store, copy: Any) -> None:
        made = r.run(1)
        await committed(store, r.accept(made), r.append(made, *r.deltas(500)))
        async with copy(store) as other:
            assert await other.read(made.run_id, 0) == await store.read(made.run_id, 0)
            assert await stored(other, made) == await stored(store, made)

    async def test_the_store_says_how_it_is(self, store: Store) -> None:
        await store.probe()
        assert all(isinstance(value, int | float) for value in store.stats().values())


class StoreContract(TheLog, TheGuards, TheRoom, TheRecords, TheOwners, TheKeeping):
    """All of it: a driver's tests are a subclass and the fixtures `store`, `world` and `copy`."""
