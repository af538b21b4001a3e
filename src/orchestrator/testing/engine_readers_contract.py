"""What the engine keeps to on every store and bus: who reads or is told misses nothing."""

import asyncio
from collections.abc import Sequence

from orchestrator.core.batch import Batch
from orchestrator.core.events import TERMINAL, LogEvent
from orchestrator.core.frames import Delta, Done
from orchestrator.core.records import Run
from orchestrator.core.states import RunState
from orchestrator.engine import SessionEvent, SessionItem
from orchestrator.ports import AgentCall
from orchestrator.testing.engine_rig import Frames, Place, Rig, ScriptedIngress, running, until
from orchestrator.testing.simulator.chance import Chance


async def chatty(_: AgentCall) -> Frames:
    """Say two hundred words."""
    for n in range(200):
        yield [Delta(f"{n} ")]
        if n % 10 == 0:
            await asyncio.sleep(0)
    yield [Done()]


async def whole(rig: Rig, run: Run) -> list[LogEvent]:
    """Return a run's log as it is replayed."""
    return [*await rig.store.read(run.run_id, 0, 100_000)]


async def follow(rig: Rig, run: Run, seen: list[LogEvent], *, sink: bool) -> None:
    """Read a run to its end, with or without a sink that takes at once what comes."""

    def take(batch: Batch) -> bool:
        seen.extend(batch)
        return True

    async with rig.engine.tails.run(run.run_id, 0, take if sink else None) as batches:
        async for batch in batches:
            seen += batch


async def hasty(rig: Rig, run: Run, chance: Chance) -> list[LogEvent]:
    """Read a run's tail, hanging up at random and resuming after the last event seen."""
    seen: list[LogEvent] = []
    while True:
        patience = chance.whole(1, 39)
        async with rig.engine.tails.run(run.run_id, seen[-1].seq if seen else 0) as batches:
            async for batch in batches:
                cut = chance.whole(1, len(batch))
                seen += batch[:cut]
                patience -= 1
                if cut < len(batch) or patience == 0:
                    break
            else:
                return seen


class Seen:
    """What one reader of a session has seen, over all its connections."""

    def __init__(self) -> None:
        self.seqs: dict[str, list[int]] = {}
        self.ended: set[str] = set()
        self.cursor: str | None = None

    def take(self, items: Sequence[SessionItem]) -> None:
        """Note events in the order in which they came."""
        for item in items:
            assert isinstance(item, SessionEvent), "nothing was lost"
            self.seqs.setdefault(item.run_id, []).append(item.event.seq)
            self.cursor = item.cursor
            if item.event.type in TERMINAL:
                self.ended.add(item.run_id)

    async def read_until_ended(self, rig: Rig, run: Run) -> None:
        """Go on from the cursor, and hang up when the end of a run has come."""
        async with rig.engine.tails.session("default", "s", self.cursor) as batches:
            async for batch in batches:
                self.take(batch)
                if run.run_id in self.ended:
                    return


class TheReaders:
    """A tail replays, then follows: whenever it starts, it sees the log exactly once."""

    async def test_a_live_reader_sees_the_replay_byte_for_byte(self, place: Place) -> None:
        heard = asyncio.Event()

        async def script(_: AgentCall) -> Frames:
            yield [Delta("one ☃")]
            await heard.wait()  # nobody who hears only at the end gets here
            for n in range(50):
                yield [Delta(f"{n}\u2028")]
            yield [Done()]

        seen: list[list[LogEvent]] = [[], []]
        async with running(place, script) as rig:
            run = await rig.invoke()
            async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
                for number, one in enumerate(seen):
                    tasks.create_task(follow(rig, run, one, sink=bool(number)))
                await until(lambda: all(len(one) == 4 for one in seen))
                assert (await rig.stored(run)).status is RunState.RUNNING
                heard.set()
            log = await whole(rig, run)
            assert seen == [log, log]
            assert [event.seq for event in log] == list(range(1, 3 + 51 + 2 + 1))
        async with running(place) as rig:
            assert await whole(rig, run) == log, "also after a restart"

    async def test_readers_that_hang_up_at_random_get_exactly_the_log(self, place: Place) -> None:
        async with running(place, chatty) as rig:
            runs = [await rig.invoke(session_id=f"s{n}") for n in range(8)]
            async with asyncio.timeout(30), asyncio.TaskGroup() as tasks:
                readers = [
                    (run, tasks.create_task(hasty(rig, run, Chance(str(seed)))))
                    for seed, run in enumerate(runs * 2)
                ]
            for run, reader in readers:
                assert reader.result() == await whole(rig, run)
                assert len(reader.result()) > 200

    async def test_a_run_resumes_from_any_cursor(self, place: Place) -> None:
        async with asyncio.timeout(30), running(place) as rig:
            run = await rig.ended(await rig.invoke())
            log = await whole(rig, run)
            for after in range(run.head + 1):
                async with rig.engine.tails.run(run.run_id, after) as batches:
                    found = [event async for batch in batches for event in batch]
                assert found == log[after:]
            async with rig.engine.tails.run(run.run_id, run.head + 7) as batches:
                assert [batch async for batch in batches] == []

    async def test_who_waits_for_a_run_is_given_its_end(self, place: Place) -> None:
        go_on = asyncio.Event()

        async def script(_: AgentCall) -> Frames:
            yield [Delta("word")]
            await go_on.wait()
            yield [Done()]

        async with running(place, script) as rig:
            run = await rig.invoke()
            assert (await rig.engine.runs.wait(run.run_id, 0.05)).status is not RunState.DONE
            async with asyncio.TaskGroup() as tasks:
                waiting = tasks.create_task(rig.engine.runs.wait(run.run_id, 20))
                await until(lambda: rig.agent.open_now == 1)
                go_on.set()
            assert waiting.result().status is RunState.DONE


class TheSessionStreams:
    """A session's stream shows each run of it whole, once, over any number of connections."""

    async def test_a_session_stream_resumes_from_any_cursor(self, place: Place) -> None:
        seen, children, chance = Seen(), set[str](), Chance("7")

        async def parent_last(call: AgentCall) -> Frames:
            async for frames in chatty(call):
                if call.content == "m0" and isinstance(frames[-1], Done):
                    await until(lambda: children & seen.ended)  # or it is cancelled with its parent
                yield frames

        async with asyncio.timeout(30), running(place, parent_last) as rig:
            runs = [await rig.invoke(f"m{n}", session_id="s") for n in range(3)]
            await until(lambda: rig.agent.open_now == 1)
            children.add((await rig.child(runs[0])).run_id)
            while len(seen.ended) < 4:
                async with rig.engine.tails.session("default", "s", seen.cursor) as batches:
                    async for batch in batches:
                        cut = chance.whole(1, len(batch))
                        seen.take(batch[:cut])
                        if cut < len(batch) or chance.hit(0.1) or len(seen.ended) == 4:
                            break
            assert seen.seqs.keys() == {run.run_id for run in runs} | children
            for run_id, seqs in seen.seqs.items():
                log = await rig.store.read(run_id, 0, 1000)
                assert seqs == [event.seq for event in log]
                assert len(log) > 200

    async def test_a_session_resumed_when_all_is_over_shows_no_run_twice(
        self, place: Place
    ) -> None:
        go_on, seen = asyncio.Event(), Seen()

        async def parent_last(call: AgentCall) -> Frames:
            yield [Delta("word")]
            if call.content == "parent":
                await go_on.wait()
            yield [Done()]

        async with asyncio.timeout(30), running(place, parent_last) as rig:
            parent = await rig.invoke("parent", session_id="s")
            await until(lambda: rig.agent.open_now == 1)
            child = await rig.child(parent)
            await seen.read_until_ended(rig, child)
            go_on.set()
            await rig.ended(parent)
            last = await rig.ended(await rig.invoke("last", session_id="s"))
            await seen.read_until_ended(rig, last)
            for run_id, seqs in seen.seqs.items():
                assert seqs == [event.seq for event in await rig.store.read(run_id, 0)]
            assert seen.ended == {parent.run_id, child.run_id, last.run_id}

    async def test_a_session_stream_goes_on_over_new_runs(self, place: Place) -> None:
        runs: list[Run] = []
        seen = Seen()
        async with asyncio.timeout(30), running(place) as rig:
            async with rig.engine.tails.session("default", "s") as batches:
                runs.append(await rig.invoke(session_id="s"))
                async for batch in batches:
                    seen.take(batch)
                    if len(seen.ended) == len(runs) == 1:
                        runs.append(await rig.invoke(session_id="s"))
                    if len(seen.ended) > 1:
                        break
            assert list(seen.seqs) == [run.run_id for run in runs]
            for run in runs:
                assert seen.seqs[run.run_id] == [event.seq for event in await whole(rig, run)]


async def talk(_: AgentCall) -> Frames:
    """Say twenty words."""
    for n in range(20):
        yield [Delta(str(n))]
        await asyncio.sleep(0)
    yield [Done(usage={"tokens": 20})]


TOLD = [1, *range(4, 24), 25]
"""Which events of such a run an ingress is told of."""


class TheIngress:
    """The ingress gets every event in order, whenever it is there, and never slows a run."""

    async def test_events_arrive_in_order_and_under_their_live_names(self, place: Place) -> None:
        for batch in (False, True):
            ingress = ScriptedIngress(batch=batch)
            async with running(place, talk, push=ingress) as rig:
                run = await rig.ended(await rig.invoke())
                await until(lambda: ingress.complete([run.run_id]))  # noqa: B023  # awaited within the iteration
            seen = ingress.events[run.run_id]
            assert [e["type"] for e in seen] == ["run_started", *["delta"] * 20, "done"]
            assert [e["text"] for e in seen if e["type"] == "delta"] == [str(n) for n in range(20)]
            assert [e["seq"] for e in seen] == TOLD
            assert seen[-1]["usage"] == {"tokens": 20}

    async def test_an_absent_ingress_catches_up_when_it_returns(self, place: Place) -> None:
        ingress = ScriptedIngress()
        ingress.away = True
        async with running(place, talk, push=ingress) as rig:
            runs = [await rig.ended(await rig.invoke(session_id=f"s{n}")) for n in range(5)]
            await until(lambda: ingress.refused > 0)
            assert ingress.requests < 20
            ingress.away = False
            await until(lambda: ingress.complete([run.run_id for run in runs]))
        for run in runs:
            assert [e["seq"] for e in ingress.events[run.run_id]] == TOLD

    async def test_a_hung_ingress_holds_no_run_up(self, place: Place) -> None:
        ingress = ScriptedIngress()
        ingress.hangs = True
        async with running(place, talk, push=ingress) as rig:
            await rig.ended(await rig.invoke())
            await until(lambda: ingress.requests > 0)
            await rig.ended(await rig.invoke())

    async def test_what_was_delivered_before_a_restart_is_not_sent_for_ever(
        self, place: Place
    ) -> None:
        ingress = ScriptedIngress()
        async with running(place, talk, push=ingress) as rig:
            first = await rig.ended(await rig.invoke())
            await until(lambda: ingress.complete([first.run_id]))
        ingress.away = True
        async with running(place, talk, push=ingress) as rig:
            second = await rig.ended(await rig.invoke())
        ingress.away = False
        async with running(place, talk, push=ingress):
            await until(lambda: ingress.complete([second.run_id]))
        for run in (first, second):
            assert [e["seq"] for e in ingress.events[run.run_id]] == TOLD
