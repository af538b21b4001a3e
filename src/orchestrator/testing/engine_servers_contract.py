"""What the engine keeps to when servers die: their heirs go on, and servers share a database."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec

from orchestrator.core.events import TERMINAL, LogEvent
from orchestrator.core.frames import Delta, Done
from orchestrator.core.records import Lease, Run
from orchestrator.core.states import RunState
from orchestrator.ports import AgentCall
from orchestrator.testing.engine_readers_contract import Seen
from orchestrator.testing.engine_rig import Frames, Place, Rig, hang, running, say, until


async def found(_: AgentCall) -> Frames:
    """Answer as the heir's agent."""
    yield [Delta("found"), Done()]


async def driven(rig: Rig, run: Run) -> None:
    """Wait until the first word of a run is on the disk."""
    await rig.once(run, lambda found: found.head > 3)


async def died(rig: Rig, run: Run) -> None:
    """Kill a server; what it drives stays RUNNING and its own."""
    left = await rig.stored(run)
    assert left.status is RunState.RUNNING
    await rig.die()
    assert await rig.store.get(Lease, left.owner) is not None, "it gave its lease up"


def dense(log: list[dict[str, Any]]) -> list[str]:
    """Return the types of a log that has no hole and ends once."""
    types = [event["type"] for event in log]
    assert [event["seq"] for event in log] == list(range(1, len(log) + 1))
    assert [name for name in types if name in TERMINAL] == types[-1:]
    return types


class TheHeirs:
    """What a server that died leaves behind is ended or gone on with, as the agent wants it.

    Nobody tells the store of the death, so the heir begins when the lease is over, or as soon as
    the store knows by itself that its holder is gone.
    """

    async def _lost(self, place: Place, **agent: Any) -> tuple[Run, Run]:
        """Leave a RUNNING and a queued run behind, owned by a server that is gone."""
        async with running(place, hang) as rig:
            await rig.register(**agent)
            lost, queued = await rig.invoke(), await rig.invoke("queued")
            await driven(rig, lost)
            await died(rig, lost)
        return lost, queued

    async def test_a_lost_run_ends_and_its_session_goes_on(self, place: Place) -> None:
        lost, queued = await self._lost(place)
        async with running(place, known=True) as rig:
            ended = await rig.ended(lost)
            assert (ended.status, ended.error_code) == (RunState.FAILED, "orchestrator_restarted")
            assert ended.epoch == 2, "its heir ended it"
            assert dense(await rig.log(lost))[-1] == "run_failed"
            assert (await rig.ended(queued)).status is RunState.DONE
            assert [call.run_id for call in rig.agent.calls] == [queued.run_id]

    async def test_a_lost_run_goes_on_as_a_new_attempt_where_wanted(self, place: Place) -> None:
        lost, queued = await self._lost(place, on_lost="retry")
        async with running(place, found, known=True) as rig:
            run = await rig.ended(lost)
            log = await rig.log(run)
            dense(log)
            retrying = [e for e in log if e["type"] == "agent_invoke_retrying"]
            assert len(retrying) == 1
            assert retrying[0]["payload"]["code"] == "orchestrator_restarted"
            assert retrying[0]["payload"]["discard_from_seq"] == 4
            assert (run.attempt, run.final_message, run.epoch) == (2, "found", 2)
            assert (await rig.ended(queued)).status is RunState.DONE

    async def test_children_of_the_lost_end_with_them(self, place: Place) -> None:
        async with running(place, hang) as rig:
            parent = await rig.invoke("parent")
            await driven(rig, parent)
            child = await rig.child(parent)
            await driven(rig, child)
            await died(rig, child)
        async with running(place, known=True) as rig:
            for run in (parent, child):
                assert (await rig.ended(run)).status is not RunState.DONE
                dense(await rig.log(run))
            assert rig.agent.calls == []


@asynccontextmanager
async def two(place: Place, script: Any = say, **agent: Any) -> AsyncIterator[tuple[Rig, Rig]]:
    """Run two servers on one database."""
    async with running(place, script) as one, running(place, script, known=True) as other:
        await one.register(**agent)
        yield one, other


async def driver(servers: tuple[Rig, Rig]) -> tuple[Rig, Rig]:
    """Wait until one of two drives the only run; return that one first."""
    one, other = servers
    await until(lambda: one.agent.open_now + other.agent.open_now == 1)
    return servers if one.agent.open_now else (other, one)


def opened(rig: Rig) -> float:
    """Return how many runs are open, as far as a server knows."""
    return rig.engine.stats()["runs_open"]


async def read(rig: Rig, run: Run, seen: list[LogEvent]) -> None:
    """Read a run to its end."""
    async with rig.engine.tails.run(run.run_id) as batches:
        async for batch in batches:
            seen += batch


async def succession(place: Place, leave: Callable[[Rig, Run], Awaitable[None]]) -> None:
    """Let a server leave in the midst of a run, beside another one that goes on with it."""
    begun, now = asyncio.Event(), asyncio.Event()

    async def first() -> Run:
        async with running(place, hang) as rig:
            await rig.register(on_lost="retry")
            run = await rig.invoke()
            await driven(rig, run)
            begun.set()
            await now.wait()
            await leave(rig, run)
        return run

    async with asyncio.TaskGroup() as tasks:
        leaving = tasks.create_task(first())
        await begun.wait()
        async with running(place, found, known=True) as other:
            now.set()
            run = await other.ended(await leaving)
            assert dense(await other.log(run)).count("agent_invoke_retrying") == 1
            assert (run.attempt, run.final_message, run.epoch) == (2, "found", 2)


class SharedEngineContract:
    """Two servers on one database; for stores that several servers may open at once."""

    async def test_a_run_of_one_is_read_at_the_other_byte_for_byte(self, place: Place) -> None:
        heard, seen = asyncio.Event(), list[LogEvent]()

        async def script(_: AgentCall) -> Frames:
            yield [Delta("one ☃")]
            await heard.wait()
            yield [Delta("two"), Done()]

        async with asyncio.timeout(30), two(place, script) as servers:
            run = await servers[0].invoke()
            driving, other = await driver(servers)
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(read(other, run, seen))
                await until(lambda: len(seen) == 4)
                heard.set()
            assert seen == [*await driving.store.read(run.run_id, 0)]
            assert seen[-1].type == "run_done"

    async def test_a_session_is_followed_at_the_other(self, place: Place) -> None:
        seen = Seen()
        async with asyncio.timeout(30), two(place) as (one, other):
            runs = [await one.invoke(session_id="s") for _ in range(2)]
            await seen.read_until_ended(other, runs[0])
            runs.append(await one.invoke(session_id="s"))
            await seen.read_until_ended(other, runs[2])
            assert seen.seqs == {run.run_id: list(range(1, 8)) for run in runs}

    async def test_a_cancel_at_the_other_closes_the_agents_stream(self, place: Place) -> None:
        async with two(place, hang) as servers:
            run = await servers[0].invoke()
            driving, other = await driver(servers)
            await other.engine.runs.cancel(run.run_id, "enough")
            await until(lambda: driving.agent.closed == [run.run_id])
            assert (await other.types(run))[-1] == "run_cancelled"
            await until(lambda: driving.engine.in_flight == 0)

    async def test_both_count_what_is_open_whoever_took_or_ended_it(self, place: Place) -> None:
        async with two(place, hang) as (one, other):
            runs = [await one.invoke(session_id=f"s{n}") for n in range(6)]
            await until(lambda: one.agent.open_now + other.agent.open_now == len(runs))
            await until(lambda: opened(one) == opened(other) == len(runs))
            for run in runs[:4]:
                await other.engine.runs.cancel(run.run_id, "enough")
            await until(lambda: opened(one) == opened(other) == len(runs) - 4)

    async def test_one_request_id_is_one_run_at_both(self, place: Place) -> None:
        async with two(place) as servers:
            async with asyncio.TaskGroup() as tasks:
                asked = [
                    tasks.create_task(servers[n % 2].invoke(request_id="r1")) for n in range(100)
                ]
            assert len({task.result().run_id for task in asked}) == 1
            await servers[0].ended(asked[0].result())
            assert sum(len(rig.agent.calls) for rig in servers) == 1

    async def test_a_session_keeps_its_order_over_both(self, place: Place) -> None:
        order: list[str] = []

        async def script(call: AgentCall) -> Frames:
            order.append(str(call.content))
            yield [Done(f"re {call.content}")]

        async with two(place, script) as servers:
            runs = [await servers[n % 2].invoke(f"a{n}") for n in range(8)]
            for run in runs:
                assert (await servers[0].ended(run)).status is RunState.DONE
            assert order == [f"a{n}" for n in range(8)]
            calls = [call for rig in servers for call in rig.agent.calls]
            last = next(call for call in calls if call.content == "a7")
            expected = [c for n in range(7) for c in (f"a{n}", f"re a{n}")]
            assert [m["content"] for m in last.messages] == expected

    async def test_each_run_is_driven_by_one(self, place: Place) -> None:
        async with two(place) as servers:
            async with asyncio.TaskGroup() as tasks:
                asked = [
                    tasks.create_task(servers[n % 2].invoke(session_id=f"s{n % 20}"))
                    for n in range(60)
                ]
            for task in asked:
                ended = await servers[0].ended(task.result())
                assert (ended.status, ended.epoch, ended.attempt) == (RunState.DONE, 1, 1)
            called = [call.run_id for rig in servers for call in rig.agent.calls]
            assert sorted(called) == sorted(task.result().run_id for task in asked)
            assert all(rig.agent.calls for rig in servers), "both took part"

    async def test_what_a_server_had_begun_that_died_goes_on_at_the_other(
        self, place: Place
    ) -> None:
        await succession(place, died)

    async def test_what_a_server_had_begun_that_leaves_goes_on_at_the_other(
        self, place: Place
    ) -> None:
        async def leaves(rig: Rig, _: Run) -> None:
            rig.engine.drain()

        await succession(place, leaves)

    async def test_a_server_without_its_lease_writes_nothing_more(self, place: Place) -> None:
        taken, tried = asyncio.Event(), asyncio.Event()

        async def zombies(_: AgentCall) -> Frames:
            yield [Delta("mine")]
            await taken.wait()
            yield [Delta("a zombie's")]
            tried.set()
            yield [Done()]

        async def heirs(_: AgentCall) -> Frames:
            yield [Delta("fou")]
            await tried.wait()
            yield [Delta("nd"), Done()]

        async with running(place, zombies) as zombie:
            await zombie.register(on_lost="retry")
            run = await zombie.invoke()
            await driven(zombie, run)
            async with running(place, heirs, known=True) as heir:
                await zombie.lapse()
                await until(lambda: heir.agent.calls)
                assert zombie.agent.open_now == 1, "nobody has told it"
                taken.set()
                ended = await heir.ended(run)
                await until(lambda: zombie.agent.closed)
                assert (ended.epoch, ended.final_message) == (2, "found")
                log = await heir.log(run)
                assert dense(log)[-1] == "run_done"
                assert b"zombie" not in msgspec.json.encode(log)
