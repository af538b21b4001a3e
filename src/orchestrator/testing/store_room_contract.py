"""What every store must keep to where room is asked for: what there is goes to who comes first."""

import asyncio

from msgspec.structs import replace

from orchestrator.core.ops import Committed, Insert, Refused
from orchestrator.core.records import IdempotencyKey, Run
from orchestrator.core.states import RunState
from orchestrator.ports import Store
from orchestrator.testing import records as r
from orchestrator.testing.records import committed, stored


class TheRoom:
    """A run is created only where there is room, however many ask at once."""

    async def test_one_of_many_gets_an_idle_session(self, store: Store) -> None:
        paused, beside, foreign = r.run(1), r.run(2, parallel=True), r.run(3, tenant="other")
        await committed(store, *map(r.accept, (paused, beside, foreign)))
        child = r.run(4, parent_run_id=paused.run_id)
        pause = r.append(paused, status=RunState.PAUSED_WAITING_APPROVAL)
        await committed(store, pause, r.accept(child), r.begin(child))
        runs = [r.run(n) for n in range(10, 60)]
        async with asyncio.TaskGroup() as tasks:
            ops = [replace(r.accept(made), room=0) for made in runs]
            tries = [tasks.create_task(store.commit(op)) for op in ops]
        outcomes = [task.result()[0] for task in tries]
        [winner] = [n for n, o in enumerate(outcomes) if isinstance(o, Committed)]
        holder = await stored(store, runs[winner])
        refused = [outcome for outcome in outcomes if isinstance(outcome, Refused)]
        assert refused == [Refused("full", holder)] * 49
        assert await store.count(Run) == 5
        await committed(store, r.end(runs[winner]), replace(r.accept(r.run(70)), room=0))

    async def test_a_queue_takes_as_many_as_there_is_room_for(self, store: Store) -> None:
        first, *queued = [r.run(n) for n in range(40)]
        await committed(store, r.accept(first), r.begin(first))
        async with asyncio.TaskGroup() as tasks:
            ops = [replace(r.accept(made), room=7) for made in queued]
            tries = [tasks.create_task(store.commit(op)) for op in ops]
        outcomes = [task.result()[0] for task in tries]
        assert sum(isinstance(outcome, Committed) for outcome in outcomes) == 7
        waiting = await store.find(Run, order="key", limit=8)
        assert [o.record for o in outcomes if isinstance(o, Refused)] == [waiting[7]] * 32
        elsewhere = replace(r.accept(r.run(50, "s2")), room=0)
        assert isinstance((await store.commit(elsewhere))[0], Committed)
        again = await store.commit(r.end(first), replace(r.accept(r.run(51)), room=7))
        assert [type(outcome) for outcome in again] == [Committed, Committed]

    async def test_parallel_runs_are_counted_by_themselves(self, store: Store) -> None:
        await committed(store, r.accept(r.run(1)), r.accept(r.run(2)))
        beside = [r.run(n, parallel=True) for n in range(10, 30)]
        async with asyncio.TaskGroup() as tasks:
            ops = [replace(r.accept(made), room=2) for made in beside]
            tries = [tasks.create_task(store.commit(op)) for op in ops]
        outcomes = [task.result()[0] for task in tries]
        assert sum(isinstance(outcome, Committed) for outcome in outcomes) == 3
        oldest, _, third = await store.find(Run, ("parallel", "=", True), order="key", limit=3)
        assert [o.record for o in outcomes if isinstance(o, Refused)] == [third] * 17
        await committed(store, r.end(oldest), replace(r.accept(r.run(50, parallel=True)), room=2))

    async def test_children_are_counted_by_parent_and_while_they_are_open(
        self, store: Store
    ) -> None:
        parent, other = r.run(1), r.run(2)
        await committed(store, *map(r.accept, (parent, other)))
        children = [r.run(n, parent_run_id=parent.run_id) for n in range(10, 40)]
        async with asyncio.TaskGroup() as tasks:
            ops = [replace(r.accept(made), room=4) for made in children]
            tries = [tasks.create_task(store.commit(op)) for op in ops]
        made = [
            child
            for child, task in zip(children, tries, strict=True)
            if isinstance(task.result()[0], Committed)
        ]
        assert len(made) == 5
        late = replace(r.accept(r.run(50, parent_run_id=parent.run_id)), room=4)
        await committed(
            store,
            r.begin(made[0]),
            r.append(made[1], status=RunState.PAUSED_WAITING_TOOL),
            replace(r.accept(r.run(51, parent_run_id=other.run_id)), room=0),
        )
        [outcome] = await store.commit(late)
        assert isinstance(outcome, Refused)
        assert (outcome.why, outcome.record) == ("full", await stored(store, made[4]))
        await committed(store, r.end(made[1]), late)

    async def test_where_there_is_no_room_nothing_is_left_behind(self, store: Store) -> None:
        first, second = r.run(1), r.run(2)
        await committed(store, r.accept(first), r.append(first, *r.deltas(2)))
        op = replace(r.accept(second, Insert(r.key("k", second))), room=0)
        assert await store.commit(r.append(first, *r.deltas(1)), op) == [
            Committed(4, 1, (await stored(store, first)).key, await store.read(first.run_id, 3)),
            Refused("full", await stored(store, first)),
        ]
        assert await store.count(IdempotencyKey) == 0
        assert await store.get(Run, second.run_id) is None
        assert await store.read(second.run_id, 0) == []
