"""A bus that brings nothing: everything is found by looking, a little later."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from orchestrator.buses.local import LocalBus
from orchestrator.buses.null import NullBus
from orchestrator.core.decide import Cancel
from orchestrator.core.frames import Delta, Done, Frame
from orchestrator.core.states import RunState
from orchestrator.engine.ledger import Ledger
from orchestrator.ports import AgentCall, PushAnswer
from orchestrator.world import RealWorld

from .rig import Rig, running, until


async def words(call: AgentCall) -> AsyncIterator[Sequence[Frame]]:
    """Say a word each tenth of a second."""
    for number in range(20):
        yield [Delta(f"{number} ")]
        await asyncio.sleep(0.1)
    yield [Done()]


async def hang(call: AgentCall) -> AsyncIterator[Sequence[Frame]]:
    """Say a word, and stay."""
    yield [Delta("a word")]
    await asyncio.Event().wait()


class Ingress:
    """Notes what is pushed."""

    def __init__(self) -> None:
        self.events = 0

    async def push(self, tenant: str, session_id: str, events: Sequence[bytes]) -> PushAnswer:
        self.events += len(events)
        return PushAnswer(batch=True)


async def read(rig: Rig, run_id: str) -> list[int]:
    found: list[int] = []
    async with rig.engine.tails.run(run_id) as batches:
        async for batch in batches:
            found += batch.seqs
    return found


async def test_readers_get_the_whole_log_on_a_silent_bus(tmp_path: Path) -> None:
    ingress = Ingress()
    async with (
        asyncio.timeout(30),
        running(tmp_path / "o.db", words, bus=NullBus(), push=ingress) as rig,
    ):
        run = await rig.invoke()
        async with asyncio.TaskGroup() as tasks:
            readers = [tasks.create_task(read(rig, run.run_id)) for _ in range(3)]
        assert all(reader.result() == list(range(1, 26)) for reader in readers)
        # run_started, 20 words, done: what an ingress is told of.
        await until(lambda: ingress.events == 22)


async def test_a_session_stream_goes_on_over_new_runs(tmp_path: Path) -> None:
    async with asyncio.timeout(30), running(tmp_path / "o.db", bus=NullBus()) as rig:
        seen: list[tuple[str, int]] = []
        runs: list[str] = []
        ended: list[str] = []
        async with rig.engine.tails.session("default", "s1") as batches:
            runs.append((await rig.invoke()).run_id)
            async for batch in batches:
                seen += [(item.run_id, item.event.seq) for item in batch]
                ended += [item.run_id for item in batch if item.event.type == "run_done"]
                if len(ended) == len(runs) == 1:
                    runs.append((await rig.invoke()).run_id)
                if len(ended) > 1:
                    break
    for run_id in runs:
        seqs = [seq for name, seq in seen if name == run_id]
        assert seqs == list(range(1, len(seqs) + 1))
    assert ended == runs


async def test_an_end_that_another_server_committed_reaches_the_agent(tmp_path: Path) -> None:
    async with asyncio.timeout(30), running(tmp_path / "o.db", hang, bus=NullBus()) as rig:
        run = await rig.invoke()
        await until(lambda: rig.agent.open_now == 1)
        other = Ledger(rig.store, LocalBus(), RealWorld())
        await other.execute(await other.load(run.run_id), Cancel(reason="enough"))
        await until(lambda: rig.agent.open_now == 0)
        assert (await rig.engine.runs.get(run.run_id)).status is RunState.CANCELLED
        queued = await rig.invoke()  # and its session goes on
        await until(lambda: rig.agent.open_now == 1)
        await rig.engine.runs.cancel(queued.run_id, "enough")
