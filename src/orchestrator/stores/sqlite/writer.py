"""The one writer: a turn of the loop is a commit, and only those who must wait for the disk do."""

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from operator import attrgetter
from typing import Any, Final, TypeVar

import apsw
import msgspec

from orchestrator.core.errors import StorageFull, StoreFailure, Unavailable
from orchestrator.core.ops import Committed, Op, Outcome
from orchestrator.ports import Done
from orchestrator.stores.sqlite.apply import Applier
from orchestrator.stores.sqlite.sync import Syncer

T = TypeVar("T")
BATCH: Final = 512
"""How many callers at most share a transaction."""
FULL: Final = "the disk is full: free some space, the server goes on by itself"
_BUSY_MS: Final = 5000
_SLOW: Final = attrgetter("slow")
_FATAL: Final = (
    apsw.IOError, apsw.CorruptError, apsw.NotADBError, apsw.ReadOnlyError, apsw.CantOpenError,
)  # fmt: skip


class _Waiting(msgspec.Struct):
    """Somebody's ops, or other work, and who is told what became of it.

    The answer is a list of outcomes; with `alone` it is the outcome of the one op, words of an
    agent. `synced` work is answered from the disk, `slow` work is done beside.
    """

    answer: Callable[[Any], None]
    ops: tuple[Op, ...] = ()
    work: Callable[[Applier], Any] | None = None
    synced: bool = True
    slow: bool = False
    alone: bool = False


class Writer:
    """Gives each caller its own result; many callers share one transaction and one sync.

    A commit is made inline, on the loop: without a sync it costs less than the way to a thread.
    Words of an agent are answered at once, for the commit survives the process; changes of state
    are answered from the disk, and with `full` so is everything. What may take long (a batch whose
    commit has to sync the head of a fresh log, one that another program keeps waiting, retention)
    goes to a thread, and others gather meanwhile.
    """

    def __init__(self, connection: apsw.Connection, syncer: Syncer, *, full: bool = False) -> None:
        connection.set_busy_timeout(0)
        self._db = connection
        self._applier = Applier(connection)
        self._syncer = syncer
        self._full = full
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="writer")
        self._loop = asyncio.get_running_loop()
        self._context = copy_context()  # a batch is nobody's: its log lines name no run
        self._queue: list[_Waiting] = []
        self._called = self._closed = False
        self._back = asyncio.Event()
        self._back.set()
        # Per run, the first seq of each of its commits that are not shown yet, by their numbers.
        self._held: dict[str, dict[int, int]] = {}
        self._broken: StoreFailure | None = None
        self.fresh_log = False
        """Whether the next commit begins the log anew, which syncs its head."""
        self.commits = self.requests = self.largest = self.full = self.aside = 0
        self.seconds = self.slowest = 0.0

    async def commit(self, ops: Sequence[Op]) -> list[Outcome]:
        """Commit ops in order, in one transaction."""
        synced = self._full or any(op.changes_state for op in ops)
        future: asyncio.Future[list[Outcome]] = self._loop.create_future()
        self._submit(_Waiting(partial(_settle, future), tuple(ops), synced=synced))
        return await future

    def append(self, op: Op, done: Done) -> None:
        """Commit an op of the delta class with the next batch."""
        try:
            self._submit(_Waiting(done, (op,), synced=self._full, alone=True))
        except StoreFailure as failure:
            done(failure)

    async def work(
        self, work: Callable[[Applier], T], *, synced: bool = True, slow: bool = False
    ) -> T:
        """Run `work` in the next transaction and return its result, on the disk if `synced`."""
        future: asyncio.Future[T] = self._loop.create_future()
        self._submit(_Waiting(partial(_settle, future), (), work, synced, slow))
        return await future

    def connection(self) -> apsw.Connection | None:
        """Return the connection while nobody else uses it."""
        return self._db if self._back.is_set() and not self._closed else None

    async def shown(self) -> None:
        """Return once all that could be read just now is on the disk."""
        await self.returned()
        if self._syncer.pending:
            future: asyncio.Future[None] = self._loop.create_future()
            self._syncer.after(self._syncer.written, partial(_settle, future))
            await future

    async def returned(self) -> None:
        """Return while no batch is in the thread: what one does there is not accounted for yet."""
        while not self._back.is_set():
            await self._back.wait()

    def held_from(self, run_id: str) -> int | None:
        """Return the first seq of a run that must not be shown yet."""
        held = self._held.get(run_id)
        return min(held.values()) if held else None

    def hold(self) -> bool:
        """Hold every batch back until `resume`; False when one is in the thread."""
        if not self._back.is_set():
            return False
        self._back.clear()
        return True

    def resume(self) -> None:
        """Let batches go on."""
        self._back.set()
        self._call()

    async def close(self) -> None:
        """Finish what waits and close the connection."""
        while self._queue or not self._back.is_set():
            await asyncio.sleep(0)
            await self.returned()
        self._closed = True
        await asyncio.get_running_loop().run_in_executor(self._thread, self._let_go)
        self._thread.shutdown()

    def stats(self) -> dict[str, float]:
        """Return how often, how full and how fast batches are committed."""
        return {
            "commits_total": self.commits,
            "commit_requests_total": self.requests,
            "commit_largest_batch": self.largest,
            "commit_seconds_total": self.seconds,
            "commit_slowest_seconds": self.slowest,
            "commits_aside_total": self.aside,
            "disk_full_total": self.full,
            "runs_held": len(self._held),
        }

    # ------------------------------------------------------------ the queue

    def _submit(self, waiting: _Waiting) -> None:
        broken = self._broken or self._syncer.failure
        if broken is not None:
            raise StoreFailure(broken.message)
        self._queue.append(waiting)
        self._call()

    def _call(self) -> None:
        if not self._called and self._queue and self._back.is_set():
            self._called = True
            self._loop.call_soon(self._flush, context=self._context)

    def _flush(self) -> None:
        self._called = False
        if not self._back.is_set():
            return
        batch, self._queue = self._queue[:BATCH], self._queue[BATCH:]
        self.requests += len(batch)
        self.largest = max(self.largest, len(batch))
        long = self.fresh_log or any(map(_SLOW, batch))
        results = None if long else self._commit(batch)
        if results is None:
            self._aside(batch)
        else:
            self._finish(batch, results)
        self._call()

    def _aside(self, batch: list[_Waiting]) -> None:
        self.aside += 1
        self.fresh_log = False
        self._back.clear()
        done = self._loop.run_in_executor(self._thread, self._commit_patiently, batch)
        done.add_done_callback(lambda future: self._returned(batch, future.result()))

    def _returned(self, batch: list[_Waiting], results: list[Any]) -> None:
        self._back.set()
        self._finish(batch, results)
        self._call()

    def _finish(self, batch: list[_Waiting], results: list[Any]) -> None:
        """Answer each, some with the sync: nothing of a run overtakes its change of state."""
        for waiting, result in zip(batch, results, strict=True):
            held = self._held and any(op.run_id in self._held for op in waiting.ops)
            if isinstance(result, BaseException) or not (waiting.synced or held):
                waiting.answer(result)
            else:
                self._answer_synced(waiting, result)

    def _answer_synced(self, waiting: _Waiting, result: Any) -> None:
        number = self._syncer.written
        outcomes = [result] if waiting.alone else result
        for op, outcome in zip(waiting.ops, outcomes if waiting.ops else (), strict=True):
            if op.run_id is not None and isinstance(outcome, Committed):
                held = self._held.setdefault(op.run_id, {})
                held.setdefault(number, outcome.head - len(outcome.events) + 1)

        def done(error: StoreFailure | None) -> None:
            for op in waiting.ops if error is None else ():
                self._show(op.run_id or "", number)
            waiting.answer(result if error is None else error)

        self._syncer.after(number, done)

    def _show(self, run_id: str, number: int) -> None:
        held = self._held.get(run_id)
        if held is not None:
            held.pop(number, None)
            if not held:
                del self._held[run_id]

    # ------------------------------------------------------------ one transaction

    def _commit(self, batch: list[_Waiting]) -> list[Any] | None:
        """Return what became of each work; None when another program has the database."""
        if self._broken is not None:
            return [StoreFailure(self._broken.message) for _ in batch]
        began = time.perf_counter()
        try:
            return self._transaction(batch)
        except apsw.BusyError:
            return None
        except Exception as error:  # noqa: BLE001  # the border of the writer: callers raise it
            judged = self._judged(error)
            if judged is not error or len(batch) == 1:
                return [judged] * len(batch)
        finally:
            took = time.perf_counter() - began
            self.seconds += took
            self.slowest = max(self.slowest, took)
        # One of them is at fault; alone, each gets what it deserves.
        return self._one_by_one(batch)

    def _one_by_one(self, batch: list[_Waiting]) -> list[Any]:
        return [
            BUSY if found is None else found[0]
            for found in (self._commit([waiting]) for waiting in batch)
        ]

    def _commit_patiently(self, batch: list[_Waiting]) -> list[Any]:
        """Commit on the thread, where there is time to wait for another program."""
        self._db.set_busy_timeout(_BUSY_MS)
        try:
            found = self._commit(batch)
        finally:
            self._db.set_busy_timeout(0)
        return [BUSY] * len(batch) if found is None else found

    def _transaction(self, batch: list[_Waiting]) -> list[Any]:
        lone = len(batch) == 1 and batch[0].alone and len(batch[0].ops[0].events) == 1
        if not lone:
            self._db.execute("BEGIN IMMEDIATE")
        try:
            results = [self._result(waiting) for waiting in batch]
            if not lone:  # one insert is a transaction of its own
                self._db.execute("COMMIT")
        except BaseException:
            self._applier.heads.forget()
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise
        self.commits += 1
        self._syncer.written += 1
        return results

    def _result(self, waiting: _Waiting) -> Any:
        if waiting.alone:
            return self._applier.append(waiting.ops[0])
        if waiting.work is not None:
            return waiting.work(self._applier)
        return [self._applier.apply(op) for op in waiting.ops]

    def _let_go(self) -> None:
        """Close; what a broken disk keeps from being tidied up, the next start does."""
        try:
            self._db.close()
        except apsw.Error:
            self._db.close(force=True)

    def _judged(self, error: Exception) -> Exception:
        """Return what callers are told: a full disk passes, other failures of the disk do not."""
        if isinstance(error, apsw.FullError):
            self.full += 1
            return StorageFull(FULL)
        if isinstance(error, _FATAL):
            # Whether the commit is on the disk is unknown: this handle must never write again.
            self._broken = StoreFailure(f"the database cannot be written any more: {error}")
            return self._broken
        return error


BUSY: Final = Unavailable("another program holds the database; it will be tried again")


def _settle(future: "asyncio.Future[Any]", result: Any) -> None:
    if future.done():
        return  # whoever asked has gone
    if isinstance(result, BaseException):
        future.set_exception(result)
    else:
        future.set_result(result)
