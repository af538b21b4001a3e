"""What holds for a run whatever it is kept in; the rest is the engine's contract for any store."""

import asyncio
from pathlib import Path

from orchestrator.core.frames import Delta, Done
from orchestrator.core.records import Timeouts
from orchestrator.core.states import RunState
from orchestrator.ports import AgentCall
from orchestrator.testing.engine_rig import Frames

from .rig import running, say, until


async def test_comments_keep_an_idle_agent_alive(tmp_path: Path) -> None:
    async def script(_: AgentCall) -> Frames:
        for _silence in range(10):
            await asyncio.sleep(0.05)
            yield []
        yield [Done("still here")]

    async with running(tmp_path / "o.db", script) as rig:
        await rig.register(timeouts=Timeouts(idle_ms=200))
        assert (await rig.ended(await rig.invoke())).final_message == "still here"


async def test_an_unexpected_error_still_ends_the_run(tmp_path: Path) -> None:
    async def script(_: AgentCall) -> Frames:
        yield [Delta("x")]
        raise ZeroDivisionError

    async with running(tmp_path / "o.db", script) as rig:
        assert (await rig.ended(await rig.invoke())).error_code == "internal_error"


async def test_an_agent_has_at_most_its_own_concurrency(tmp_path: Path) -> None:
    async def script(_: AgentCall) -> Frames:
        await asyncio.sleep(0.01)
        yield [Done("x")]

    async with running(tmp_path / "o.db", script) as rig:
        await rig.register(max_concurrency=2)
        runs = [await rig.invoke(session_id=f"s{n}") for n in range(8)]
        for run in runs:
            await rig.ended(run)
        assert rig.agent.most_open == 2


async def test_a_run_that_ends_while_the_engine_gives_up_on_it_is_no_ones_end(
    tmp_path: Path,
) -> None:
    async def script(_: AgentCall) -> Frames:
        yield [Delta("one")]
        try:
            await asyncio.Event().wait()
        finally:
            raise RuntimeError("the client itself breaks")

    async with running(tmp_path / "o.db", script) as rig:
        run = await rig.invoke()
        await until(lambda: rig.agent.open_now == 1)
        await rig.engine.runs.cancel(run.run_id, "meanwhile")
        await until(lambda: rig.engine.in_flight == 0)
        assert (await rig.types(run))[-1] == "run_cancelled"
        rig.agent.script = say
        assert (await rig.ended(await rig.invoke())).status is RunState.DONE
