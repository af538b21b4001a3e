"""A bus that brings nothing: everything is found by looking, a little later."""

import asyncio
from pathlib import Path

from orchestrator.buses.local import LocalBus
from orchestrator.buses.null import NullBus
from orchestrator.core.decide import Cancel
from orchestrator.core.states import RunState
from orchestrator.engine.ledger import Ledger
from orchestrator.world import RealWorld

from .rig import hang, running, until


async def test_an_end_that_another_server_committed_reaches_the_agent(tmp_path: Path) -> None:
    async with asyncio.timeout(30), running(tmp_path / "o.db", hang, bus=NullBus) as rig:
        run = await rig.invoke()
        await until(lambda: rig.agent.open_now == 1)
        other = Ledger(rig.store, LocalBus(), RealWorld())
        await other.execute(await other.load(run.run_id), Cancel(reason="enough"))
        await until(lambda: rig.agent.open_now == 0)
        assert (await rig.engine.runs.get(run.run_id)).status is RunState.CANCELLED
        queued = await rig.invoke()  # and its session goes on
        await until(lambda: rig.agent.open_now == 1)
        await rig.engine.runs.cancel(queued.run_id, "enough")
