"""A tail replays, then follows: whatever the moment it starts, it sees the log exactly once."""

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from orchestrator.core.events import TERMINAL, LogEvent
from orchestrator.core.frames import Delta, Done, Frame
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


async def test_a_session_stream_resumes_from_any_cursor(tmp_path: Path) -> None:
    child_ended = asyncio.Event()

    async def parent_last(call: AgentCall) -> Frames:
        async for frames in chatty(call):
            if call.content == "m0" and isinstance(frames[-1], Done):
                await child_ended.wait()  # or it would be cancelled with its parent
            yield frames

    async with running(tmp_path / "o.db", parent_last) as rig:
        runs = [await rig.invoke(f"m{n}", session_id="s") for n in range(3)]
        await until(lambda: rig.agent.open_now == 1)
        child = await rig.invoke("c", parent_run_id=runs[0].run_id)
        wanted = {run.run_id: 0 for run in [*runs, child]}
        seen: dict[str, list[int]] = {run_id: [] for run_id in wanted}
        cursor, rnd = None, random.Random(7)  # a seeded test
        ended: set[str] = set()
        while len(ended) < 4:
            async with rig.engine.tails.session("default", "s", cursor) as batches:
                async for batch in batches:
                    cut = rnd.randrange(1, len(batch) + 1)
                    for item in batch[:cut]:
                        seen[item.run_id].append(item.event.seq)
                        cursor = item.cursor
                        if item.event.type in TERMINAL:
                            ended.add(item.run_id)
                    if child.run_id in ended:
                        child_ended.set()
                    if cut < len(batch) or rnd.random() < 0.1 or len(ended) == 4:
                        break
        for run_id, seqs in seen.items():
            log = await rig.store.read(run_id, 0, 1000)
            assert seqs == [event.seq for event in log]
            assert len(log) > 200
