"""Stores that break one promise each, around any store that keeps them all.

They prove the contract of stores: `testing/store_contract.py` must be red for every one of them.
"""

import json
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Final

from msgspec.structs import replace

from orchestrator.core.batch import EMPTY, Batch, seal_all
from orchestrator.core.errors import OrchestratorError
from orchestrator.core.events import AgentStreamDelta, draft
from orchestrator.core.ops import Committed, Delete, Insert, Op, Outcome, Patch, Put, Refused
from orchestrator.core.records import NEXT, R, Run, Timer
from orchestrator.core.states import RunState
from orchestrator.ports import Claimed, Done, Store, Trimmed, Where

_MARK: Final = "evt_hole"
_READY: Final = ("status", "in", [RunState.CREATED, RunState.RUNNING])


class Through:
    """A store that passes everything on; a flaw is what a subclass does otherwise."""

    in_order = True

    def __init__(self, store: Store) -> None:
        self.store = store

    def now(self) -> int:
        return self.store.now()

    async def commit(self, *ops: Op) -> list[Outcome]:
        return await self.store.commit(*ops)

    def append(self, op: Op, done: Done) -> None:
        self.store.append(op, done)

    async def read(self, run_id: str, after: int, limit: int = 1000) -> Batch:
        return await self.store.read(run_id, after, limit)

    async def get(self, kind: type[R], *key: Any, deciding: bool = False) -> R | None:
        return await self.store.get(kind, *key, deciding=deciding)

    async def find(
        self, kind: type[R], *where: Where, order: str = "", limit: int = 100,
        deciding: bool = False,
    ) -> list[R]:  # fmt: skip
        return await self.store.find(kind, *where, order=order, limit=limit, deciding=deciding)

    async def count(self, kind: type[R], *where: Where) -> int:
        return await self.store.count(kind, *where)

    async def claim(self, owner: str, limit: int, run_ids: Sequence[str] = ()) -> list[Claimed]:
        return await self.store.claim(owner, limit, run_ids)

    async def renew(self, owner: str, ttl_ms: int) -> None:
        await self.store.renew(owner, ttl_ms)

    async def due(self, limit: int = 100) -> list[Timer]:
        return await self.store.due(limit)

    async def trim(self, runs_before: int, deltas_before: int, limit: int = 100) -> Trimmed:
        return await self.store.trim(runs_before, deltas_before, limit)

    async def backup(self, path: str) -> None:
        await self.store.backup(path)

    async def probe(self) -> None:
        await self.store.probe()

    def stats(self) -> dict[str, float]:
        return self.store.stats()

    async def close(self) -> None:
        await self.store.close()


# ---------------------------------------------------------------- guards


class Rewriting(Through):
    """Changes each op before it is carried out."""

    def rewritten(self, op: Op) -> Op:
        return op

    async def commit(self, *ops: Op) -> list[Outcome]:
        return await self.store.commit(*map(self.rewritten, ops))

    def append(self, op: Op, done: Done) -> None:
        self.store.append(self.rewritten(op), done)


class IgnoresEpochs(Rewriting):
    """Lets a zombie write."""

    def rewritten(self, op: Op) -> Op:
        return replace(op, guard=replace(op.guard, epoch=None))


class IgnoresVersions(Rewriting):
    """Lets two deciders win."""

    def rewritten(self, op: Op) -> Op:
        return replace(op, guard=replace(op.guard, version=None))


class IgnoresStates(Rewriting):
    """Does not ask where a run stands."""

    def rewritten(self, op: Op) -> Op:
        return replace(op, guard=replace(op.guard, states=frozenset()))


class HasAlwaysRoom(Rewriting):
    """Does not ask who is there already."""

    def rewritten(self, op: Op) -> Op:
        return replace(op, room=None)


class InsertsOver(Rewriting):
    """Writes over what a key already leads to."""

    def rewritten(self, op: Op) -> Op:
        writes = (Put(one.record) if isinstance(one, Insert) else one for one in op.writes)
        return replace(op, writes=tuple(writes))


class InsertsNothing(Rewriting):
    """Skips an insertion whose key is taken, and says that all is well."""

    def rewritten(self, op: Op) -> Op:
        writes = (
            replace(one, absent_ok=True) if isinstance(one, Insert) else one for one in op.writes
        )
        return replace(op, writes=tuple(writes))


class RequiresNothing(Rewriting):
    """Fires a timer twice."""

    def rewritten(self, op: Op) -> Op:
        writes = (
            replace(one, required=False) if isinstance(one, Delete | Patch) else one
            for one in op.writes
        )
        return replace(op, writes=tuple(writes))


class PatchesWithoutLooking(Rewriting):
    """Does not compare what a patch says must stand there."""

    def rewritten(self, op: Op) -> Op:
        writes = (replace(one, where={}) if isinstance(one, Patch) else one for one in op.writes)
        return replace(op, writes=tuple(writes))


class KeepsNothing(Rewriting):
    """Replaces columns that a put is told to keep."""

    def rewritten(self, op: Op) -> Op:
        writes = (replace(one, keep=()) if isinstance(one, Put) else one for one in op.writes)
        return replace(op, writes=tuple(writes))


class LeavesWritesBehind(Through):
    """Refuses an op, and what it wrote stays."""

    async def commit(self, *ops: Op) -> list[Outcome]:
        outcomes = await self.store.commit(*ops)
        for op, outcome in zip(ops, outcomes, strict=True):
            if isinstance(outcome, Refused):
                for write in op.writes:
                    await self.store.commit(Op(writes=(write,)))
        return outcomes


class RefusesNeighbours(Through):
    """Refuses whatever stands behind an op that is refused."""

    async def commit(self, *ops: Op) -> list[Outcome]:
        outcomes: list[Outcome] = []
        for op in ops:
            before = next((one for one in outcomes if isinstance(one, Refused)), None)
            outcomes.append(before or (await self.store.commit(op))[0])
        return outcomes


# ---------------------------------------------------------------- the log


class Telling(Through):
    """Tells of the events of a log otherwise than they are, to whoever writes or reads."""

    def told(self, events: Batch) -> Batch:
        return events

    async def commit(self, *ops: Op) -> list[Outcome]:
        outcomes = await self.store.commit(*ops)
        return [
            replace(one, events=self.told(one.events)) if isinstance(one, Committed) else one
            for one in outcomes
        ]

    async def read(self, run_id: str, after: int, limit: int = 1000) -> Batch:
        return self.told(await self.store.read(run_id, after, limit))


class LeavesAHole(Telling, Rewriting):
    """Uses up a number that nobody gets to see."""

    def rewritten(self, op: Op) -> Op:
        if not op.events or op.create is not None:
            return op
        hole = draft(_MARK, 0, AgentStreamDelta(text=""))
        return replace(op, events=(hole, *op.events))

    def told(self, events: Batch) -> Batch:
        return events.chosen([n for n, text in enumerate(events.texts) if _MARK not in text])

    async def commit(self, *ops: Op) -> list[Outcome]:
        return await Telling.commit(self, *map(self.rewritten, ops))


class NumbersTwice(Telling):
    """Gives the number 2 to the third event, too."""

    def told(self, events: Batch) -> Batch:
        seqs = [2 if seq == 3 else seq for seq in events.seqs]  # noqa: PLR2004  # the third
        texts = [text.replace('"seq":3,', '"seq":2,', 1) for text in events.texts]
        return Batch(seqs, events.types, texts)


class EscapesText(Through):
    """Reads back JSON that means the same and is not the same."""

    async def read(self, run_id: str, after: int, limit: int = 1000) -> Batch:
        found = await self.store.read(run_id, after, limit)
        texts = [json.dumps(json.loads(text), separators=(",", ":")) for text in found.texts]
        return Batch(found.seqs, found.types, texts)


class ReadsFromTheStart(Through):
    """Ignores where a reader has come to."""

    async def read(self, run_id: str, after: int, limit: int = 1000) -> Batch:
        del after
        return await self.store.read(run_id, 0, limit)


class LosesTheLast(Through):
    """Writes all events of a batch but the last, and tells of them all."""

    async def commit(self, *ops: Op) -> list[Outcome]:
        short = [replace(op, events=op.events[: max(1, len(op.events) - 1)]) for op in ops]
        outcomes = await self.store.commit(*short)
        return [_whole(op, outcome) for op, outcome in zip(ops, outcomes, strict=True)]


class AnswersTooEarly(Through):
    """Says that words are committed, and keeps them to itself."""

    async def commit(self, *ops: Op) -> list[Outcome]:
        if any(op.changes_state or op.create is not None for op in ops):
            return await self.store.commit(*ops)
        silent = [replace(op, events=()) for op in ops]
        outcomes = await self.store.commit(*silent)
        return [_whole(op, outcome) for op, outcome in zip(ops, outcomes, strict=True)]


class AppendsNothing(Through):
    """Answers appended words without writing them."""

    def append(self, op: Op, done: Done) -> None:
        def told(outcome: Outcome | OrchestratorError) -> None:
            done(_whole(op, outcome) if isinstance(outcome, Committed) else outcome)

        self.store.append(replace(op, events=op.events[:0]), told)


def _whole(op: Op, outcome: Outcome) -> Outcome:
    """Return an outcome as if all of the op's events had been written."""
    if isinstance(outcome, Refused) or op.run_id is None or not op.events:
        return outcome
    first = outcome.head - len(outcome.events) + 1
    return replace(
        outcome, head=first + len(op.events) - 1, events=seal_all(op.run_id, first, op.events)
    )


# ---------------------------------------------------------------- records


class FindsTooMuch(Through):
    """Ignores a limit."""

    async def find(self, kind: type[R], *where: Where, limit: int = 100, **how: Any) -> list[R]:
        del limit
        return await self.store.find(kind, *where, limit=10_000, **how)


class FindsInAnyOrder(Through):
    """Ignores an order."""

    async def find(self, kind: type[R], *where: Where, order: str = "", **how: Any) -> list[R]:
        return await self.store.find(kind, *where, order=order.removeprefix("-"), **how)


class CountsEverything(Through):
    """Counts without looking at conditions."""

    async def count(self, kind: type[R], *where: Where) -> int:
        del where
        return await self.store.count(kind)


class PlacesNobody(Rewriting):
    """Leaves a message whose turn has come where it waits."""

    def rewritten(self, op: Op) -> Op:
        writes = (one for one in op.writes if not _gives_place(one))
        return replace(op, writes=tuple(writes))


def _gives_place(write: object) -> bool:
    return isinstance(write, Patch) and write.changes.get("pos") == NEXT


# ---------------------------------------------------------------- owners


class Grabbing(Through):
    """Claims more than it may: what `more` finds."""

    more: ClassVar[tuple[Where, ...]] = ()

    async def claim(self, owner: str, limit: int, run_ids: Sequence[str] = ()) -> list[Claimed]:
        claimed = await self.store.claim(owner, limit, run_ids)
        taken = {one.run.run_id for one in claimed}
        for run in await self.store.find(Run, _READY, *self.more, order="key"):
            if run.run_id not in taken and len(claimed) < limit:
                changes = {"owner": owner, "epoch": run.epoch + 1}
                await self.store.commit(Op(run_id=run.run_id, changes=changes))
                claimed.append(Claimed(replace(run, **changes)))
        return claimed


class ClaimsFromTheLiving(Grabbing):
    """Takes what somebody has who lives."""

    more: ClassVar[tuple[Where, ...]] = (("owner", "!=", None),)


class ClaimsOutOfOrder(Grabbing):
    """Takes what no one has, whoever else of its session is before it."""

    more: ClassVar[tuple[Where, ...]] = (("owner", "=", None),)


class ClaimsWithoutALease(Through):
    """Claims for somebody who has not said that he lives."""

    async def claim(self, owner: str, limit: int, run_ids: Sequence[str] = ()) -> list[Claimed]:
        await self.store.renew(owner, 1000)
        return await self.store.claim(owner, limit, run_ids)


class ClaimsWithoutBounds(Through):
    """Claims all there is."""

    async def claim(self, owner: str, limit: int, run_ids: Sequence[str] = ()) -> list[Claimed]:
        del limit, run_ids
        return await self.store.claim(owner, 1000)


class GivesTwice(Through):
    """Gives what somebody has just got to the next one, too."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self._last: tuple[str, list[Claimed]] = ("", [])

    async def claim(self, owner: str, limit: int, run_ids: Sequence[str] = ()) -> list[Claimed]:
        claimed = await self.store.claim(owner, limit, run_ids)
        before, self._last = self._last, (owner, claimed)
        return [*claimed, *(before[1] if before[0] != owner else [])][:limit]


class KeepsEpochs(Through):
    """Claims without a new epoch, so that a zombie's writes hold."""

    async def claim(self, owner: str, limit: int, run_ids: Sequence[str] = ()) -> list[Claimed]:
        claimed = await self.store.claim(owner, limit, run_ids)
        runs = [replace(one.run, epoch=one.run.epoch - 1) for one in claimed]
        await self.store.commit(
            *(Op(run_id=run.run_id, changes={"epoch": run.epoch}) for run in runs)
        )
        return [Claimed(run, one.lost_by) for run, one in zip(runs, claimed, strict=True)]


class KeepsLeases(Through):
    """Does not let go of what an owner gives up."""

    async def renew(self, owner: str, ttl_ms: int) -> None:
        if ttl_ms:
            await self.store.renew(owner, ttl_ms)


class FiresEarly(Through):
    """Hands out timers before their time."""

    async def due(self, limit: int = 100) -> list[Timer]:
        soon: Where = ("due_at", "<=", self.store.now() + 15)
        return await self.store.find(Timer, soon, order="due_at", limit=limit)


class FiresInAnyOrder(Through):
    """Hands out the latest timer first."""

    async def due(self, limit: int = 100) -> list[Timer]:
        return (await self.store.due(limit))[::-1]


# ---------------------------------------------------------------- keeping


class TrimsOpenRuns(Through):
    """Removes runs that are not over."""

    async def trim(self, runs_before: int, deltas_before: int, limit: int = 100) -> Trimmed:
        trimmed = await self.store.trim(runs_before, deltas_before, limit)
        if trimmed.runs:
            for run in await self.store.find(Run, ("ended_at", "=", None)):
                await self.store.commit(Op(run_id=run.run_id, changes={"ended_at": 1}))
            await self.store.trim(runs_before, 0, limit)
        return trimmed


class TrimsStates(Through):
    """Removes more of an old log than words."""

    async def read(self, run_id: str, after: int, limit: int = 1000) -> Batch:
        found = await self.store.read(run_id, after, limit)
        run = await self.store.get(Run, run_id)
        return found.part(0, 1) if found and run is not None and run.trimmed else found


class TrimsOnlyTheRun(Through):
    """Removes a run and leaves its timers behind, which would fire."""

    async def trim(self, runs_before: int, deltas_before: int, limit: int = 100) -> Trimmed:
        timers = await self.store.find(Timer)
        trimmed = await self.store.trim(runs_before, deltas_before, limit)
        await self.store.commit(Op(writes=tuple(map(Put, timers))))
        return trimmed


class TrimsEmptyLogs(Through):
    """Leaves nothing of an old log, not even that it was one."""

    async def read(self, run_id: str, after: int, limit: int = 1000) -> Batch:
        run = await self.store.get(Run, run_id)
        gone = run is not None and run.trimmed
        return EMPTY if gone else await self.store.read(run_id, after, limit)


FLAWS: Final[tuple[Callable[[Store], Store], ...]] = (
    IgnoresEpochs, IgnoresVersions, IgnoresStates, HasAlwaysRoom, InsertsOver, InsertsNothing,
    RequiresNothing, PatchesWithoutLooking, KeepsNothing, LeavesWritesBehind, RefusesNeighbours,
    LeavesAHole, NumbersTwice, EscapesText, ReadsFromTheStart, LosesTheLast, AnswersTooEarly,
    AppendsNothing, FindsTooMuch, FindsInAnyOrder, CountsEverything, PlacesNobody,
    ClaimsFromTheLiving, ClaimsOutOfOrder, ClaimsWithoutALease, ClaimsWithoutBounds, GivesTwice,
    KeepsEpochs, KeepsLeases, FiresEarly, FiresInAnyOrder, TrimsOpenRuns, TrimsStates,
    TrimsOnlyTheRun, TrimsEmptyLogs,
)  # fmt: skip
