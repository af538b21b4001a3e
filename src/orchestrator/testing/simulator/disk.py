"""A disk below the store: what is applied, how much of it is synced, what a power loss takes."""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, Final, TypeVar

import msgspec

from orchestrator.core.events import DELTAS
from orchestrator.core.ops import Committed, Op, Outcome
from orchestrator.core.records import Lease
from orchestrator.testing.simulator.applying import Applier, changes_state
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
        state = any(map(changes_state, ops))
        self._applied(state=state)
        for op, outcome in zip(ops, outcomes, strict=True):
            if isinstance(outcome, Committed):
                self._hold(outcome)
            if self._told is not None:
                self._told(op, outcome)
        return outcomes, state

    def change(self, work: Callable[[Tables], T]) -> T:
        """Carry out any other change of state in one commit."""
        result = work(self.tables)
        self._applied(state=True)
        return result

    async def settled(self) -> None:
        """Wait until every change of state that is applied now is on the disk."""
        number = self._needed
        if number <= self.synced or not self._honest:
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((number, waiter))
        if self._syncing is None:
            self._sync()
        await waiter

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
        return lost

    def reopened(self) -> None:
        """Begin anew after every process died: whoever had a lease is dead."""
        self._forget_waiters()
        self.change(_forget_leases)

    @property
    def loose(self) -> int:
        """Return how many commits a power loss could take now."""
        return len(self._unsynced)

    def _applied(self, *, state: bool) -> None:
        self.applied += 1
        self._unsynced.append(Commit(self.applied, self.tables.take()))
        if state:
            self._needed = self.applied
        elif self._later is None:
            loop = asyncio.get_running_loop()
            self._later = loop.call_later(DELTAS_WAIT_S, self._sync_deltas)

    def _hold(self, outcome: Committed) -> None:
        for event in outcome.events:
            if event.type not in DELTAS:
                run_id = _run_of(event.data)
                held = self._held.setdefault(run_id, deque())
                held.append(Held(self.applied, event.seq))
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


class _Named(msgspec.Struct, gc=False):
    run_id: str


_NAMED: Final = msgspec.json.Decoder(_Named)


def _forget_leases(tables: Tables) -> None:
    leases = tables.rows[Lease]
    for key in list(leases):
        tables.remove(leases, key)


def _run_of(data: bytes) -> Any:
    return _NAMED.decode(data).run_id
