"""`ports.Store` in plain Python: the contract's fair model, with a disk that may lose power."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, cast

from msgspec.structs import replace

from orchestrator.core.batch import Batch
from orchestrator.core.errors import OrchestratorError
from orchestrator.core.events import DELTAS
from orchestrator.core.ops import Op, Outcome
from orchestrator.core.records import (
    Cursor,
    IdempotencyKey,
    Invocation,
    Lease,
    Message,
    R,
    Record,
    Run,
    Session,
    Timer,
)
from orchestrator.core.states import HOLDS_SESSION, RunState
from orchestrator.ports import Claimed, Trimmed, Where, World
from orchestrator.testing.simulator.disk import Disk
from orchestrator.testing.simulator.tables import Tables

_FORGET_MS = 600_000
_OF_RUN: tuple[type[Record], ...] = (Invocation, Message, IdempotencyKey, Timer, Cursor)


class Way(Protocol):
    """What lies between a process and the store: it may take time, fail, or never end."""

    dead: bool

    async def write(self, ops: Sequence[Op]) -> None:
        """Pass before a change is applied."""
        ...

    def send(self, op: Op, then: Callable[[OrchestratorError | None], None]) -> None:
        """Do the same for who does not wait: call `then` at the end of the way."""
        ...

    async def ask(self) -> None:
        """Pass before something is read."""
        ...


class ModelStore:
    """One process's store on a disk that others may share."""

    in_order = True

    def __init__(self, world: World, disk: Disk | None = None, way: Way | None = None) -> None:
        self._world = world
        self._disk = disk if disk is not None else Disk()
        self._way = way

    def now(self) -> int:
        """Return the machine's time."""
        return self._world.now()

    async def commit(self, *ops: Op) -> list[Outcome]:
        """Apply ops at once; return when what changed state is on the disk."""
        if self._way is not None:
            await self._way.write(ops)
        outcomes, state = self._disk.apply(ops)
        if state or any(self._disk.shown(op.run_id or "") is not None for op in ops):
            await self._disk.settled()
        return outcomes

    def append(self, op: Op, done: Callable[[Outcome | OrchestratorError], None]) -> None:
        """Apply an op of the delta class; `done` is told when it may be shown."""
        if self._way is None:
            self._append(op, done, None)
        else:
            self._way.send(op, lambda error: self._append(op, done, error))

    def _append(
        self,
        op: Op,
        done: Callable[[Outcome | OrchestratorError], None],
        error: OrchestratorError | None,
    ) -> None:
        if error is not None:
            done(error)
            return
        [outcome], _ = self._disk.apply((op,))

        def tell() -> None:
            if self._way is None or not self._way.dead:
                done(outcome)

        self._disk.when_shown(op.run_id or "", tell)

    async def read(self, run_id: str, after: int, limit: int = 1000) -> Batch:
        """Return events of a run that may be shown."""
        if self._way is not None:
            await self._way.ask()
        found = self._disk.tables.log(run_id).after(after)
        last = self._disk.shown(run_id)
        if last is not None:
            found = found.before(last + 1)
        return found.part(0, limit)

    async def get(self, kind: type[R], *key: Any, deciding: bool = False) -> R | None:
        """Return the record of that key."""
        if self._way is not None:
            await self._way.ask()
        found = cast("R | None", self._disk.tables.rows[kind].get(key))
        if not deciding:
            await self._disk.settled()
        return found

    async def find(
        self,
        kind: type[R],
        *where: Where,
        order: str = "",
        limit: int = 100,
        deciding: bool = False,
    ) -> list[R]:
        """Return records that meet every condition."""
        if self._way is not None:
            await self._way.ask()
        found = self._disk.tables.find(kind, where, order, limit)
        if not deciding:
            await self._disk.settled()
        return found

    async def count(self, kind: type[R], *where: Where) -> int:
        """Return how many records meet every condition."""
        return len(await self.find(kind, *where, limit=1 << 60))

    async def claim(self, owner: str, limit: int, run_ids: Sequence[str] = ()) -> list[Claimed]:
        """Take runs that may run now."""
        if self._way is not None:
            await self._way.write(())
        ready = _ready(self._disk.tables, owner, self.now(), run_ids)[:limit]
        if not ready:
            return []
        # What a claim leads to is committed after it, so nobody need wait for the claim itself.
        return self._disk.change(
            lambda tables: [_take(tables, run, owner) for run in ready], state=False
        )

    async def renew(self, owner: str, ttl_ms: int) -> None:
        """Say that `owner` lives."""
        if self._way is not None:
            await self._way.write(())
        expires = self.now() + ttl_ms if ttl_ms else 0
        self._disk.change(lambda tables: _renew(tables, owner, expires), state=False)

    async def due(self, limit: int = 100) -> list[Timer]:
        """Return timers whose time has come."""
        return await self.find(Timer, ("due_at", "<=", self.now()), order="due_at", limit=limit)

    async def trim(self, runs_before: int, deltas_before: int, limit: int = 100) -> Trimmed:
        """Remove what retention says."""
        if self._way is not None:
            await self._way.write(())
        trimmed = self._disk.change(lambda tables: _trim(tables, runs_before, deltas_before, limit))
        await self._disk.settled()
        return trimmed

    async def backup(self, path: str) -> None:
        """Keep a copy under that name in the disk's `copies`."""
        self._disk.copies[path] = self._disk.tables.copy()

    async def probe(self) -> None:
        """Commit something that changes nothing else."""
        if self._way is not None:
            await self._way.write(())
        self._disk.change(lambda _: None)
        await self._disk.settled()

    def stats(self) -> dict[str, float]:
        """Return counters."""
        return {
            "commits_total": float(self._disk.applied),
            "syncs_total": float(self._disk.syncs),
        }

    async def close(self) -> None:
        """Wait until everything is on the disk."""
        await self._disk.settled()


def opened(world: World, tables: Tables) -> ModelStore:
    """Return a store of its own on a copy of tables."""
    disk = Disk()
    disk.tables = tables.copy()
    return ModelStore(world, disk)


def _ready(tables: Tables, owner: str, now: int, run_ids: Sequence[str]) -> list[Run]:
    """Return the runs that `owner` may claim, oldest first."""
    living = {lease.owner for lease in tables.rows[Lease].values() if lease.expires_at > now}
    if owner not in living:
        return []
    holding = sorted(
        (run for run in tables.rows[Run].values() if run.status in HOLDS_SESSION),
        key=lambda run: run.key,
    )
    ready, busy = [], set[tuple[str, str]]()
    for run in holding:
        place = (run.tenant, run.session_id)
        waits = run.status is not RunState.RUNNING and place in busy
        if run.parallel or run.parent_run_id is not None:
            waits = False
        else:
            busy.add(place)
        if not waits and run.owner not in living and (not run_ids or run.run_id in run_ids):
            ready.append(run)
    return ready


def _take(tables: Tables, run: Run, owner: str) -> Claimed:
    taken = replace(run, owner=owner, epoch=run.epoch + 1)
    tables.put(taken)
    return Claimed(taken, run.owner if run.status is RunState.RUNNING else None)


def _renew(tables: Tables, owner: str, expires: int) -> None:
    leases = tables.rows[Lease]
    stale = [name for (name,), lease in leases.items() if lease.expires_at < expires - _FORGET_MS]
    for name in [*stale, owner]:
        if (name,) in leases:
            tables.remove(leases, (name,))
    if expires:
        tables.put(Lease(owner=owner, expires_at=expires))


def _trim(tables: Tables, runs_before: int, deltas_before: int, limit: int) -> Trimmed:
    old = _ended_before(tables, runs_before)[:limit]
    for run in old:
        _remove(tables, run)
    thin = [run for run in _ended_before(tables, deltas_before) if not run.trimmed][:limit]
    return Trimmed(len(old), sum(_thin(tables, run) for run in thin))


def _ended_before(tables: Tables, before: int) -> list[Run]:
    return tables.find(Run, [("ended_at", "<", before)], "ended_at", 1 << 60) if before else []


def _remove(tables: Tables, run: Run) -> None:
    for kind in _OF_RUN:
        rows = tables.rows[kind]
        for key in [key for key, row in rows.items() if row.run_id == run.run_id]:
            tables.remove(rows, key)
    tables.remove(tables.logs, run.run_id)
    tables.remove(tables.rows[Run], (run.run_id,))
    place = (run.tenant, run.session_id)
    others = (*tables.rows[Run].values(), *tables.rows[Message].values())
    if place in tables.rows[Session] and place not in {(o.tenant, o.session_id) for o in others}:
        tables.remove(tables.rows[Session], place)


def _thin(tables: Tables, run: Run) -> int:
    log = tables.log(run.run_id)
    kept = log.chosen([at for at, kind in enumerate(log.types) if kind not in DELTAS])
    tables.set(tables.logs, run.run_id, kept)
    tables.put(replace(run, trimmed=True))
    return len(log) - len(kept)
