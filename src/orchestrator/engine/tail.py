"""Replay, then follow: one cursor, no gap, no duplicate, for a run or for a whole session."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from types import TracebackType
from typing import TypeAlias

from orchestrator.core.batch import Batch
from orchestrator.core.records import Run
from orchestrator.core.states import ENDED
from orchestrator.engine.following import PAGE, contiguous, is_end
from orchestrator.engine.session_tail import (
    SessionCursor,
    SessionFollower,
    SessionItem,
    behind_all,
)
from orchestrator.ports import Bus, Hint, Mailbox, Store

Sink: TypeAlias = Callable[[Batch], bool]
"""Takes a batch at once, or returns False when it cannot just now."""


class Tails:
    """Opens tails: they read the store to catch up, then live on what the bus brings."""

    def __init__(self, store: Store, bus: Bus) -> None:
        self._store = store
        self._bus = bus

    def run(
        self, run_id: str, after: int = 0, sink: Sink | None = None
    ) -> AbstractAsyncContextManager[AsyncIterator[Batch]]:
        """Hand out the events of a run with `seq > after`, in batches, up to the terminal event.

        What comes while the iterator waits is offered to `sink` first; the iterator goes on behind
        what it took.
        """
        return RunTail(self._store, self._bus, run_id, after, sink)

    def session(
        self, tenant: str, session_id: str, cursor: str | None = None
    ) -> AbstractAsyncContextManager[AsyncIterator[list[SessionItem]]]:
        """Hand out the events of all runs of a session, exact in order per run, without end.

        What a reader saw of a run and a loss of power took is said before that run goes on. Raises
        InvalidRequest at once for a cursor that is none.
        """
        position = SessionCursor.parse(cursor, tenant, session_id)
        return self._session(tenant, session_id, position)

    async def cursor(self, tenant: str, session_id: str) -> str:
        """Return the cursor from which a session's stream brings only what comes from now on."""
        return (await behind_all(self._store, tenant, session_id)).text()

    @asynccontextmanager
    async def _session(
        self, tenant: str, session_id: str, position: SessionCursor
    ) -> AsyncIterator[AsyncIterator[list[SessionItem]]]:
        follower = SessionFollower(self._store, tenant, session_id, position)
        with self._bus.subscribe(f"session:{tenant}/{session_id}") as mailbox:
            yield follower.follow(mailbox)


class RunTail(AbstractAsyncContextManager[AsyncIterator[Batch]]):
    """One reader of one run: from the store as long as it is behind, then from the bus."""

    __slots__ = ("_cursor", "_run_id", "_sink", "_store", "_subscription")

    def __init__(self, store: Store, bus: Bus, run_id: str, after: int, sink: Sink | None) -> None:
        self._store = store
        self._subscription = bus.subscribe(f"run:{run_id}", self.hear)
        self._run_id = run_id
        self._cursor = after
        self._sink = sink

    async def __aenter__(self) -> AsyncIterator[Batch]:
        return self.follow(self._subscription.__enter__())

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self._subscription.__exit__(kind, error, tb)

    async def follow(self, mailbox: Mailbox) -> AsyncIterator[Batch]:
        """Yield everything after the cursor, up to the terminal event."""
        while True:
            while batch := await self._store.read(self._run_id, self._cursor, PAGE):
                end = self._pass(batch)
                yield batch
                del batch  # nothing is kept while the reader is waited for
                if end:
                    return
            if await self._is_over():
                return
            hole = False
            while not hole:
                batch, hole = contiguous(await mailbox.take(), self._cursor)
                if batch:
                    end = self._pass(batch)
                    yield batch
                    if end:
                        return
                del batch

    def hear(self, hint: Hint) -> bool:
        """Pass a hint on to the sink; the end, and what does not follow, is for the iterator."""
        events = hint.events
        if self._sink is None or not events or events.seqs[0] != self._cursor + 1:
            return False
        if is_end(events) or not self._sink(events):
            return False
        self._cursor = events.seqs[-1]
        return True

    def _pass(self, batch: Batch) -> bool:
        """Move the cursor behind a batch; return whether that is the end."""
        self._cursor = batch.seqs[-1]
        return is_end(batch)

    async def _is_over(self) -> bool:
        """Return whether nothing can follow; a cursor beyond the end is at the end."""
        run = await self._store.get(Run, self._run_id)
        return run is None or (run.status in ENDED and self._cursor >= run.head)
