"""What must happen although nobody asks: timers, abandoned children, heartbeats, retention."""

from contextlib import suppress

from orchestrator.core.decide import Fail
from orchestrator.core.errors import Conflict, Unavailable
from orchestrator.core.ops import Committed, Delete, Op, Patch
from orchestrator.core.project import RUN_MAX
from orchestrator.core.records import Agent, Instance, Run, Timer
from orchestrator.core.states import ENDED, OPEN
from orchestrator.core.wellness import GONE_AFTER_MS, dead, silent_ms
from orchestrator.engine.family import CALLED, Family
from orchestrator.engine.heartbeats import Heartbeats
from orchestrator.engine.instances import AGENTS_MAX, Instances
from orchestrator.engine.ledger import Ledger
from orchestrator.engine.limits import EngineSettings
from orchestrator.engine.registry import removal
from orchestrator.ports import Where
from orchestrator.telemetry import get_logger

log = get_logger(__name__)

TICK_S = 1.0
_SWEEP_TICKS = 30
_BURY_SWEEPS = 120
"""An hour of sweeps, after which every agent is looked for; only older programs leave anything."""
_AT_ONCE = 500
"""Children that are read at once."""
_TOO_LATE = "the run reached its longest allowed life (RUN_MAX_MS, or its parent's)"
_TRIM_BATCH = 100
_TRIM_ROUNDS = 100
"""Batches of runs retired per sweep; others' commits go between them."""


class Upkeep:
    """Runs once a second for as long as the engine does."""

    def __init__(
        self,
        ledger: Ledger,
        instances: Instances,
        heartbeats: Heartbeats,
        settings: EngineSettings,
    ) -> None:
        self._instances = instances
        self._heartbeats = heartbeats
        self._ledger = ledger
        self._store = ledger.store
        self._family = Family(ledger)
        self._settings = settings
        self._sweeps = 0

    async def run(self) -> None:
        """Look after things until cancelled; only StoreFailure ends it."""
        ticks = 0
        while True:
            try:
                await self.tick(sweep=ticks % _SWEEP_TICKS == 0)
            except Unavailable as error:
                log.warning("upkeep_waits", error=error.message)
            ticks += 1
            await self._ledger.world.sleep(TICK_S)

    async def tick(self, *, sweep: bool) -> None:
        """Fire what is due; with `sweep`, also look for what a crash may have left behind."""
        for timer in await self._store.due():
            await self._fire(timer)
        await self._heartbeats.flush()
        await self._instances.tick()
        if not self._store.in_order:  # others may share it
            await self._ledger.count_open()
        if sweep:
            await self._end_orphans()
            await self._remove_dead(await self._instances.survey())
            await self._retire()

    async def _fire(self, timer: Timer) -> None:
        if timer.kind == RUN_MAX:
            run = await self._store.get(Run, timer.run_id, deciding=True)
            if run is not None and run.status not in ENDED:
                late = await self._family.topmost_late(run)
                with suppress(Conflict):  # it has ended meanwhile; the timer is looked at again
                    await self._ledger.execute(late, Fail(code="run_timeout", message=_TOO_LATE))
                return
            log.info("timer_too_late", run_id=timer.run_id, kind=timer.kind)
        elif timer.kind.startswith(CALLED):
            await self._family.tell_late(timer)
            return
        await self._store.commit(Op(writes=(Delete(Timer, (timer.run_id, timer.kind)),)))

    async def _end_orphans(self) -> None:
        """End children whose parent ended in a process that died before it could tell them."""
        children: tuple[Where, ...] = (
            ("parent_run_id", "!=", None),
            ("status", "in", sorted(OPEN)),
        )
        find, at = self._store.find, 0
        while found := await find(
            Run, *children, ("key", ">", at), order="key", limit=_AT_ONCE, deciding=True
        ):
            at = found[-1].key
            above = sorted({child.parent_run_id for child in found if child.parent_run_id})
            over: Where = ("status", "in", sorted(ENDED))
            for parent in await find(
                Run, ("run_id", "in", above), over, limit=_AT_ONCE, deciding=True
            ):
                ended = await self._ledger.end_children(parent)
                log.info("orphans_ended", run_id=parent.run_id, children=ended)

    async def flush(self) -> None:
        """Write what is only in memory yet, once, before the end."""
        with suppress(Unavailable):
            await self._heartbeats.flush()

    async def _remove_dead(self, instances: list[Instance]) -> None:
        """Forget instances that were silent for an hour, and the rows of agents that are gone."""
        now = self._ledger.world.now()
        looked_at = {
            (one.tenant, one.agent_id) for one in instances if silent_ms(one, now) > GONE_AFTER_MS
        }
        if self._sweeps % _BURY_SWEEPS == 0:
            agents = await self._store.find(Agent, limit=AGENTS_MAX, deciding=True)
            named = {(one.tenant, one.agent_id) for one in instances}
            looked_at |= named - {(one.tenant, one.agent_id) for one in agents}
        self._sweeps += 1
        for key in looked_at:
            while await self._remove_one(key, now):
                continue

    async def _remove_one(self, key: tuple[str, str], now: int) -> bool:
        agent = await self._store.get(Agent, *key, deciding=True)
        if agent is None:
            await self._instances.bury(key)
            return False
        own = await self._instances.rows_of(agent)
        gone = dead(own, now)
        return bool(gone) and await self._removed(agent, own, gone[0])

    async def _removed(self, agent: Agent, own: list[Instance], one: Instance) -> bool:
        key = (one.tenant, one.agent_id, one.instance_id)
        seen = {"last_heartbeat": one.last_heartbeat, "updated_at": one.updated_at}
        still = Patch(Instance, key, {"draining": True}, where=seen, required=True)
        op = Op(writes=(still, *removal(agent, own, [one])))
        if not isinstance((await self._store.commit(op))[0], Committed):
            return False  # it was heard of in this very moment, or somebody was faster
        log.info("instance_removed", agent_id=one.agent_id, instance_id=one.instance_id)
        await self._instances.changed(one.tenant, one.agent_id)
        return True

    async def _retire(self) -> None:
        now = self._store.now()
        runs, deltas = (
            self._settings.retention_runs_ms,
            self._settings.retention_deltas_ms,
        )
        if runs is None and deltas is None:
            return
        before_runs, before_deltas = (
            now - runs if runs else 0,
            now - deltas if deltas else 0,
        )
        for _ in range(_TRIM_ROUNDS):
            trimmed = await self._store.trim(before_runs, before_deltas, _TRIM_BATCH)
            if not trimmed.runs and not trimmed.deltas:
                return
            log.info("retired", runs=trimmed.runs, deltas=trimmed.deltas)
