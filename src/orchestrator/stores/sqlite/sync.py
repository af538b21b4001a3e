"""The way to the disk: one fdatasync of the write-ahead log serves everybody who waits for it."""

import asyncio
import fcntl
import os
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeAlias

from orchestrator.core.errors import StoreFailure

Sync: TypeAlias = Callable[[int], None]
Done: TypeAlias = Callable[[StoreFailure | None], None]

QUIET_TURNS: Final = 3
"""Turns of the loop without a commit after which a sync begins: a run that is accepted begins in
so many, and then both are on the disk together. A turn is some microseconds, a sync thousands."""
TURNS_MAX: Final = 16
"""Turns after which it begins although there are commits in each."""
_FULL_SYNC: Final[int | None] = getattr(fcntl, "F_FULLFSYNC", None)


def fdatasync(descriptor: int) -> None:
    """Return once everything written to the file is on the disk; raises OSError."""
    if _FULL_SYNC is not None:  # macOS: fsync alone stops at the drive's own memory
        fcntl.fcntl(descriptor, _FULL_SYNC)
    else:
        os.fdatasync(descriptor)


class Syncer:
    """Tells waiters when the commit they wait for is on the disk, in the order of the commits.

    The log is a list of commits, so a sync covers every commit that was finished before it began.
    It goes through a descriptor of its own, since SQLite's is not to be had; the log file is the
    one of the three that SQLite holds no locks on. A failed sync is final: which pages reached the
    disk is not known, and the kernel may call them clean.
    """

    def __init__(self, path: str, sync: Sync) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        self._sync = sync
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="sync")
        self._waiting: deque[tuple[int, Done]] = deque()
        self._running = self._counting = False
        self.failure: StoreFailure | None = None
        self.written = self.synced = 0
        self.syncs = 0
        self.seconds = self.slowest = 0.0

    @property
    def pending(self) -> bool:
        """Return whether somebody waits: then what was last committed may not be on the disk."""
        return bool(self._waiting)

    def after(self, number: int, done: Done) -> None:
        """Have `done` called, with an error or with None, once commit `number` is on the disk."""
        if self.failure is not None:
            done(self.failure)
            return
        self._waiting.append((number, done))
        if not self._running and not self._counting:
            self._counting = True
            self._rest(self.written, 0, 0)

    def _rest(self, written: int, quiet: int, turns: int) -> None:
        """Sync once the writer has rested for a moment: what an answer leads to shares its sync."""
        quiet = quiet + 1 if written == self.written else 0
        if quiet <= QUIET_TURNS and turns < TURNS_MAX:
            loop = asyncio.get_running_loop()
            loop.call_soon(self._rest, self.written, quiet, turns + 1)
            return
        self._counting = False
        self.begin()

    def begin(self) -> None:
        """Sync if something is not on the disk and nobody is at it."""
        if self._running or self.failure is not None or self.synced == self.written:
            self._release()
            return
        self._running = True
        number = self.written
        syncing = asyncio.get_running_loop().run_in_executor(self._thread, self._timed)
        syncing.add_done_callback(lambda future: self._finish(number, future.exception()))

    def stats(self) -> dict[str, float]:
        """Return how often the disk was waited for, and for how long."""
        return {
            "syncs_total": self.syncs,
            "sync_seconds_total": self.seconds,
            "sync_slowest_seconds": self.slowest,
            "sync_waiting": len(self._waiting),
        }

    async def close(self) -> None:
        """Wait for the sync that is under way and let the descriptor go."""
        await asyncio.get_running_loop().run_in_executor(None, self._thread.shutdown)
        os.close(self._descriptor)

    def _timed(self) -> None:
        began = time.perf_counter()
        self._sync(self._descriptor)
        took = time.perf_counter() - began
        self.syncs += 1
        self.seconds += took
        self.slowest = max(self.slowest, took)

    def _finish(self, number: int, error: BaseException | None) -> None:
        self._running = False
        if error is not None:
            self.failure = StoreFailure(f"the database cannot be synced to the disk: {error}")
            waiting, self._waiting = self._waiting, deque()
            for _, done in waiting:
                done(self.failure)
            return
        self.synced = number
        self._release()
        if self._waiting:
            self.begin()

    def _release(self) -> None:
        while self._waiting and self._waiting[0][0] <= self.synced:
            self._waiting.popleft()[1](None)
