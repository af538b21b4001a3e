"""A disk below the store: what is applied, how much of it is synced, what a power loss takes."""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final, TypeVar

import msgspec
from msgspec.structs import replace

from orchestrator.core.events import DELTAS
from orchestrator.core.ops import Committed, Op, Outcome
from orchestrator.core.records import Lease, Run
from orchestrator.core.states import OPEN
from orchestrator.testing.simulator.applying import Applier
from orchestrator.testing.simulator.tables import Change, Tables, undo

T = TypeVar("T")
DELTAS_WAIT_S: Final = 1.0
"""Events of the delta class are on the disk after this time at the latest."""


class Commit(msgspec.Struct):
    """One transaction that a power loss could still take: how to undo it."""

    number: int
    changes: list[Change]


class Held(msgspec.Struct):
    """From here on a run's events are not shown: commit `number` is not on the disk yet."""

    number: int
    seq: int


class Disk:
    """Applies each commit at once, remembers what is not synced, and syncs when somebody waits.

    `sync_s` says how long the next sync takes. A sync covers the commits applied before it began.
    With `honest` off nobody waits for it: a planted fault. With `guarded` off epochs mean nothing:
    another one. `told` hears of every op and its outcome.
    """

    def __init__(
        self,
        sync_s: Callable[[], float] = float,
        *,
        honest: bool = True,
        guarded: bool = True,
        told: Callable[[Op, Outcome], None] | None = None,
    ) -> None:
        self.tables = Tables()
        self.copies: dict[str, Tables] = {}
        self.sync_s = sync_s
        self.applied = self.synced = self.syncs = 0
        self._needed = 0
        self._rebooted = False
        self._honest = honest
        self._guarded = guarded
        self._told = told
        self._unsynced: deque[Commit] = deque()
        self._held: dict[str, deque[Held]] = {}
        self._waiting: list[tuple[int, asyncio.Future[None]]] = []
        self._syncing: asyncio.TimerHandle | None = None
        self._later: asyncio.TimerHandle | None = None

    def apply(self, ops: tuple[Op, ...]) -> tuple[list[Outcome], bool]:
        """Apply ops in one commit; return their outcomes and whether the caller must wait."""
        applier = Applier(self.tables, guarded=self._guarded)
        outcomes = [applier.apply(op) for op in ops]
        state = any(op.changes_state for op in ops)
        self._applied(state=state)
        for op, outcome in zip(ops, outcomes, strict=True):
            if isinstance(outcome, Committed) and op.run_id is not None:
                self._hold(op.run_id, outcome)
            if self._told is not None:
                self._told(op, outcome)
        return outcomes, state

    def change(self, work: Callable[[Tables], T], *, state: bool = True) -> T:
        """Carry out any other change in one commit; what is no `state` is not waited for."""
        result = work(self.tables)
        self._applied(state=state)
        return result

    async def settled(self) -> None:
        """Wait until every change of state that is applied now is on the disk."""
        if self._needed > self.synced and self._honest:
            await self._waiter()

    def when_shown(self, run_id: str, call: Callable[[], None]) -> None:
        """Call back, never at once, when all of a run's events may be shown."""
        if self.shown(run_id) is None:
            asyncio.get_running_loop().call_soon(call)
        else:
            self._waiter().add_done_callback(lambda _: call())

    def shown(self, run_id: str) -> int | None:
        """Return the seq up to which a run's events may be shown; None means all of them."""
        held = self._held.get(run_id)
        return held[0].seq - 1 if held and self._honest else None

    def lose(self, kept: int) -> int:
        """Lose power: of the commits that are not synced only the first `kept` remain.

        Returns how many are lost.
        """
        lost = 0
        while len(self._unsynced) > kept:
            undo(self._unsynced.pop().changes)
            lost += 1
        self.applied -= lost
        self._needed = min(self._needed, self.applied)
        self._forget_waiters()
        self._reached(self.applied)
        self._held.clear()
        self._rebooted = True
        return lost

    def reopened(self) -> None:
        """Begin anew after every process died: whoever had a lease is dead.

        After a power loss each open run notes how far readers can rely on what they saw.
        """
        self._forget_waiters()
        self.change(_forget_leases)
        if self._rebooted:
            self.change(_fork)
            self._rebooted = False

    @property
    def loose(self) -> int:
        """Return how many commits a power loss could take now."""
        return len(self._unsynced)

    def _waiter(self) -> "asyncio.Future[None]":
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((self._needed, waiter))
        if self._syncing is None:
            self._sync()
        return waiter

    def _applied(self, *, state: bool) -> None:
        self.applied += 1
        self._unsynced.append(Commit(self.applied, self.tables.take()))
        if state:
            self._needed = self.applied
        elif self._later is None:
            loop = asyncio.get_running_loop()
            self._later = loop.call_later(DELTAS_WAIT_S, self._sync_deltas)

    def _hold(self, run_id: str, outcome: Committed) -> None:
        batch = outcome.events
        for seq, kind in zip(batch.seqs, batch.types, strict=True):
            if kind not in DELTAS:
                self._held.setdefault(run_id, deque()).append(Held(self.applied, seq))
                return

    def _sync_deltas(self) -> None:
        self._later = None
        if self._syncing is None and self.synced < self.applied:
            self._sync()

    def _sync(self) -> None:
        loop = asyncio.get_running_loop()
        self._syncing = loop.call_later(self.sync_s(), self._finished, self.applied)

    def _finished(self, covered: int) -> None:
        self._syncing = None
        self.syncs += 1
        self._reached(covered)
        waiting, self._waiting = self._waiting, []
        for number, waiter in waiting:
            if waiter.done():
                continue
            if number <= covered:
                waiter.set_result(None)
            else:
                self._waiting.append((number, waiter))
        if self._waiting:
            self._sync()

    def _reached(self, number: int) -> None:
        self.synced = max(self.synced, number)
        while self._unsynced and self._unsynced[0].number <= number:
            self._unsynced.popleft()
        for run_id in [run_id for run_id, held in self._held.items() if held]:
            held = self._held[run_id]
            while held and held[0].number <= number:
                held.popleft()
            if not held:
                del self._held[run_id]

    def _forget_waiters(self) -> None:
        """Drop what dead processes waited for, and the sync that ran for them."""
        self._waiting.clear()
        if self._syncing is not None:
            self._syncing.cancel()
            self._syncing = None


def _forget_leases(tables: Tables) -> None:
    leases = tables.rows[Lease]
    for key in list(leases):
        tables.remove(leases, key)


def _fork(tables: Tables) -> None:
    for run in tables.find(Run, [("status", "in", OPEN)], "key", 1 << 60):
        tables.put(replace(run, forks=[*run.forks, run.head]))
