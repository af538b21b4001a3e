"""A tail replays, then follows: whatever the moment it starts, it sees the log exactly once."""

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from orchestrator.core.events import TERMINAL, LogEvent
from orchestrator.core.frames import Delta, Done, Frame
from orchestrator.core.records import Run
from orchestrator.engine import SessionEvent
from orchestrator.ports import AgentCall

from .rig import Rig, running, until

Frames = AsyncIterator[Sequence[Frame]]


async def chatty(_: AgentCall) -> Frames:
    for n in range(200):
        yield [Delta(f"{n} ")]
        if n % 10 == 0:
            await asyncio.sleep(0)
    yield [Done()]


async def _read(rig: Rig, run_id: str, seed: int) -> list[LogEvent]:
    """Read a run's tail, hanging up at random and resuming after the last event seen."""
    rnd = random.Random(seed)  # a seeded test
    seen: list[LogEvent] = []
    while True:
        patience = rnd.randrange(1, 40)
        async with rig.engine.tails.run(run_id, seen[-1].seq if seen else 0) as batches:
            async for batch in batches:
                cut = rnd.randrange(1, len(batch) + 1)
                seen += batch[:cut]
                patience -= 1
                if cut < len(batch) or patience == 0:
                    break
            else:
                return seen


async def test_readers_that_hang_up_at_random_get_exactly_the_log(
    tmp_path: Path,
) -> None:
    async with running(tmp_path / "o.db", chatty) as rig:
        runs = [await rig.invoke(session_id=f"s{n}") for n in range(8)]
        async with asyncio.TaskGroup() as tasks:
            readers = [
                (run, tasks.create_task(_read(rig, run.run_id, seed)))
                for seed, run in enumerate(runs * 4)
            ]
        for run, reader in readers:
            assert reader.result() == await rig.store.read(run.run_id, 0, 100_000)


async def test_a_tail_past_the_end_ends_at_once(tmp_path: Path) -> None:
    async with running(tmp_path / "o.db") as rig:
        run = await rig.ended(await rig.invoke())
        async with rig.engine.tails.run(run.run_id, run.head) as batches:
            assert [batch async for batch in batches] == []


class Seen:
    """What one reader of a session has seen, over all its connections."""

    def __init__(self) -> None:
        self.seqs: dict[str, list[int]] = {}
        self.ended: set[str] = set()
        self.cursor: str | None = None

    def take(self, items: Sequence[SessionEvent]) -> None:
        for item in items:
            self.seqs.setdefault(item.run_id, []).append(item.event.seq)
            self.cursor = item.cursor
            if item.event.type in TERMINAL:
                self.ended.add(item.run_id)


async def test_a_session_stream_resumes_from_any_cursor(tmp_path: Path) -> None:
    seen, children = Seen(), set[str]()

    async def parent_last(call: AgentCall) -> Frames:
        async for frames in chatty(call):
            if call.content == "m0" and isinstance(frames[-1], Done):
                await until(lambda: children & seen.ended)  # or it is cancelled with its parent
            yield frames

    async with running(tmp_path / "o.db", parent_last) as rig:
        runs = [await rig.invoke(f"m{n}", session_id="s") for n in range(3)]
        await until(lambda: rig.agent.open_now == 1)
        children.add((await rig.invoke("c", parent_run_id=runs[0].run_id)).run_id)
        rnd = random.Random(7)  # a seeded test
        while len(seen.ended) < 4:
            async with rig.engine.tails.session("default", "s", seen.cursor) as batches:
                async for batch in batches:
                    cut = rnd.randrange(1, len(batch) + 1)
                    seen.take(batch[:cut])
                    if cut < len(batch) or rnd.random() < 0.1 or len(seen.ended) == 4:
                        break
        assert seen.seqs.keys() == {run.run_id for run in runs} | children
        for run_id, seqs in seen.seqs.items():
            log = await rig.store.read(run_id, 0, 1000)
            assert seqs == [event.seq for event in log]
            assert len(log) > 200


async def test_a_session_resumed_when_all_is_over_shows_no_run_twice(tmp_path: Path) -> None:
    go_on = asyncio.Event()

    async def parent_last(call: AgentCall) -> Frames:
        yield [Delta("word")]
        if call.content == "parent":
            await go_on.wait()
        yield [Done()]

    seen = Seen()
    async with running(tmp_path / "o.db", parent_last) as rig:

        async def read_until_ended(run: Run) -> None:
            async with rig.engine.tails.session("default", "s", seen.cursor) as batches:
                async for batch in batches:
                    seen.take(batch)
                    if run.run_id in seen.ended:
                        return

        parent = await rig.invoke("parent", session_id="s")
        await until(lambda: rig.agent.open_now == 1)
        child = await rig.invoke("child", parent_run_id=parent.run_id)
        await read_until_ended(child)
        go_on.set()
        await rig.ended(parent)
        last = await rig.ended(await rig.invoke("last", session_id="s"))
        await read_until_ended(last)
        for run_id, seqs in seen.seqs.items():
            assert seqs == [event.seq for event in await rig.store.read(run_id, 0)]
        assert seen.ended == {parent.run_id, child.run_id, last.run_id}
