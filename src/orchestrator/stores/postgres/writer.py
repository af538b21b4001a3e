"""The one writer: while one batch is on its way to the disk the next one gathers."""

import asyncio
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice
from typing import Any, Final

import msgspec

from orchestrator.core.errors import StoreFailure, Unavailable
from orchestrator.core.ops import Op, Outcome
from orchestrator.ports import Done
from orchestrator.stores.postgres import faults
from orchestrator.stores.postgres.committer import Committer
from orchestrator.stores.postgres.line import Line
from orchestrator.stores.postgres.unsettled import Unsettled

BATCH: Final = 256
"""How many callers at most share a transaction."""
QUEUE_MAX: Final = 20_000
_TOO_MANY: Final = "too many wait for the database; try again"


class _Waiting(msgspec.Struct):
    """Somebody's ops and who is told what became of them.

    The answer is a list of outcomes; with `alone` it is the outcome of the one op.
    """

    answer: Callable[[Any], None]
    ops: tuple[Op, ...]
    alone: bool = False

    def tell(self, result: Any) -> None:
        """Answer with the outcomes, or with an error."""
        failed = isinstance(result, BaseException)
        self.answer(result if failed or not self.alone else result[0])


class Writer:
    """Gives each caller its own result; many callers share one transaction and one sync.

    Batches follow each other on one connection. What other replicas write meanwhile is met with
    locks that everybody takes in the same order.
    """

    def __init__(
        self, line: Line, committer: Committer, unsettled: Unsettled, tasks: asyncio.TaskGroup
    ) -> None:
        self._line = line
        self._committer = committer
        self._unsettled = unsettled
        self._tasks = tasks
        self._loop = asyncio.get_running_loop()
        self._queue: list[_Waiting] = []
        self._draining: asyncio.Task[None] | None = None
        self._broken: StoreFailure | None = None
        self._closed = False
        self.requests = self.largest = self.refused = 0
        self.seconds = self.slowest = 0.0

    async def commit(self, ops: Sequence[Op]) -> list[Outcome]:
        """Commit ops in order, in one transaction."""
        future: asyncio.Future[list[Outcome]] = self._loop.create_future()
        self._submit(_Waiting(partial(_settle, future), tuple(ops)))
        return await future

    def append(self, op: Op, done: Done) -> None:
        """Commit an op of the delta class with the next batch."""
        try:
            self._submit(_Waiting(done, (op,), alone=True))
        except (StoreFailure, Unavailable) as error:
            done(error)

    async def close(self) -> None:
        """Finish what waits, as far as the database is there, and close the connection."""
        self._closed = True
        if self._draining is not None:
            await asyncio.wait([self._draining])
        await self._line.close()

    def stats(self) -> dict[str, float]:
        """Return how often, how full and how fast batches are committed."""
        own = {
            "commit_requests_total": self.requests,
            "commit_largest_batch": self.largest,
            "commit_seconds_total": self.seconds,
            "commit_slowest_seconds": self.slowest,
            "commit_waiting": len(self._queue),
            "commits_refused_total": self.refused,
            "writer_connections_lost_total": self._line.lost,
        }
        return own | self._committer.stats() | self._unsettled.stats()

    def _submit(self, waiting: _Waiting) -> None:
        if self._broken is not None:
            raise StoreFailure(self._broken.message)
        if self._closed or len(self._queue) >= QUEUE_MAX:
            raise Unavailable(_TOO_MANY)
        self._queue.append(waiting)
        if self._draining is None:
            self._draining = self._tasks.create_task(self._drain(), name="postgres-writer")

    async def _drain(self) -> None:
        """Commit batch after batch until nobody waits."""
        try:
            while self._queue:
                batch, self._queue = self._queue[:BATCH], self._queue[BATCH:]
                self.requests += len(batch)
                self.largest = max(self.largest, len(batch))
                began = time.perf_counter()
                results = await self._results(batch)
                took = time.perf_counter() - began
                self.seconds += took
                self.slowest = max(self.slowest, took)
                for waiting, result in zip(batch, results, strict=True):
                    waiting.tell(result)
        finally:
            self._draining = None

    async def _results(self, batch: list[_Waiting]) -> list[Any]:
        """Return what each caller of a batch is told."""
        try:
            return await self._outcomes(batch)
        except Exception as error:  # noqa: BLE001  # the border of the writer: callers raise it
            told = faults.judged(error)
        if isinstance(told, StoreFailure):
            self._broken = told
        if len(batch) > 1 and not isinstance(told, Unavailable | StoreFailure):
            # One of them is at fault; alone, each gets what it deserves.
            return [(await self._results([waiting]))[0] for waiting in batch]
        self.refused += isinstance(told, Unavailable) * len(batch)
        return [told] * len(batch)

    async def _outcomes(self, batch: list[_Waiting]) -> list[list[Outcome]]:
        await self._unsettled.clear()
        known = [self._unsettled.done(waiting.ops) for waiting in batch]
        new = [one for one, done in zip(batch, known, strict=True) if done is None]
        ops = [op for waiting in new for op in waiting.ops]
        made = iter(await self._committer.commit(ops, self._away) if ops else ())
        return [
            list(islice(made, len(waiting.ops))) if done is None else done
            for waiting, done in zip(batch, known, strict=True)
        ]

    def _away(self) -> None:
        """Refuse those who have come meanwhile: of theirs nothing was sent."""
        waiting, self._queue = self._queue, []
        self.refused += len(waiting)
        for one in waiting:
            one.tell(Unavailable(faults.AWAY))


def _settle(future: "asyncio.Future[Any]", result: Any) -> None:
    if future.done():
        return  # whoever asked has gone
    if isinstance(result, BaseException):
        future.set_exception(result)
    else:
        future.set_result(result)
