"""The engine as one object: what callers use, what runs behind it, how it starts and drains."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import msgspec

from orchestrator.core.errors import OrchestratorError
from orchestrator.engine.access import Access
from orchestrator.engine.audit import Audit
from orchestrator.engine.dispatcher import Dispatcher
from orchestrator.engine.heartbeats import Heartbeats
from orchestrator.engine.instances import Instances
from orchestrator.engine.intake import Intake
from orchestrator.engine.keys import Keys
from orchestrator.engine.ledger import Ledger
from orchestrator.engine.limits import EngineSettings
from orchestrator.engine.lookout import Lookout
from orchestrator.engine.patience import patiently
from orchestrator.engine.prober import Prober
from orchestrator.engine.pusher import Pusher
from orchestrator.engine.registry import Registry
from orchestrator.engine.runner import Runner
from orchestrator.engine.runs import Runs
from orchestrator.engine.sessions import Sessions
from orchestrator.engine.tail import Tails
from orchestrator.engine.tokens import Tokens
from orchestrator.engine.transcript import Calls
from orchestrator.engine.upkeep import Upkeep
from orchestrator.ports import (
    AgentClient,
    AgentProbe,
    Bus,
    Egress,
    Identity,
    PushClient,
    SecretBox,
    Signer,
    Store,
    World,
)

_PROBE_EVERY_S = 1.0
_STOP_GRACE_S = 5.0
"""How long stopped runs may take to write their end after the drain time is over."""


class Outside(msgspec.Struct, frozen=True, kw_only=True):
    """The drivers behind the engine's ports.

    `push` is None when no ingress is to be told, `probe` when no agent is to be asked for its
    health.
    """

    store: Store
    bus: Bus
    world: World
    agents: Mapping[str, AgentClient]
    egress: Egress
    box: SecretBox
    signer: Signer
    identity: Identity | None = None
    push: PushClient | None = None
    probe: AgentProbe | None = None


class Health(msgspec.Struct, frozen=True):
    """Whether the store commits; `problems` says what is wrong."""

    healthy: bool
    draining: bool
    problems: list[str]


class Engine:
    """Runs agents. What has a name without a leading underscore is its public face."""

    def __init__(self, outside: Outside, settings: EngineSettings) -> None:
        self._outside = outside
        self._settings = settings
        store, world = outside.store, outside.world
        self._ledger = Ledger(store, outside.bus, world)
        self.audit = Audit(store, world)
        self.keys = Keys(
            store, world, self.audit,
            others_know_admins=settings.access.admin_key is not None
            or outside.identity is not None,
        )  # fmt: skip
        self.tokens = Tokens(world, outside.signer, self.audit)
        self.access = Access(
            store, world, self.keys, self.tokens, self.audit, settings.access, outside.identity
        )
        self._ledger.on_ended(self.access.on_ended)
        calls = Calls(store, world, outside.box, self.tokens, settings)
        self._instances = Instances(store, world, probing=outside.probe is not None)
        heartbeats = Heartbeats(store, world, self._instances)
        runner = Runner(self._ledger, outside.agents, calls, self.audit, self._instances, settings)
        self._dispatcher = Dispatcher(self._ledger, runner, settings)
        self._intake = Intake(self._ledger, settings, self._dispatcher.wake, self._instances.admit)
        self._upkeep = Upkeep(self._ledger, self._instances, heartbeats, settings)
        self._prober = self._make_prober(calls)
        drives = self._dispatcher
        self._lookout = Lookout(
            self._ledger, outside.bus, drives.driven, drives.ended, drives.let_go
        )
        self._pusher = self._make_pusher()
        self._probed = (float("-inf"), "")
        self.tails = Tails(store, outside.bus)
        self.runs = Runs(self._ledger, self._intake, self.tails, self.audit)
        self.sessions = Sessions(self._ledger)
        self.agents = Registry(
            self._ledger, outside.egress, outside.box, self.audit, self._instances, heartbeats
        )

    def _make_prober(self, calls: Calls) -> Prober | None:
        outside, probe = self._outside, self._outside.probe
        if probe is None:
            return None
        return Prober(outside.store, outside.world, self._instances, probe, calls.credential)

    def _make_pusher(self) -> Pusher | None:
        outside = self._outside
        if outside.push is None:
            return None
        return Pusher(outside.store, outside.bus, outside.world, outside.push)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Drive runs for as long as the context is open; leaving it drains first.

        A StoreFailure anywhere cancels the body and comes out of the context.
        """
        world = self._outside.world
        await patiently(world, self.access.look)
        await patiently(world, self._ledger.count_open)
        async with asyncio.TaskGroup() as tasks:
            background = [
                tasks.create_task(self._upkeep.run(), name="upkeep"),
                tasks.create_task(self.access.run(), name="access"),
                tasks.create_task(self._lookout.run(), name="lookout"),
                tasks.create_task(self._lookout.listen(), name="listening"),
            ]
            if self._pusher is not None:
                background.append(tasks.create_task(self._pusher.run(), name="pusher"))
            if self._prober is not None:
                background.append(tasks.create_task(self._prober.run(), name="prober"))
            dispatching = tasks.create_task(self._dispatcher.run(), name="dispatcher")
            try:
                yield
            finally:
                await self._drained(dispatching)
                for task in background:
                    task.cancel()
        if self._pusher is not None:
            await self._pusher.flush()
        await self.access.flush()
        await self._upkeep.flush()

    def drain(self) -> None:
        """Take no more runs; those in flight go on until the drain time is over."""
        self._intake.draining = True
        self._dispatcher.stop_claiming()

    def stop_runs(self) -> None:
        """Cut the drain time short: every run in flight ends as its agent's `on_lost` says."""
        self._dispatcher.stop_runs("drain")

    @property
    def in_flight(self) -> int:
        """Return how many runs this server drives now."""
        return self._dispatcher.in_flight

    async def _drained(self, dispatching: "asyncio.Task[None]") -> None:
        self.drain()
        await asyncio.wait({dispatching}, timeout=self._settings.drain_timeout_ms / 1000)
        if not dispatching.done():
            self._dispatcher.stop_runs("drain")
            await asyncio.wait({dispatching}, timeout=_STOP_GRACE_S)
        if not dispatching.done():
            dispatching.cancel()

    async def health(self) -> Health:
        """Return whether a commit reaches the disk; asked at most once a second."""
        at, problem = self._probed
        now = self._outside.world.monotonic()
        if now - at >= _PROBE_EVERY_S:
            try:
                await self._outside.store.probe()
                problem = ""
            except OrchestratorError as error:
                problem = error.message
            self._probed = (now, problem)
        return Health(not problem, self._intake.draining, [problem] if problem else [])

    def stats(self) -> dict[str, float]:
        """Return every counter and gauge of the engine, its store and its pusher."""
        stats = {f"events_{name}_total": float(n) for name, n in self._ledger.counts.items()}
        stats |= {
            "runs_open": float(self._ledger.open_runs),
            "runs_in_flight": float(self._dispatcher.in_flight),
        }
        stats |= self._instances.stats()
        stats |= {f"store_{name}": value for name, value in self._outside.store.stats().items()}
        stats |= {f"bus_{name}": value for name, value in self._outside.bus.stats().items()}
        return stats | (self._pusher.stats() if self._pusher is not None else {})
