"""Claims runs, lets go of them when the lease lapses, and owns one runner task per run."""

import asyncio
from collections.abc import Sequence
from weakref import WeakValueDictionary

from orchestrator.core.errors import Unavailable
from orchestrator.core.records import Agent, Run
from orchestrator.core.states import ENDED, RunState
from orchestrator.engine.clocks import Switch
from orchestrator.engine.ledger import Ledger
from orchestrator.engine.limits import FENCE_S, LEASE_MS, EngineSettings
from orchestrator.engine.patience import patiently
from orchestrator.engine.replica import Replica
from orchestrator.engine.runner import Runner
from orchestrator.ports import Claimed
from orchestrator.telemetry import bind, get_logger

log = get_logger(__name__)

_CLAIM_BATCH = 64
_POLL_S = 1.0
"""How often the store is asked without a hint; hints come at once."""


class Dispatcher:
    """Starts what may start, stops what must stop, and knows which runs are in our hands."""

    def __init__(self, ledger: Ledger, runner: Runner, settings: EngineSettings) -> None:
        self._ledger = ledger
        self._runner = runner
        self._settings = settings
        self._switches: dict[str, Switch] = {}
        self._agents: WeakValueDictionary[tuple[str, str], Agent] = WeakValueDictionary()
        self._wake = asyncio.Event()
        self._new: set[str] = set()
        self._freed: set[tuple[str, str]] = set()
        self._claiming = True
        self._replica = Replica(ledger.store, ledger.world)
        ledger.on_ended(self.ended)

    @property
    def in_flight(self) -> int:
        """Return how many runs this replica holds."""
        return len(self._switches)

    def driven(self) -> list[str]:
        """Return the runs that this replica holds."""
        return list(self._switches)

    def wake(self, run_id: str) -> None:
        """Look at a run that has just been accepted."""
        self._new.add(run_id)
        self._wake.set()

    def stop_claiming(self) -> None:
        """Take no more runs; those in flight go on."""
        self._claiming = False
        self._wake.set()

    def stop_runs(self, reason: str) -> None:
        """Stop every run in flight with `reason`."""
        for switch in tuple(self._switches.values()):
            switch.throw(reason)

    async def run(self) -> None:
        """Claim and drive runs until `stop_claiming`, then wait for those in flight."""
        await patiently(self._ledger.world, self._replica.renew)
        async with asyncio.TaskGroup() as tasks:
            lease = tasks.create_task(self._keep_lease(), name="lease")
            async with asyncio.TaskGroup() as runs:
                await self._claim_loop(runs)
            lease.cancel()
        await self._replica.leave()

    async def _claim_loop(self, runs: asyncio.TaskGroup) -> None:
        scanned = float("-inf")
        while self._claiming:
            self._wake.clear()
            now = self._ledger.world.monotonic()
            try:
                if now - scanned >= _POLL_S:
                    full = await self._claim(runs, ()) == _CLAIM_BATCH
                    scanned = scanned if full else now
                elif hinted := await self._hinted():
                    await self._claim(runs, hinted)
                else:
                    await self._rest()
            except Unavailable:
                await self._rest()  # the next scan of everything finds what was hinted, too

    async def _rest(self) -> None:
        try:
            async with asyncio.timeout(_POLL_S):
                await self._wake.wait()
        except TimeoutError:
            return

    async def _hinted(self) -> list[str]:
        """Return runs that may just have become ready: new ones, the next of freed sessions.

        What does not fit is found by the next scan of everything.
        """
        new, self._new = self._new, set()
        freed, self._freed = self._freed, set()
        for tenant, session_id in freed:
            waiting = await self._ledger.store.find(
                Run,
                ("tenant", "=", tenant),
                ("session_id", "=", session_id),
                ("status", "in", [RunState.CREATED]),
                ("parent_run_id", "is", None),
                order="key",
                limit=1,
                deciding=True,
            )
            new.update(run.run_id for run in waiting)
        return sorted(new)[:_CLAIM_BATCH]

    async def _claim(self, runs: asyncio.TaskGroup, run_ids: Sequence[str]) -> int:
        room = min(_CLAIM_BATCH, self._settings.max_open_runs - self.in_flight)
        if room <= 0:
            await self._rest()
            return 0
        await self._replica.prove()
        owner = self._replica.owner
        claims = await self._ledger.store.claim(owner, room, run_ids)
        if owner != self._replica.owner:
            return 0  # fenced while we asked: they go to whoever is next
        for claimed in claims:
            switch = self._switches[claimed.run.run_id] = Switch()
            runs.create_task(self._hold(claimed, switch), name=claimed.run.run_id)
        return len(claims)

    async def _agent(self, run: Run) -> Agent | None:
        """Return the agent as it is now; runs that see the same of it hold one record of it."""
        world, get = self._ledger.world, self._ledger.store.get
        agent = await patiently(world, get, Agent, run.tenant, run.agent_id, deciding=True)
        if agent is None:
            return None
        key = (agent.tenant, agent.agent_id)
        shared = self._agents.get(key)
        if shared != agent:
            shared = self._agents[key] = agent
        return shared

    async def _hold(self, claimed: Claimed, switch: Switch) -> None:
        run = claimed.run
        bind(run_id=run.run_id, session_id=run.session_id, agent_id=run.agent_id)
        try:
            await self._runner.drive(claimed, await self._agent(run), switch)
        finally:
            if self._switches.get(run.run_id) is switch:  # else it came back to us, fenced off
                del self._switches[run.run_id]
            self._wake.set()

    def ended(self, run: Run) -> None:
        """Let go of a run whose end is committed, and look at the next of its session."""
        if run.status in ENDED:
            self.let_go(run.run_id)
        if run.parent_run_id is None:
            self._freed.add((run.tenant, run.session_id))
        self._wake.set()

    def let_go(self, run_id: str) -> None:
        """Let go of a run whose end is committed, if it is driven here."""
        switch = self._switches.get(run_id)
        if switch is not None:
            switch.throw("ended")

    async def _keep_lease(self) -> None:
        while True:
            await self._ledger.world.sleep(LEASE_MS / 3000)
            try:
                await self._replica.renew()
            except Unavailable:
                if self._replica.silent_s >= FENCE_S:
                    self._fence()

    def _fence(self) -> None:
        """Let go of every run: from now on they are anybody's, ours too, under our next name."""
        silent_s = round(self._replica.silent_s, 1)
        log.error("fenced", silent_s=silent_s, runs=len(self._switches))
        self._replica.rename()
        self.stop_runs("fenced")
