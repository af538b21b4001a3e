"""What the engine keeps to on every store and bus: runs that call agents of their own."""

import asyncio
from typing import Final

from orchestrator.core.errors import (
    AgentCycle,
    AgentFailure,
    IdempotencyKeyReused,
    InvalidRequest,
    QueueFull,
)
from orchestrator.core.frames import Delta, Done
from orchestrator.core.records import IdempotencyKey, Message, Retry, Run, Timer
from orchestrator.core.states import RunState
from orchestrator.engine.limits import CHILDREN_MAX, DEPTH_MAX
from orchestrator.ports import AgentCall
from orchestrator.testing.engine_rig import (
    Frames,
    Place,
    Rig,
    hang,
    refused,
    running,
    until,
)

TOLD: Final = "agent_called_child"


async def parent_of(rig: Rig) -> Run:
    """Return a run whose agent is at work."""
    parent = await rig.invoke("parent")
    return await rig.once(parent, lambda run: run.status is RunState.RUNNING)


async def below(rig: Rig, parent: Run, agent_id: str = "below", **fields: str) -> Run:
    """Return a child whose agent is at work."""
    child = await rig.invoke("child", agent_id=agent_id, parent_run_id=parent.run_id, **fields)
    return await rig.once(child, lambda run: run.status is RunState.RUNNING)


async def tried(rig: Rig, parent: Run) -> Run | QueueFull:
    """Return a child, or why there is none."""
    try:
        return await rig.invoke(agent_id="below", parent_run_id=parent.run_id)
    except QueueFull as full:
        return full


class TheFamilies:
    """Runs call other agents: bounded in number and depth, never in a ring, all ended as one."""

    async def test_a_ring_of_agents_is_refused_with_its_path(self, place: Place) -> None:
        async with running(place, hang) as rig:
            for name in "abc":
                await rig.register(name)
            top = await rig.invoke("top", agent_id="a")
            top = await rig.once(top, lambda run: run.status is RunState.RUNNING)
            middle = await below(rig, top, "b")
            for parent, agent_id, path in (
                (top, "a", ["a", "a"]),
                (middle, "b", ["b", "b"]),
                (middle, "a", ["a", "b", "a"]),
            ):
                with refused(AgentCycle, " → ".join(path)):
                    await rig.invoke("x", agent_id=agent_id, parent_run_id=parent.run_id)
            bottom = await below(rig, middle, "c")
            await below(rig, top, "c")
            tree = await rig.engine.runs.tree(top.run_id)
            assert [child.run.agent_id for child in tree.children] == ["b", "c"]
            assert tree.children[0].children[0].run.run_id == bottom.run_id
            await rig.engine.runs.cancel(top.run_id, "enough")
            await until(lambda: rig.agent.open_now == 0, timeout_s=1)

    async def test_a_tree_is_bounded_in_depth(self, place: Place) -> None:
        async with running(place, hang) as rig:
            run = await parent_of(rig)
            for _ in range(DEPTH_MAX - 1):
                run = await rig.child(run)
                run = await rig.once(run, lambda found: found.status is RunState.RUNNING)
            with refused(InvalidRequest, f"{DEPTH_MAX} deep"):
                await rig.child(run)

    async def test_open_children_are_bounded_however_many_ask(self, place: Place) -> None:
        async with running(place, hang) as rig:
            await rig.register("below")
            parent = await parent_of(rig)
            async with asyncio.TaskGroup() as tasks:
                tries = [tasks.create_task(tried(rig, parent)) for _ in range(CHILDREN_MAX + 20)]
            told = [task.result() for task in tries]
            children = [one for one in told if isinstance(one, Run)]
            assert len(children) == CHILDREN_MAX
            await rig.engine.runs.cancel(children[0].run_id, "room")
            assert isinstance(await tried(rig, parent), Run)
            assert isinstance(await tried(rig, parent), QueueFull)
            log = await rig.log(parent)
            named = [e["payload"]["child_run_id"] for e in log if e["type"] == TOLD]
            assert len(named) == len(set(named)) == CHILDREN_MAX + 1
            await rig.engine.runs.cancel(parent.run_id, "all")
            for child in children:
                assert (await rig.ended(child)).status is RunState.CANCELLED
            await until(lambda: rig.agent.open_now == 0)
            assert await rig.store.find(Timer) == []

    async def test_a_child_does_not_wait_for_its_session(self, place: Place) -> None:
        async def script(call: AgentCall) -> Frames:
            if call.agent_id == "demo":
                asked = {"agent_id": "below", "parent_run_id": call.run_id}
                child = await rigs[0].invoke("child", **asked)
                yield [Delta(str((await rigs[0].ended(child)).final_message))]
            yield [Done(None if call.agent_id == "demo" else "from below")]

        rigs: list[Rig] = []
        async with running(place, script) as rig:
            rigs.append(rig)
            await rig.register("below", max_concurrency=1)
            runs = [await rig.invoke(f"m{n}", session_id=f"s{n % 3}") for n in range(9)]
            for run in runs:
                assert (await rig.ended(run)).final_message == "from below"
            said = [message.role for message in await rig.store.find(Message)]
            assert (said.count("user"), said.count("assistant")) == (9, 9)

    async def test_a_key_is_one_child_in_every_attempt(self, place: Place) -> None:
        children: list[str] = []

        async def script(call: AgentCall) -> Frames:
            if call.agent_id == "below":
                yield [Done(f"answer of {call.run_id}")]
                return
            asked = {"agent_id": "below", "parent_run_id": call.run_id, "request_id": "k"}
            async with asyncio.TaskGroup() as tasks:
                both = [tasks.create_task(rigs[0].invoke("child", **asked)) for _ in range(2)]
            children.extend(task.result().run_id for task in both)
            answer = (await rigs[0].ended(both[0].result())).final_message
            if call.attempt < 3:
                raise AgentFailure("agent_eof", "gone")
            with refused(IdempotencyKeyReused):
                await rigs[0].invoke("another", **asked)
            yield [Done(answer)]

        rigs: list[Rig] = []
        async with running(place, script) as rig:
            rigs.append(rig)
            await rig.register(retry=Retry(max_attempts=3, backoff_ms=1))
            await rig.register("below")
            run = await rig.ended(await rig.invoke())
            assert (run.attempt, run.final_message) == (3, f"answer of {children[0]}")
            assert children == children[:1] * 6
            assert [call.agent_id for call in rig.agent.calls].count("below") == 1
            assert (await rig.types(run)).count(TOLD) == 1

    async def test_who_hangs_up_frees_the_key_unless_another_waits(self, place: Place) -> None:
        async with running(place, hang) as rig:
            await rig.register("below")
            parent = await parent_of(rig)
            first = await below(rig, parent, request_id="k")
            runs = rig.engine.runs
            with runs.line(first.run_id):
                await runs.hung_up(first.run_id)
                assert (await rig.stored(first)).status is RunState.RUNNING
                assert (await below(rig, parent, request_id="k")).run_id == first.run_id
            await runs.hung_up(first.run_id)
            ended = await rig.stored(first)
            assert (ended.status, ended.error_message) == (RunState.CANCELLED, "the caller hung up")
            second = await below(rig, parent, request_id="k")
            assert second.run_id != first.run_id
            await runs.cancel(second.run_id, "by somebody else")
            await runs.hung_up(second.run_id)
            third = await rig.invoke(
                "child", agent_id="below", parent_run_id=parent.run_id, request_id="k"
            )
            assert third.run_id == second.run_id, "what was cancelled otherwise is the answer"
            assert await rig.store.count(IdempotencyKey) == 1

    async def test_a_tree_shows_level_by_level_what_there_is_room_for(self, place: Place) -> None:
        async with running(place, hang) as rig:
            for name in ("below", "deep"):
                await rig.register(name)
            parent = await parent_of(rig)
            children = [await below(rig, parent) for _ in range(3)]
            for child in children[:2]:
                await below(rig, child, "deep")
            runs = rig.engine.runs
            whole = await runs.tree(parent.run_id, limit=6)
            assert [node.run.run_id for node in whole.children] == [run.run_id for run in children]
            assert [len(node.children) for node in whole.children] == [1, 1, 0]
            assert not any(node.has_more for node in (whole, *whole.children))
            part = await runs.tree(parent.run_id, limit=5)
            assert [len(node.children) for node in part.children] == [1, 0, 0]
            assert (part.has_more, [node.has_more for node in part.children]) == (False, [True] * 3)
            least = await runs.tree(parent.run_id, limit=3)
            assert [node.has_more for node in (least, *least.children)] == [True] * 3
            page = await runs.find(parent_run_id=parent.run_id, limit=2)
            assert [run.run_id for run in page.items] == [run.run_id for run in children[:0:-1]]
            assert page.next_cursor
            await runs.cancel(parent.run_id, "enough")
