"""Asks instances how they are: those that send no heartbeats, and ejected ones before a trial."""

import asyncio
from collections.abc import Callable
from typing import Final

from orchestrator.core.errors import AgentFailure, Unavailable
from orchestrator.core.records import Agent
from orchestrator.core.secret import Secret
from orchestrator.engine.instances import Instances, Place
from orchestrator.ports import AgentProbe, ProbeAnswer, Store, World
from orchestrator.telemetry import get_logger

log = get_logger(__name__)

PROBE_S: Final = 15.0
"""How often `/health` is asked where it exists."""
ABSENT_S: Final = 300.0
"""How often it is asked where it does not."""
AT_ONCE: Final = 64
JITTER: Final = 0.2
_TICK_S: Final = 1.0


class Prober:
    """Keeps asking for as long as the engine runs; what it hears goes to the instances."""

    def __init__(
        self,
        store: Store,
        world: World,
        instances: Instances,
        probe: AgentProbe,
        credential: Callable[[Agent], Secret | None],
    ) -> None:
        self._store = store
        self._world = world
        self._instances = instances
        self._probe = probe
        self._credential = credential
        self._due: dict[tuple[str, str, str], float] = {}
        self._asking: set[tuple[str, str, str]] = set()

    async def run(self) -> None:
        """Ask until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                for place in self._wanted():
                    self._asking.add(_key(place))
                    tasks.create_task(self._ask(place), name="probe")
                await self._world.sleep(_TICK_S)

    def _wanted(self) -> list[Place]:
        """Return whom to ask now, the longest overdue first, and forget who is gone."""
        now = self._world.monotonic()
        known, self._due = self._due, {}
        overdue = []
        for place in self._instances.places():
            key = _key(place)
            due = self._due[key] = known.get(key) or now + self._spread(PROBE_S)
            until = place.known.ejected_until
            if until is not None and not place.known.cleared:
                due = until
            elif place.heard or place.instance.last_heartbeat is not None:
                continue
            if due <= now and key not in self._asking and not place.instance.draining:
                overdue.append((due, place))
        overdue.sort(key=lambda pair: pair[0])
        return [place for _, place in overdue[: AT_ONCE - len(self._asking)]]

    def _spread(self, seconds: float) -> float:
        return seconds * (1 - JITTER + 2 * JITTER * self._world.noise(1)[0] / 256)

    async def _ask(self, place: Place) -> None:
        key = _key(place)
        try:
            answer = await self._answer(place)
        except Unavailable:
            return  # the store is away: asked again at the next look
        except Exception:
            log.exception("probe_crashed", agent_id=key[1], instance_id=key[2])
            answer = ProbeAnswer("unknown")
        finally:
            self._asking.discard(key)
        if answer is None:
            return
        self._instances.counts["probes"] += 1
        self._instances.counts["probes_failed"] += answer.status == "unhealthy"
        if answer.status != place.known.probed:
            log.info("instance_probed", agent_id=key[1], instance_id=key[2], status=answer.status)
        self._instances.learned(place, answer.status)
        after = ABSENT_S if answer.status == "unknown" else PROBE_S
        self._due[key] = self._world.monotonic() + self._spread(after)

    async def _answer(self, place: Place) -> ProbeAnswer | None:
        instance = place.instance
        agent = await self._store.get(Agent, instance.tenant, instance.agent_id, deciding=True)
        if agent is None:
            return None
        try:
            credential = self._credential(agent)
        except AgentFailure:
            credential = None  # its calls say so; that it lives can be seen without
        return await self._probe.probe(
            instance.endpoint,
            credential.reveal() if credential is not None else None,
            operator=instance.operator,
        )


def _key(place: Place) -> tuple[str, str, str]:
    instance = place.instance
    return (instance.tenant, instance.agent_id, instance.instance_id)
