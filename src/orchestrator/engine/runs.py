"""What callers do with runs: invoke, look, wait, cancel, run again."""

import asyncio
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Generic, TypeVar

import msgspec

from orchestrator.core import values
from orchestrator.core.access import TENANT, Caller
from orchestrator.core.decide import Cancel
from orchestrator.core.errors import Conflict, InvalidRequest, RunEnded, RunNotFound
from orchestrator.core.events import LogEvent, open_event
from orchestrator.core.ops import Write
from orchestrator.core.records import Invocation, Run
from orchestrator.core.states import ENDED, RunState
from orchestrator.engine.audit import Audit
from orchestrator.engine.intake import RERUN_OF, Accepted, Intake, Invoke
from orchestrator.engine.ledger import Ledger
from orchestrator.engine.limits import TREE_MAX
from orchestrator.engine.tail import Tails
from orchestrator.ports import Where

T = TypeVar("T")
HUNG_UP = "the caller hung up"
"""The reason of runs that ended because nobody waited for them any more."""
_REASON_MAX = 200
"""Characters of a reason that the audit log keeps."""
_SCAN = 1000
_AT_ONCE = 200
_DIGITS_MAX = 18
"""Fewer than SQLite's largest key has."""


class Page(msgspec.Struct, Generic[T], frozen=True):
    """A page of a list; `next_cursor` asks for the one after it."""

    items: list[T]
    next_cursor: str | None = None


class EventPage(msgspec.Struct, frozen=True):
    """A page of a run's log up to `next_seq`; `trimmed` says that deltas are retired."""

    events: list[LogEvent]
    has_more: bool
    next_seq: int
    trimmed: bool


class Tree(msgspec.Struct):
    """A run and the runs it called, to any depth; `has_more` says that not all of them are here."""

    run: Run
    children: list["Tree"] = []
    has_more: bool = False


class Runs:
    """The runs of a tenant."""

    def __init__(self, ledger: Ledger, intake: Intake, tails: Tails, audit: Audit) -> None:
        self._ledger = ledger
        self._audit = audit
        self._intake = intake
        self._tails = tails
        self._lines: Counter[str] = Counter()
        self._leaving: dict[str, asyncio.Event] = {}

    async def invoke(self, request: Invoke) -> Accepted:
        """Return the durable run that answers `request`."""
        while True:
            accepted = await self._intake.take(request)
            leaving = self._leaving.get(accepted.run.run_id)
            if leaving is None:
                return accepted
            await leaving.wait()  # its key is about to be free

    async def get(self, run_id: str, tenant: str = TENANT) -> Run:
        """Return a run; raises RunNotFound, also for a foreign tenant's."""
        run = await self._ledger.load(run_id)
        if run.tenant != tenant:
            raise RunNotFound(f"run {run_id} not found")
        return run

    async def invocation(self, run_id: str) -> Invocation:
        """Return what a run was asked."""
        invocation = await self._ledger.store.get(Invocation, run_id)
        if invocation is None:
            raise RunNotFound(f"run {run_id} not found")
        return invocation

    async def find(
        self,
        tenant: str = TENANT,
        *,
        status: Collection[str] = (),
        agent_id: str | None = None,
        session_id: str | None = None,
        parent_run_id: str | None = None,
        created_before: int | None = None,
        cursor: str | None = None,
        limit: int = 50,
    ) -> Page[Run]:
        """Return runs, newest first."""
        where: list[Where] = [("tenant", "=", tenant)]
        if status:
            where.append(("status", "in", _states(status)))
        named = {"agent_id": agent_id, "session_id": session_id, "parent_run_id": parent_run_id}
        where += [(column, "=", name) for column, name in named.items() if name is not None]
        if created_before is not None:
            where.append(("created_at", "<", created_before))
        if cursor:
            where.append(("key", "<", _number(cursor)))
        found = await self._ledger.store.find(Run, *where, order="-key", limit=limit + 1)
        return page_of(found, limit, lambda run: str(run.key))

    async def tree(self, run_id: str, tenant: str = TENANT, *, limit: int = TREE_MAX) -> Tree:
        """Return a run with all runs below it, level by level until there are `limit`."""
        top = Tree(await self.get(run_id, tenant))
        level, room = {top.run.run_id: top}, limit - 1
        while level:
            below = await self._below(level, room + 1)
            if len(below) > room:
                for node in (*level.values(), *below[:room]):
                    node.has_more = True
            for node in below[:room]:
                level[node.run.parent_run_id or ""].children.append(node)
            if len(below) > room:
                break
            level, room = {node.run.run_id: node for node in below}, room - len(below)
        return top

    async def _below(self, level: Collection[str], limit: int) -> list[Tree]:
        """Return the first children of many runs, in the order in which they were called."""
        names = sorted(level)
        found: list[Run] = []
        for at in range(0, len(names), _AT_ONCE):
            ours: Where = ("parent_run_id", "in", names[at : at + _AT_ONCE])
            found += await self._ledger.store.find(Run, ours, order="key", limit=limit)
        return [Tree(run) for run in sorted(found, key=lambda run: run.key)[:limit]]

    @contextmanager
    def line(self, run_id: str) -> Iterator[None]:
        """Count a caller who is on the line: as long as another is, a hang-up ends nothing."""
        self._lines[run_id] += 1
        try:
            yield
        finally:
            self._lines[run_id] -= 1
            if not self._lines[run_id]:
                del self._lines[run_id]

    async def hung_up(self, run_id: str, tenant: str = TENANT) -> None:
        """End a run whose caller has gone, unless another is on the line.

        The key of a child is free again: the next attempt of its parent begins a new one.
        """
        if self._lines[run_id] or run_id in self._leaving:
            return
        leaving = self._leaving[run_id] = asyncio.Event()
        try:
            run = await self.get(run_id, tenant)
            if run.status not in ENDED:
                with suppress(RunEnded):  # it came to its end meanwhile
                    await self._ledger.execute(run, Cancel(reason=HUNG_UP, forgets=True))
        finally:
            del self._leaving[run_id]
            leaving.set()

    async def cancel(
        self, run_id: str, reason: str, tenant: str = TENANT, by: Caller | None = None
    ) -> Run:
        """End a run; again is the same answer. Raises RunEnded when it ended otherwise.

        That somebody did it who is confined to no session or run is in the audit log.
        """
        run, also = await self.get(run_id, tenant), list[Write]()
        if by is not None and by.session_id is None and by.run_id is None:
            also.append(self._audit.entry(by, "run.cancel", run_id, reason=reason[:_REASON_MAX]))
        return await self._ledger.execute(run, Cancel(reason=reason), None, *also)

    async def rerun(self, run_id: str, tenant: str = TENANT) -> Accepted:
        """Return a new run of the same agent with the same message, in the same session.

        Raises Conflict while the run is open.
        """
        run = await self.get(run_id, tenant)
        if not ended(run):
            raise Conflict(f"run {run_id} is {run.status}; cancel it, or wait for its end")
        asked = await self.invocation(run_id)
        return await self._intake.take(
            Invoke(
                tenant=tenant,
                agent_id=run.agent_id,
                session_id=run.session_id,
                role=asked.role,
                content=asked.content,
                context=asked.context,
                labels={name: text for name, text in run.labels.items() if name != RERUN_OF},
                timeout_ms=asked.timeout_ms,
                rerun_of=run.run_id,
            )
        )

    async def wait(self, run_id: str, timeout_s: float, tenant: str = TENANT) -> Run:
        """Return a run when it has ended, or as it is after `timeout_s`."""
        run = await self.get(run_id, tenant)
        try:
            async with (
                asyncio.timeout(timeout_s),
                self._tails.run(run_id, run.head) as batches,
            ):
                async for _ in batches:
                    pass
        except TimeoutError:
            pass
        return await self.get(run_id, tenant)

    async def events(
        self,
        run: Run,
        *,
        after_seq: int = 0,
        after_ts: int | None = None,
        types: Collection[str] = (),
        limit: int = 100,
    ) -> EventPage:
        """Return the next `limit` events after `after_seq` that were written after `after_ts`."""
        found: list[LogEvent] = []
        seq = after_seq
        while len(found) <= limit:
            scanned = await self._ledger.store.read(run.run_id, seq, _SCAN)
            found += [event for event in scanned if _wanted(event, types, after_ts)]
            if not scanned:
                break
            seq = scanned.seqs[-1]
        events = found[:limit]
        last = events[-1].seq if events else after_seq
        return EventPage(events, len(found) > limit, last, run.trimmed)


def page_of(found: list[T], limit: int, cursor: Callable[[T], str]) -> Page[T]:
    """Return the first `limit` of `found`, with a cursor when there are more."""
    more = len(found) > limit
    return Page(found[:limit], cursor(found[limit - 1]) if more else None)


def _wanted(event: LogEvent, types: Collection[str], after_ts: int | None) -> bool:
    if types and event.type not in types:
        return False
    return after_ts is None or open_event(event.data).ts > after_ts


def _states(wanted: Collection[str]) -> Sequence[str]:
    states = [text.upper() for text in wanted]
    for state in states:
        if state not in RunState.__members__:
            raise InvalidRequest(f"status must be one of {', '.join(RunState)}")
    return states


def _number(cursor: str) -> int:
    if not values.is_number(cursor, _DIGITS_MAX):
        raise InvalidRequest("the cursor is not one of this list; leave it out to start over")
    return int(cursor)


def ended(run: Run) -> bool:
    """Return whether the run's terminal event is in the log."""
    return run.status in ENDED
