"""The one writer: while a commit is on its way to the disk the next batch gathers, no timer."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

import apsw

from orchestrator.core.errors import StorageFull, StoreFailure, Unavailable
from orchestrator.core.ops import Op, Outcome
from orchestrator.stores.sqlite.apply import Applier

BATCH: Final = 512
"""How many callers at most share a transaction."""
FULL: Final = "the disk is full: free some space, the server goes on by itself"
_FATAL: Final = (
    apsw.IOError, apsw.CorruptError, apsw.NotADBError, apsw.ReadOnlyError, apsw.CantOpenError,
)  # fmt: skip


@dataclass
class _Waiting:
    work: Callable[[Applier], Any]
    future: "asyncio.Future[Any]"


class Writer:
    """Gives each caller its own result; many callers share one transaction and one fsync."""

    def __init__(self, connection: apsw.Connection) -> None:
        self._db = connection
        self._applier = Applier(connection)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="writer")
        self._queue: list[_Waiting] = []
        self._idle = asyncio.Event()
        self._idle.set()
        self._broken: StoreFailure | None = None
        self.commits = self.requests = self.largest = self.full = 0

    async def commit(self, ops: Sequence[Op]) -> list[Outcome]:
        """Commit ops in order, in one transaction."""
        outcomes: list[Outcome] = await self.work(lambda db: [db.apply(op) for op in ops])
        return outcomes

    async def work(self, work: Callable[[Applier], Any]) -> Any:
        """Run `work` in the next transaction, on the writer's thread; return its result on disk."""
        if self._broken is not None:
            raise StoreFailure(self._broken.message)
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._queue.append(_Waiting(work, future))
        if self._idle.is_set():
            self._begin()
        return await asyncio.shield(future)

    async def close(self) -> None:
        """Wait for what is in flight and close the connection."""
        await self._idle.wait()
        await asyncio.get_running_loop().run_in_executor(self._thread, self._let_go)
        self._thread.shutdown()

    def stats(self) -> dict[str, float]:
        """Return how often and how full the writer went to the disk."""
        return {
            "commits_total": self.commits,
            "commit_requests_total": self.requests,
            "commit_largest_batch": self.largest,
            "disk_full_total": self.full,
        }

    def _begin(self) -> None:
        self._idle.clear()
        batch, self._queue = self._queue[:BATCH], self._queue[BATCH:]
        self.requests += len(batch)
        self.largest = max(self.largest, len(batch))
        loop = asyncio.get_running_loop()
        done = loop.run_in_executor(self._thread, self._commit, [w.work for w in batch])
        done.add_done_callback(lambda future: self._finish(batch, future.result()))

    def _finish(self, batch: list[_Waiting], results: list[Any]) -> None:
        for waiting, result in zip(batch, results, strict=True):
            if waiting.future.done():
                continue
            if isinstance(result, BaseException):
                waiting.future.set_exception(result)
            else:
                waiting.future.set_result(result)
        if self._queue:
            self._begin()
        else:
            self._idle.set()

    # ------------------------------------------------------------ on the thread

    def _commit(self, works: list[Callable[[Applier], Any]]) -> list[Any]:
        if self._broken is not None:
            return [StoreFailure(self._broken.message) for _ in works]
        try:
            return self._transaction(works)
        except Exception as error:  # noqa: BLE001  # the border of the thread: callers raise it
            judged = self._judged(error)
            if judged is not error or len(works) == 1:
                return [judged] * len(works)
        # One of them is at fault; alone, each gets what it deserves.
        return [result for work in works for result in self._commit([work])]

    def _transaction(self, works: list[Callable[[Applier], Any]]) -> list[Any]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            results = [work(self._applier) for work in works]
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise
        self.commits += 1
        return results

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
        if isinstance(error, apsw.BusyError):
            return Unavailable("another program holds the database; it will be tried again")
        if isinstance(error, _FATAL):
            # Whether the commit is on the disk is unknown: this handle must never write again.
            self._broken = StoreFailure(f"the database cannot be written any more: {error}")
            return self._broken
        return error
