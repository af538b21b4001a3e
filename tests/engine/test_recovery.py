"""The heir of a file takes what the dead left at once: a lock says that nobody else has it."""

from pathlib import Path

from orchestrator.core.records import Lease
from orchestrator.core.states import RunState
from orchestrator.engine.limits import LEASE_MS

from .rig import hang, running, until


async def test_the_heir_of_a_file_does_not_wait_for_the_lease_of_the_dead(tmp_path: Path) -> None:
    async with running(tmp_path / "o.db", hang) as rig:
        run = await rig.invoke()
        await until(lambda: rig.agent.open_now == 1)
        await rig.die(left_ms=1000 * LEASE_MS)
        left = await rig.stored(run)
        assert left.status is RunState.RUNNING
        assert await rig.store.get(Lease, left.owner) is not None
    async with running(tmp_path / "o.db", known=True) as rig:
        assert (await rig.ended(run)).epoch == 2
        assert left.owner not in [lease.owner for lease in await rig.store.find(Lease)]
