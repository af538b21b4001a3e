"""Replay, then follow, for a whole session: every run of it in order, each from its own place."""

import base64
import binascii
from collections.abc import AsyncIterator, Sequence
from hashlib import blake2b
from typing import Annotated, Final, TypeAlias

import msgspec

from orchestrator.core.batch import Batch
from orchestrator.core.errors import InvalidRequest
from orchestrator.core.events import TERMINAL, LogEvent
from orchestrator.core.records import Run
from orchestrator.core.states import OPEN
from orchestrator.engine.following import PAGE, contiguous
from orchestrator.ports import Hint, Mailbox, Store, Where

_RUNS: Final = 100
_WHOLE: Final = -1


class SessionEvent(msgspec.Struct, frozen=True):
    """An event of a session, and the cursor from which the stream goes on after it."""

    event: LogEvent
    run_id: str
    cursor: str


class LogReset(msgspec.Struct, frozen=True):
    """What the reader saw of a run after `after_seq` is void: a loss of power took it.

    `generation` is that of the run's log from now on.
    """

    run_id: str
    after_seq: int
    generation: int


SessionItem: TypeAlias = SessionEvent | LogReset
_Seq: TypeAlias = Annotated[int, msgspec.Meta(ge=_WHOLE, lt=1 << 32)]
_Generation: TypeAlias = Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)]


class SessionCursor(msgspec.Struct, omit_defaults=True):
    """How far a session stream has come, opaque on the wire.

    Every run up to key `done` is delivered whole, but for those in `seqs`: of them this much, in
    the generation of `forks`, 0 where it says nothing. So it grows with the open runs only. `of` is
    a digest of the session. (Of an older cursor -1 says that a run after `done` is whole, too, and
    it says no session.)
    """

    of: str = ""
    done: Annotated[int, msgspec.Meta(ge=0, le=1 << 53)] = 0
    seqs: dict[str, _Seq] = {}
    forks: dict[str, _Generation] = {}

    @classmethod
    def start(cls, tenant: str, session_id: str) -> "SessionCursor":
        """Return the cursor in front of all events of a session."""
        name = f"{tenant}/{session_id}".encode()
        return cls(of=blake2b(name, digest_size=4).hexdigest())

    @classmethod
    def parse(cls, text: str | None, tenant: str, session_id: str) -> "SessionCursor":
        """Return the cursor a client sent back; raises InvalidRequest for anything else."""
        start = cls.start(tenant, session_id)
        if not text:
            return start
        try:
            padded = text + "=" * (-len(text) % 4)
            found = msgspec.json.decode(base64.urlsafe_b64decode(padded), type=cls)
        except (msgspec.MsgspecError, binascii.Error, ValueError):
            found = None
        if found is None or found.of not in {"", start.of}:
            raise InvalidRequest(
                "the cursor is not one of this stream; leave it out to start from the beginning"
            )
        found.of = start.of
        return found

    def text(self) -> str:
        """Return the wire form."""
        return base64.urlsafe_b64encode(msgspec.json.encode(self)).rstrip(b"=").decode()


async def behind_all(store: Store, tenant: str, session_id: str) -> SessionCursor:
    """Return the cursor behind everything that a session has now, whatever that is."""
    where: tuple[Where, ...] = (("tenant", "=", tenant), ("session_id", "=", session_id))
    newest = await store.find(Run, *where, order="-key", limit=1)
    cursor = SessionCursor.start(tenant, session_id)
    cursor.done = newest[0].key if newest else 0
    still_open: tuple[Where, ...] = (("status", "in", sorted(OPEN)), ("key", "<=", cursor.done))
    at = 0
    while runs := await store.find(
        Run, *where, *still_open, ("key", ">", at), order="key", limit=_RUNS
    ):
        at = runs[-1].key
        cursor.seqs.update({run.run_id: run.head for run in runs})
        cursor.forks.update({run.run_id: len(run.forks) for run in runs if run.forks})
    return cursor


class SessionFollower:
    """Follows the runs of one session, in order of acceptance, each from its own cursor."""

    def __init__(self, store: Store, tenant: str, session_id: str, cursor: SessionCursor) -> None:
        self._store = store
        self._where: tuple[Where, ...] = (
            ("tenant", "=", tenant),
            ("session_id", "=", session_id),
        )
        self._came = cursor.seqs
        """Where the reader is in runs that have not been looked at yet."""
        self._seen = cursor.forks
        self._cursor = SessionCursor(of=cursor.of, done=cursor.done)

    async def follow(self, mailbox: Mailbox) -> AsyncIterator[list[SessionItem]]:
        """Yield everything missed, then everything that happens."""
        async for items in self._go_on():
            yield items
        async for items in self._catch_up():
            yield items
        while True:
            for hint in await mailbox.take():
                async for items in self._heard(hint):
                    yield items

    async def _go_on(self) -> AsyncIterator[list[SessionItem]]:
        """Read on in the runs that the reader was in the middle of; those retired are forgotten."""
        names = sorted(name for name, seq in self._came.items() if seq != _WHOLE)
        runs: list[Run] = []
        for at in range(0, len(names), _RUNS):
            some = names[at : at + _RUNS]
            runs += await self._store.find(Run, *self._where, ("run_id", "in", some), limit=_RUNS)
        for run in runs:  # all are in the cursor before the first of their events is
            self._cursor.seqs[run.run_id] = self._came[run.run_id]
        for run in sorted(runs, key=lambda run: run.key):
            async for items in self._enter(run):
                yield items

    async def _enter(self, run: Run) -> AsyncIterator[list[SessionItem]]:
        seq, agreed = self._cursor.seqs[run.run_id], self._agreed(run)
        if run.forks:
            self._cursor.forks[run.run_id] = len(run.forks)
        if agreed is not None and agreed < seq:
            self._cursor.seqs[run.run_id] = agreed
            yield [LogReset(run.run_id, agreed, len(run.forks))]
        async for items in self._read(run.run_id):
            yield items

    def _agreed(self, run: Run) -> int | None:
        """Return the seq up to which the reader's log of a run is today's, None for all of it."""
        return min(run.forks[self._seen.get(run.run_id, 0) :], default=None)

    async def _catch_up(self) -> AsyncIterator[list[SessionItem]]:
        while runs := await self._next_runs():
            for run in runs:
                self._cursor.done = run.key
                if run.run_id not in self._came:
                    self._cursor.seqs[run.run_id] = 0
                    async for items in self._enter(run):
                        yield items

    async def _next_runs(self) -> Sequence[Run]:
        after: Where = ("key", ">", self._cursor.done)
        return await self._store.find(Run, *self._where, after, order="key", limit=_RUNS)

    async def _heard(self, hint: Hint) -> AsyncIterator[list[SessionItem]]:
        if hint.run_id not in self._cursor.seqs:  # a new one, or one that is delivered
            async for items in self._catch_up():
                yield items
        seq = self._cursor.seqs.get(hint.run_id)
        if seq is None or hint.head <= seq:
            return
        events, hole = contiguous([hint], seq)
        if events:
            yield self._mark(hint.run_id, events)
        if hole:
            async for items in self._read(hint.run_id):
                yield items

    async def _read(self, run_id: str) -> AsyncIterator[list[SessionItem]]:
        while (seq := self._cursor.seqs.get(run_id)) is not None:
            page = await self._store.read(run_id, seq, PAGE)
            if not page:
                return
            yield self._mark(run_id, page)

    def _mark(self, run_id: str, events: Batch) -> list[SessionItem]:
        marked: list[SessionItem] = []
        for event in events:
            self._cursor.seqs[run_id] = event.seq
            if event.type in TERMINAL:
                del self._cursor.seqs[run_id]
                self._cursor.forks.pop(run_id, None)
            marked.append(SessionEvent(event, run_id, self._cursor.text()))
        return marked
