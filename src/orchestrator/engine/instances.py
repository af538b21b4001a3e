"""The instances of agents as this server knows them: who gets the next call, and who must wait.

Rows are read again at most once a second for an agent in use, and at once after a change made here.
What calls have shown of an instance is kept until it registers again.
"""

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Final, TypeAlias

import msgspec
from msgspec.structs import replace

from orchestrator.core import wellness
from orchestrator.core.errors import AgentFailure, QueueFull, Unavailable
from orchestrator.core.ops import Delete, Op, Patch
from orchestrator.core.records import Agent, Instance
from orchestrator.core.wellness import Known
from orchestrator.engine.clocks import Switch
from orchestrator.engine.limits import AGENT_QUEUE_MAX, INSTANCES_MAX
from orchestrator.engine.patience import patiently
from orchestrator.ports import Store, World
from orchestrator.telemetry import get_logger

log = get_logger(__name__)

FRESH_S: Final = 1.0
"""How old what is known of an agent in use may be."""
AGENTS_MAX: Final = 10_000
"""Agents that one list shows, and instances that are looked after."""
Key: TypeAlias = tuple[str, str]
"""Tenant and agent id."""


class Place(msgspec.Struct, eq=False):
    """One instance: its row, what calls have shown of it, and how many are `open` here.

    `heard` is the latest heartbeat that came here; without a `row` of its own it is the agent's.
    """

    instance: Instance
    known: Known = wellness.UNKNOWN
    open: int = 0
    trying: bool = False
    heard: int = 0
    row: bool = True

    def now(self) -> Instance:
        """Return the instance with the last heartbeat that is known of."""
        if self.heard <= (self.instance.last_heartbeat or 0):
            return self.instance
        return replace(self.instance, last_heartbeat=self.heard)


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """An instance as this server sees it; `ejected_until` is milliseconds UTC."""

    instance: Instance
    status: str
    in_flight: int = 0
    ejected_until: int | None = None
    last_error: str | None = None


class Choice(msgspec.Struct, frozen=True, eq=False):
    """What the choice asks of a place."""

    place: Place
    name: str
    status: str
    ejected: bool
    failing: bool
    trial: bool
    open: int
    most: int | None


class Hold(msgspec.Struct, frozen=True, eq=False):
    """One call's hold on a place; an ejected one is held by one `trial` at a time."""

    place: Place
    trial: bool


class _Waiter(msgspec.Struct, eq=False):
    tried: Sequence[str]
    found: "asyncio.Future[Hold]"


class Pool:
    """The instances of one agent, and the runs that wait for one of them, first come first."""

    __slots__ = ("agent", "places", "read_at", "reading", "turn", "waiters")

    def __init__(self) -> None:
        self.agent: Agent | None = None
        self.places: dict[str, Place] = {}
        self.read_at = float("-inf")
        self.reading = False
        self.turn = 0
        self.waiters: deque[_Waiter] = deque()

    @property
    def idle(self) -> bool:
        """Return whether nobody uses it."""
        return not self.waiters and not any(place.open for place in self.places.values())

    def update(self, agent: Agent | None, rows: Sequence[Instance]) -> None:
        """Take what the store knows; who has registered again begins anew.

        Without the `agent` it is read when there is a call for it.
        """
        self.agent = agent
        named = {row.instance_id for row in rows}
        found = wellness.merged(agent, rows) if agent is not None else rows
        old, self.places = self.places, {}
        for instance in found:
            name = instance.instance_id
            place = old.get(name) or Place(instance)
            if place.instance.updated_at != instance.updated_at:
                place.known = wellness.UNKNOWN
            place.instance, place.row = instance, name in named
            self.places[name] = place


class Lease:
    """A call's hold on an instance; say how the call ended before letting go of it."""

    __slots__ = ("_instances", "_pool", "agent", "place")

    def __init__(self, instances: "Instances", pool: Pool, place: Place, agent: Agent) -> None:
        self._instances = instances
        self._pool = pool
        self.place = place
        self.agent = _at(agent, place.instance)
        """The agent as it is at this instance."""

    @property
    def name(self) -> str:
        """Return the instance's id."""
        return self.place.instance.instance_id

    def ended(self, failure: AgentFailure | None) -> None:
        """Note how the call ended; a failure that was not the instance's says nothing."""
        if failure is None:
            self.place.known = wellness.succeeded(self.place.known)
        elif wellness.is_sick(failure):
            self._instances.blame(self._pool, self.place, f"{failure.code}: {failure.message}")


class Instances:
    """Hands out instances to calls; the only one who knows which are busy, sick or on trial.

    With `probing`, an ejected instance is asked for its health before it is tried again.
    """

    def __init__(self, store: Store, world: World, *, probing: bool = False) -> None:
        self._store = store
        self._world = world
        self._probing = probing
        self._pools: dict[Key, Pool] = {}
        self.queue_max = AGENT_QUEUE_MAX
        self.counts: Counter[str] = Counter(
            ejections=0, trials=0, retries=0, queue_waits=0, probes=0, probes_failed=0
        )

    # ------------------------------------------------------------ calls

    def admit(self, agent: Agent) -> None:
        """Raise QueueFull when too many runs wait for this agent already."""
        pool = self._pools.get((agent.tenant, agent.agent_id))
        if pool is not None and len(pool.waiters) >= self.queue_max:
            raise QueueFull(
                f"{self.queue_max} runs wait for a free instance of agent {agent.agent_id}; "
                "try again later, add an instance, or raise its max_concurrency",
                retry_after=1,
            )

    @asynccontextmanager
    async def lease(
        self, agent: Agent, tried: Sequence[str], switch: Switch
    ) -> AsyncIterator[Lease]:
        """Hand out an instance, waiting for a free one; one that was `tried` only if it must be.

        Raises Stopped when the switch is thrown meanwhile.
        """
        pool = await self._fresh(agent)
        hold = None if pool.waiters else self._taken(pool, tried)
        if hold is None:
            hold = await self._wait(pool, tried, switch)
        try:
            yield Lease(self, pool, hold.place, agent)
        finally:
            self._give_back(pool, hold)

    async def _fresh(self, agent: Agent) -> Pool:
        """Return the agent's pool, read again when it is older than a second or than `agent`."""
        key = (agent.tenant, agent.agent_id)
        pool = self._pools.get(key)
        if pool is None or not self._is_fresh(pool, agent):
            pool = await patiently(self._world, self.read, key)
        if not pool.places:  # removed meanwhile: the run goes on with what it began with
            pool.update(agent, ())
        return pool

    def _is_fresh(self, pool: Pool, agent: Agent) -> bool:
        known = pool.agent
        if known is None or known.updated_at < agent.updated_at:
            return False
        return pool.reading or self._world.monotonic() - pool.read_at < FRESH_S

    def _taken(self, pool: Pool, tried: Sequence[str]) -> Hold | None:
        place = self._chosen(pool, tried)
        if place is None:
            return None
        trial = place.known.ejected_until is not None and not place.trying
        place.open += 1
        if trial:
            place.trying = True
            self.counts["trials"] += 1
        return Hold(place, trial)

    def _chosen(self, pool: Pool, tried: Sequence[str]) -> Place | None:
        places = pool.places
        if len(places) == 1:  # most agents
            (place,) = places.values()
            most = place.instance.max_concurrency
            return place if most is None or place.open < most else None
        pool.turn += 1
        choice = wellness.choose(list(self._choices(pool)), tried, pool.turn)
        return choice.place if choice is not None else None

    def _choices(self, pool: Pool) -> Iterator[Choice]:
        now, now_ms = self._world.monotonic(), self._world.now()
        for name, place in pool.places.items():
            known, instance = place.known, place.now()
            until = known.ejected_until
            over = until is not None and (known.cleared or (not self._probing and now >= until))
            yield Choice(
                place=place,
                name=name,
                status=wellness.health(instance, known, now_ms, now),
                ejected=until is not None and (not over or place.trying),
                failing=known.streak >= wellness.STREAK,
                trial=over and not instance.draining,
                open=place.open,
                most=instance.max_concurrency,
            )

    async def _wait(self, pool: Pool, tried: Sequence[str], switch: Switch) -> Hold:
        self.counts["queue_waits"] += 1
        waiter = _Waiter(tried, asyncio.get_running_loop().create_future())
        pool.waiters.append(waiter)
        try:
            async with switch.guard({}):
                return await waiter.found
        except BaseException:
            if waiter.found.done() and not waiter.found.cancelled():
                self._give_back(pool, waiter.found.result())
            raise
        finally:
            if waiter in pool.waiters:
                pool.waiters.remove(waiter)

    def _give_back(self, pool: Pool, hold: Hold) -> None:
        hold.place.open -= 1
        if hold.trial:
            hold.place.trying = False
        if pool.waiters:
            self._serve(pool)

    def _serve(self, pool: Pool) -> None:
        """Give what is free to those who wait, in their order."""
        for waiter in list(pool.waiters):
            if waiter.found.done():
                continue
            hold = self._taken(pool, waiter.tried)
            if hold is not None:
                pool.waiters.remove(waiter)
                waiter.found.set_result(hold)
            elif not waiter.tried:
                return  # nothing is free for anybody; who avoids some may wait for others

    def blame(self, pool: Pool, place: Place, error: str) -> None:
        """Note a failure that speaks against an instance, which may eject it."""
        others = [one for one in self._choices(pool) if one.place is not place]
        last = not any(one.status != "draining" and not one.ejected for one in others)
        before = place.known.ejections
        noise = self._world.noise(1)[0] / 256
        now = self._world.monotonic()
        place.known = wellness.failed(place.known, error, now, noise, last=last)
        self._note(place, before)

    def _note(self, place: Place, ejections: int) -> None:
        known, instance = place.known, place.instance
        if known.ejections > ejections:
            self.counts["ejections"] += 1
            log.warning(
                "instance_ejected",
                agent_id=instance.agent_id,
                instance_id=instance.instance_id,
                seconds=round((known.ejected_until or 0) - self._world.monotonic(), 1),
                times=known.ejections,
            )

    # ------------------------------------------------------------ rows

    async def read(self, key: Key) -> Pool:
        """Read an agent and its instances from the store; one that is gone is forgotten."""
        pool = self._pools.get(key) or Pool()
        asked_at, pool.reading = self._world.monotonic(), True
        try:
            agent = await self._store.get(Agent, *key, deciding=True)
            rows = await self._rows(key) if agent is not None else []
        finally:
            pool.reading = False
        if agent is None:  # who waits in it is served by what there was
            self._pools.pop(key, None)
            return pool
        pool = self._pools.setdefault(key, pool)
        if pool.read_at <= asked_at:
            pool.update(agent, rows)
            pool.read_at = asked_at
            self._serve(pool)
        return pool

    async def _rows(self, key: Key, *, deciding: bool = True) -> list[Instance]:
        tenant, agent_id = key
        return await self._store.find(
            Instance,
            ("tenant", "=", tenant),
            ("agent_id", "=", agent_id),
            limit=INSTANCES_MAX,
            deciding=deciding,
        )

    async def rows_of(self, agent: Agent) -> list[Instance]:
        """Return an agent's instances as they are on the disk now, by name."""
        rows = await self._rows((agent.tenant, agent.agent_id), deciding=False)
        return wellness.merged(agent, rows)

    async def seen(self, agent: Agent) -> list[Seen]:
        """Return an agent's instances, as on the disk now and as this server sees them."""
        return [self._seen(instance) for instance in await self.rows_of(agent)]

    async def seen_of_all(self, tenant: str, agents: Iterable[Agent]) -> dict[str, list[Seen]]:
        """Return the same for many agents of a tenant."""
        rows: dict[str, list[Instance]] = {}
        for row in await self._store.find(Instance, ("tenant", "=", tenant), limit=AGENTS_MAX):
            rows.setdefault(row.agent_id, []).append(row)
        return {
            agent.agent_id: [
                self._seen(one) for one in wellness.merged(agent, rows.get(agent.agent_id, ()))
            ]
            for agent in agents
        }

    def _seen(self, instance: Instance) -> Seen:
        pool = self._pools.get((instance.tenant, instance.agent_id))
        place = pool.places.get(instance.instance_id) if pool is not None else None
        now_ms, now = self._world.now(), self._world.monotonic()
        if place is None:
            place = Place(instance)
        elif place.instance.updated_at != instance.updated_at:  # registered again elsewhere
            place = Place(instance, open=place.open)
        else:
            place = replace(place, instance=instance)
        until = place.known.ejected_until
        return Seen(
            instance=place.now(),
            status=wellness.health(place.now(), place.known, now_ms, now),
            in_flight=place.open,
            ejected_until=None if until is None else now_ms + round(max(0.0, until - now) * 1000),
            last_error=place.known.last_error,
        )

    async def changed(self, tenant: str, agent_id: str) -> None:
        """Look at an agent again that was changed here, at once or as soon as the store answers.

        It drains when all its instances do, also when they were told so at the same moment.
        """
        key = (tenant, agent_id)
        if (pool := self._pools.get(key)) is not None:
            pool.read_at = float("-inf")
        with suppress(Unavailable):
            pool = await self.read(key)
            agent, all_drain = pool.agent, all(p.instance.draining for p in pool.places.values())
            if agent is not None and all_drain and not agent.draining:
                since = {"updated_at": agent.updated_at}
                await self._store.commit(Op(writes=(Patch(Agent, key, {"draining": True}, since),)))

    async def bury(self, key: Key) -> None:
        """Forget what is left of an agent that is gone.

        A program of the version before removes the agent's own row alone.
        """
        rows = await self._rows(key)
        if not rows or await self._store.get(Agent, *key, deciding=True) is not None:
            return
        for row in rows:
            one, seen = (*key, row.instance_id), {"updated_at": row.updated_at}
            still = Patch(Instance, one, seen, where=seen, required=True)
            await self._store.commit(Op(writes=(still, Delete(Instance, one))))

    def pool(self, key: Key) -> Pool | None:
        """Return what is known of an agent without asking anybody."""
        return self._pools.get(key)

    # ------------------------------------------------------------ upkeep

    async def tick(self) -> None:
        """Look again at agents that runs wait for: others may have made room."""
        for key, pool in list(self._pools.items()):
            if pool.waiters:
                await self.read(key)

    async def survey(self) -> list[Instance]:
        """Take what the store knows of all instances, and return that."""
        asked_at = self._world.monotonic()
        rows: dict[Key, list[Instance]] = {}
        found = await self._store.find(Instance, limit=AGENTS_MAX, deciding=True)
        for row in found:
            rows.setdefault((row.tenant, row.agent_id), []).append(row)
        for key, own in rows.items():
            pool = self._pools.setdefault(key, Pool())
            if pool.read_at < asked_at:
                pool.update(None, own)
        for key, pool in list(self._pools.items()):
            if key not in rows and pool.read_at < asked_at and pool.idle:
                del self._pools[key]
        return found

    def places(self) -> Iterator[Place]:
        """Return every instance that is known of."""
        for pool in self._pools.values():
            yield from pool.places.values()

    def learned(self, place: Place, status: str) -> None:
        """Note what an instance's `/health` said."""
        before, noise = place.known.ejections, self._world.noise(1)[0] / 256
        place.known = wellness.probed(place.known, status, self._world.monotonic(), noise)
        self._note(place, before)

    def stats(self) -> dict[str, float]:
        """Return counters, and how many instances there are by status."""
        now_ms, now = self._world.now(), self._world.monotonic()
        found = Counter(wellness.health(p.now(), p.known, now_ms, now) for p in self.places())
        stats = {f"agent_{name}_total": float(n) for name, n in self.counts.items()}
        stats["agent_queued"] = float(sum(len(pool.waiters) for pool in self._pools.values()))
        return stats | {f"instances_{name}": float(found[name]) for name in wellness.STATUSES}


def _at(agent: Agent, instance: Instance) -> Agent:
    """Return an agent as it is at one of its instances."""
    if (agent.endpoint, agent.operator, agent.version) == (
        instance.endpoint,
        instance.operator,
        instance.version,
    ):
        return agent
    return replace(
        agent,
        endpoint=instance.endpoint,
        operator=instance.operator,
        version=instance.version,
        instance_id=instance.instance_id,
    )
