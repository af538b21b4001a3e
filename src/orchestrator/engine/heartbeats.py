"""Heartbeats of instances: taken in memory, written once a second, and lost in a crash."""

from typing import Final

from orchestrator.core.errors import AgentNotFound, NotFound, Unavailable
from orchestrator.core.ops import Op, Patch, Refused
from orchestrator.core.records import Agent, Instance
from orchestrator.core.wellness import DEFAULT
from orchestrator.engine.instances import Instances, Pool
from orchestrator.ports import Store, World

HEARTBEAT_S: Final = 30
"""How often an agent that sends heartbeats should send one."""
_AT_ONCE: Final = 1000


class Heartbeats:
    """Takes heartbeats of instances that are registered.

    That one was removed by another server is noticed when its heartbeat is written: the next one
    after that is refused.
    """

    def __init__(self, store: Store, world: World, instances: Instances) -> None:
        self._store = store
        self._world = world
        self._instances = instances
        self._beats: dict[tuple[str, str, str], int] = {}

    def take(self, tenant: str, agent_id: str, instance_id: str | None) -> bool:
        """Note that an instance lives, if it is known here; asks nobody."""
        pool = self._instances.pool((tenant, agent_id))
        if pool is None:
            return False
        name = named(pool, instance_id)
        place = pool.places.get(name)
        if place is None:
            return False
        self._beats[tenant, agent_id, name] = place.heard = self._world.now()
        return True

    async def hear(self, tenant: str, agent_id: str, instance_id: str | None) -> None:
        """Note that an instance lives; raises AgentNotFound, NotFound and Unavailable."""
        if self.take(tenant, agent_id, instance_id):
            return
        pool = await self._instances.read((tenant, agent_id))
        if pool.agent is None:
            raise AgentNotFound(f"agent {agent_id} not found")
        if not self.take(tenant, agent_id, instance_id):
            raise unknown(agent_id, instance_id)

    async def flush(self) -> None:
        """Write what has come since the last time; what was removed stays removed."""
        beats, self._beats = self._beats, {}
        keys = list(beats)
        try:
            while keys:
                part = keys[:_AT_ONCE]
                await self._written(part, beats)
                del keys[: len(part)]
        except Unavailable:
            self._beats = {key: beats[key] for key in keys} | self._beats
            raise

    async def _written(
        self, keys: list[tuple[str, str, str]], beats: dict[tuple[str, str, str], int]
    ) -> None:
        outcomes = await self._store.commit(*(self._op(key, beats[key]) for key in keys))
        for (tenant, agent_id, _), outcome in zip(keys, outcomes, strict=True):
            if isinstance(outcome, Refused):
                await self._instances.read((tenant, agent_id))

    def _op(self, key: tuple[str, str, str], at: int) -> Op:
        tenant, agent_id, name = key
        heard = {"last_heartbeat": at}
        pool = self._instances.pool((tenant, agent_id))
        place = pool.places.get(name) if pool is not None else None
        if place is not None and not place.row:  # a program of the version before registered it
            return Op(writes=(Patch(Agent, (tenant, agent_id), heard, required=True),))
        # The agent's own row is what a program of the version before looks at.
        own = Patch(Agent, (tenant, agent_id), heard, where={"instance_id": name})
        return Op(writes=(Patch(Instance, key, heard, required=True), own))


def named(pool: Pool, instance_id: str | None) -> str:
    """Return which instance is meant: without a name the default one, or the only one."""
    if instance_id is not None:
        return instance_id
    if len(pool.places) == 1:
        return next(iter(pool.places))
    return DEFAULT


def unknown(agent_id: str, instance_id: str | None) -> NotFound:
    """Return the error for an instance that an agent does not have."""
    if instance_id is None:
        return NotFound(f"agent {agent_id} has several instances: say which by instance_id")
    return NotFound(f"agent {agent_id} has no instance {instance_id[:80]!r}")
