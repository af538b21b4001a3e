"""Replay, then follow: one cursor, no gap, no duplicate, for a run or for a whole session."""

import base64
import binascii
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from types import TracebackType
from typing import Annotated, TypeAlias

import msgspec

from orchestrator.core.batch import EMPTY, Batch
from orchestrator.core.errors import InvalidRequest
from orchestrator.core.events import TERMINAL, LogEvent
from orchestrator.core.records import Run
from orchestrator.core.states import ENDED
from orchestrator.ports import Bus, Hint, Mailbox, Store, Where

PAGE = 1000
Sink: TypeAlias = Callable[[Batch], bool]
"""Takes a batch at once, or returns False when it cannot just now."""


class SessionEvent(msgspec.Struct, frozen=True):
    """An event of a session, and the cursor from which the stream goes on after it."""

    event: LogEvent
    run_id: str
    cursor: str


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
    ) -> AbstractAsyncContextManager[AsyncIterator[list[SessionEvent]]]:
        """Hand out the events of all runs of a session, exact in order per run, without end.

        Raises InvalidRequest at once for a cursor that is none.
        """
        position = SessionCursor.parse(cursor)
        return self._session(tenant, session_id, position)

    @asynccontextmanager
    async def _session(
        self, tenant: str, session_id: str, position: "SessionCursor"
    ) -> AsyncIterator[AsyncIterator[list[SessionEvent]]]:
        follower = _SessionFollower(self._store, tenant, session_id, position)
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
                batch, hole = _contiguous(await mailbox.take(), self._cursor)
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
        if _is_end(events) or not self._sink(events):
            return False
        self._cursor = events.seqs[-1]
        return True

    def _pass(self, batch: Batch) -> bool:
        """Move the cursor behind a batch; return whether that is the end."""
        self._cursor = batch.seqs[-1]
        return _is_end(batch)

    async def _is_over(self) -> bool:
        """Return whether nothing can follow; a cursor beyond the end is at the end."""
        run = await self._store.get(Run, self._run_id)
        return run is None or (run.status in ENDED and self._cursor >= run.head)


def _is_end(batch: Batch) -> bool:
    return bool(batch) and batch.types[-1] in TERMINAL


def _contiguous(hints: list[Hint], cursor: int) -> tuple[Batch, bool]:
    """Return the new events that directly follow `cursor`, and whether more must be read."""
    found: list[Batch] = []
    hole = False
    for hint in hints:
        if hint.head <= cursor:
            # Whoever asked for more than there will be learns of the end by a look at the run.
            hole = hole or _is_end(hint.events)
            continue
        fresh = hint.events.after(cursor)
        if not fresh or fresh.seqs[0] != cursor + 1:
            hole = True
            break
        found.append(fresh)
        cursor = fresh.seqs[-1]
    return Batch.chain(found) if found else EMPTY, hole


class SessionCursor(msgspec.Struct):
    """How far a session stream has come: every run up to key `done` whole, of later ones so many.

    Opaque on the wire; an ended and delivered run above `done` is kept as -1.
    """

    done: Annotated[int, msgspec.Meta(ge=0, le=1 << 53)] = 0
    seqs: dict[str, Annotated[int, msgspec.Meta(ge=-1, lt=1 << 32)]] = {}

    @classmethod
    def parse(cls, text: str | None) -> "SessionCursor":
        """Return the cursor a client sent back; raises InvalidRequest for anything else."""
        if not text:
            return cls()
        try:
            padded = text + "=" * (-len(text) % 4)
            return msgspec.json.decode(base64.urlsafe_b64decode(padded), type=cls)
        except (msgspec.MsgspecError, binascii.Error, ValueError) as error:
            raise InvalidRequest(
                "the cursor is not one of this stream; leave it out to start from the beginning"
            ) from error

    def text(self) -> str:
        """Return the wire form."""
        return base64.urlsafe_b64encode(msgspec.json.encode(self)).rstrip(b"=").decode()


class _SessionFollower:
    """Follows the runs of one session, in order of acceptance, each from its own cursor."""

    def __init__(self, store: Store, tenant: str, session_id: str, cursor: SessionCursor) -> None:
        self._store = store
        self._where: tuple[Where, ...] = (
            ("tenant", "=", tenant),
            ("session_id", "=", session_id),
        )
        self._cursor = cursor
        self._keys: dict[str, int] = {}
        self._known = cursor.done

    async def follow(self, mailbox: Mailbox) -> AsyncIterator[list[SessionEvent]]:
        """Yield everything missed, then everything that happens."""
        async for batch in self._catch_up():
            yield batch
        while True:
            for hint in await mailbox.take():
                async for batch in self._catch_up_run(hint):
                    yield batch

    async def _catch_up(self) -> AsyncIterator[list[SessionEvent]]:
        while runs := await self._more_runs():
            for run in runs:
                async for batch in self._read(run.run_id):
                    yield batch

    async def _more_runs(self) -> list[Run]:
        runs = await self._store.find(
            Run, *self._where, ("key", ">", self._known), order="key", limit=100
        )
        for run in runs:
            self._keys[run.run_id] = run.key
            self._known = max(self._known, run.key)
        return runs

    async def _catch_up_run(self, hint: Hint) -> AsyncIterator[list[SessionEvent]]:
        if hint.run_id not in self._keys:
            async for batch in self._catch_up():
                yield batch
        seq = self._place(hint.run_id)
        if seq < 0 or hint.head <= seq:
            return
        events, hole = _contiguous([hint], seq)
        if events:
            yield self._mark(hint.run_id, events)
        if hole:
            async for batch in self._read(hint.run_id):
                yield batch

    async def _read(self, run_id: str) -> AsyncIterator[list[SessionEvent]]:
        while (seq := self._place(run_id)) >= 0:
            page = await self._store.read(run_id, seq, PAGE)
            if not page:
                return
            yield self._mark(run_id, page)

    def _place(self, run_id: str) -> int:
        """Return how far a run is delivered; -1 is whole, which a settled run is, too."""
        return self._cursor.seqs.get(run_id, 0) if run_id in self._keys else -1

    def _mark(self, run_id: str, events: Batch) -> list[SessionEvent]:
        marked = []
        for event in events:
            self._cursor.seqs[run_id] = -1 if event.type in TERMINAL else event.seq
            if event.type in TERMINAL:
                self._settle()
            marked.append(SessionEvent(event, run_id, self._cursor.text()))
        return marked

    def _settle(self) -> None:
        """Forget the oldest runs that are delivered whole, so that the cursor stays small."""
        for run_id, key in sorted(self._keys.items(), key=lambda item: item[1]):
            if key > self._cursor.done and self._cursor.seqs.get(run_id) != -1:
                return
            self._cursor.done = max(self._cursor.done, key)
            self._cursor.seqs.pop(run_id, None)
            del self._keys[run_id]
