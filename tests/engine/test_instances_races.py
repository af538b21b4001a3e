"""Instances that go at the same moment, and what programs of the version before leave of them."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from orchestrator.core.errors import AgentDraining, AgentNotFound
from orchestrator.core.ops import Delete, Insert, Op, Outcome, Refused
from orchestrator.core.records import Agent, AuditEntry, Instance

from .rig import Rig, until
from .test_instances import answers, register, statuses, three

KEY = ("default", "demo")


class Gate:
    """Holds back the first `held` commits until all have come, and whoever is `expected` too."""

    def __init__(self, rig: Rig, held: int, expected: int = 0) -> None:
        self.refused = 0
        self._commit: Callable[..., Awaitable[list[Outcome]]] = rig.store.commit
        self.barrier = asyncio.Barrier(held + expected)
        self._held = held
        rig._mortal.commit = self.commit  # type: ignore[attr-defined]  # in place of the store's

    async def commit(self, *ops: Op) -> list[Outcome]:
        """Commit when all have decided what."""
        if self._held and any(_decides(op) for op in ops):
            self._held -= 1
            await self.barrier.wait()
        outcomes = await self._commit(*ops)
        self.refused += sum(isinstance(one, Refused) for one in outcomes)
        return outcomes


def _decides(op: Op) -> bool:
    """Return whether this removes or drains, which is decided on what was read before."""
    actions = [w.record.action for w in op.writes
               if isinstance(w, Insert) and isinstance(w.record, AuditEntry)]  # fmt: skip
    return not {"agent.remove", "agent.drain"}.isdisjoint(actions)


async def test_the_last_two_removed_at_once_leave_no_agent(tmp_path: Path) -> None:
    async with three(tmp_path) as (rig, _):
        agents = rig.engine.agents
        await agents.remove("demo", instance_id="a")
        gate = Gate(rig, 2)
        async with asyncio.TaskGroup() as tasks:
            for name in ("b", "c"):
                tasks.create_task(agents.remove("demo", instance_id=name))
        assert gate.refused == 1
        with pytest.raises(AgentNotFound):
            await agents.get("demo")
        assert await rig.store.count(Instance) == await rig.store.count(Agent) == 0
        removals = await rig.store.find(AuditEntry, ("action", "=", "agent.remove"))
        assert len(removals) == 4  # that of the rig's own agent, and each of the three once


async def test_one_that_registers_while_the_last_is_removed_stays(tmp_path: Path) -> None:
    async with three(tmp_path) as (rig, _):
        agents = rig.engine.agents
        await agents.remove("demo", instance_id="a")
        await agents.remove("demo", instance_id="b")
        gate = Gate(rig, 1, expected=1)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(agents.remove("demo", instance_id="c"))
            await until(lambda: gate.barrier.n_waiting == 1)
            await register(rig, "d")
            await gate.barrier.wait()
        assert gate.refused == 1
        assert await statuses(rig) == {"d": "unknown"}
        assert await answers(rig, 2) == ["d", "d"]


async def test_one_that_drains_still_does_when_another_is_removed(tmp_path: Path) -> None:
    async with three(tmp_path) as (rig, _):
        agents = rig.engine.agents
        await agents.drain("demo", instance_id="b")
        await agents.remove("demo", instance_id="c")
        assert await statuses(rig) == {"a": "unknown", "b": "draining"}
        assert await answers(rig, 3) == ["a"] * 3
        await agents.remove("demo", instance_id="a")
        assert await statuses(rig) == {"b": "draining"}
        with pytest.raises(AgentDraining):
            await rig.invoke()
        await register(rig, "e")
        assert await answers(rig, 2) == ["e", "e"]


async def test_all_told_to_drain_at_once_let_the_agent_drain(tmp_path: Path) -> None:
    async with three(tmp_path) as (rig, _):
        agents = rig.engine.agents
        await agents.remove("demo", instance_id="c")
        gate = Gate(rig, 2)
        async with asyncio.TaskGroup() as tasks:
            for name in ("a", "b"):
                tasks.create_task(agents.drain("demo", instance_id=name))
        assert gate.refused == 0
        assert set((await statuses(rig)).values()) == {"draining"}
        with pytest.raises(AgentDraining):
            await rig.invoke()


async def test_an_agent_that_an_older_program_removed_leaves_no_instances(tmp_path: Path) -> None:
    async with three(tmp_path) as (rig, _):
        await rig.store.commit(Op(writes=(Delete(Agent, KEY),)))
        assert await rig.store.count(Instance) == 3
        await register(rig, "new")
        assert await statuses(rig) == {"new": "unknown"}
        await rig.store.commit(Op(writes=(Delete(Agent, KEY),)))
        rig.engine._upkeep._sweeps = 0  # an hour later
        await rig.engine._upkeep.tick(sweep=True)
        assert await rig.store.count(Instance) == 0
