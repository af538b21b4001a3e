"""What a crashed server leaves behind is ended or gone on with, as the agent's policy says."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from orchestrator.buses.local import LocalBus
from orchestrator.core.frames import Delta, Done, Frame
from orchestrator.core.records import Lease, Run
from orchestrator.core.states import RunState
from orchestrator.engine import Engine, EngineSettings, Invoke, Outside, Registration
from orchestrator.ports import AgentCall
from orchestrator.stores.sqlite import open_store
from orchestrator.testing.open_egress import OpenEgress
from orchestrator.testing.plain_box import PlainBox
from orchestrator.world import RealWorld

from .rig import ScriptedAgent, running, until

Frames = AsyncIterator[Sequence[Frame]]


async def hang(_: AgentCall) -> Frames:
    yield [Delta("lost")]
    await asyncio.Event().wait()


class Crash(Exception):
    """Ends an engine without letting it say goodbye."""


async def _crash_in_flight(path: Path, on_lost: str) -> tuple[Run, Run]:
    """Leave a RUNNING and a queued run behind, owned by an engine that is gone."""
    store = await open_store(f"file:{path}", world=RealWorld())
    agent = ScriptedAgent(hang)
    outside = Outside(
        store=store, bus=LocalBus(), world=RealWorld(), agents={"native": agent},
        egress=OpenEgress(), box=PlainBox(), signer=PlainBox(),
    )  # fmt: skip
    engine = Engine(outside, EngineSettings())
    await engine.agents.register(
        Registration(agent_id="demo", name="d", endpoint="http://a", on_lost=on_lost)
    )
    async with asyncio.TaskGroup() as tasks:
        dispatching = tasks.create_task(engine._dispatcher.run())
        invoke = Invoke(agent_id="demo", session_id="s1", content="hello")
        run, queued = [(await engine.runs.invoke(invoke)).run for _ in range(2)]
        await until(lambda: agent.open_now == 1)
        while (await store.get(Run, run.run_id)).head < 4:  # type: ignore[union-attr]
            await asyncio.sleep(0.001)
        dispatching.cancel()
    left = await store.get(Run, run.run_id)
    assert left is not None
    assert left.status is RunState.RUNNING
    assert left.owner is not None
    await store.close()
    return run, queued


async def test_a_lost_run_ends_and_its_session_goes_on(tmp_path: Path) -> None:
    lost, queued = await _crash_in_flight(tmp_path / "o.db", "fail")
    async with running(tmp_path / "o.db") as rig:
        ended = await rig.ended(lost)
        assert (ended.status, ended.error_code) == (
            RunState.FAILED,
            "orchestrator_restarted",
        )
        assert (await rig.ended(queued)).status is RunState.DONE
        assert len(await rig.store.find(Lease)) == 1


async def test_a_lost_run_goes_on_as_a_new_attempt_where_wanted(tmp_path: Path) -> None:
    lost, _ = await _crash_in_flight(tmp_path / "o.db", "retry")

    async def script(call: AgentCall) -> Frames:
        yield [Delta("found"), Done()]

    async with running(tmp_path / "o.db", script, known=True) as rig:
        run = await rig.ended(lost)
        log = await rig.log(run)
        retrying = [e for e in log if e["type"] == "agent_invoke_retrying"]
        assert len(retrying) == 1
        assert retrying[0]["payload"]["code"] == "orchestrator_restarted"
        assert retrying[0]["payload"]["discard_from_seq"] == 4
        assert (run.attempt, run.final_message) == (2, "found")
        assert run.epoch == 2
