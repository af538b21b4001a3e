"""Compares what a store said and holds with what the model did, apart from what each may choose.

A store chooses the numbers behind `Run.key` and behind the places of messages that wait, as long as
they rise in the order of acceptance, and the order of records that are equal in what was asked for.
"""

from collections.abc import Sequence
from typing import Any, Final

from msgspec.structs import replace

from orchestrator.core.batch import Batch
from orchestrator.core.ops import Committed, Op, Outcome, Refused
from orchestrator.core.records import PENDING, RECORDS, Blob, Lease, Message, Record, Run
from orchestrator.ports import Claimed, Store, Where
from orchestrator.testing.simulator.tables import key_of
from orchestrator.testing.store_machine_ops import run_of
from orchestrator.testing.store_machine_questions import KeyOf, Question

ALL: Final = 1 << 30
_OWN: Final = frozenset({"host", "probe"})
"""Blobs that stores keep for themselves."""


def same(what: str, wanted: Any, got: Any) -> None:
    """Raise AssertionError unless the store's answer is the model's."""
    if wanted != got:
        raise AssertionError(f"{what}: the model says\n  {wanted!r}\nand the store\n  {got!r}")


class Judge:
    """Knows which key of the store is which of the model."""

    def __init__(self, model: Store) -> None:
        self._model = model
        self._keys: dict[int, int] = {}
        self._runs: dict[str, int] = {}

    def outcomes(self, ops: Sequence[Op], wanted: list[Outcome], got: list[Outcome]) -> None:
        """Compare what became of ops."""
        same("outcomes", len(wanted), len(got))
        for op, mine, theirs in zip(ops, wanted, got, strict=True):
            if op.create is not None and isinstance(mine, Committed):
                self._learn(op, mine, theirs)
            if isinstance(mine, Refused) and mine.record is not None:
                mine = Refused(mine.why, _plain(mine.record))  # noqa: PLW2901  # the same, for equals
            same(f"what became of {_short(op)}", mine, self._outcome(theirs))

    def records(self, what: str, wanted: Sequence[Record], got: Sequence[Record]) -> None:
        """Compare records that are in no order."""
        mine = {key_of(record): _plain(record) for record in wanted}
        theirs = {key_of(record): self.record(record) for record in got}
        same(f"{what}, how many", len(wanted), len(got))
        for key in mine.keys() | theirs.keys():
            same(f"{what} {key}", mine.get(key), theirs.get(key))

    def found(self, question: Question, wanted: list[Any], got: list[Any]) -> None:
        """Compare what was found, of which `wanted` is everything in order."""
        column = question.order.removeprefix("-")
        most = min(len(wanted), question.limit)
        same(f"{question}, how many", most, len(got))
        if most == len(wanted):
            self.records(str(question), wanted, got)
        known = {key_of(record): _plain(record) for record in wanted}
        for record in got:
            same(f"{question}, one of", known.pop(key_of(record), None), self.record(record))
        mine = [_rank(record, column) for record in wanted[:most]]
        same(f"{question}, order", mine, [_rank(self.record(record), column) for record in got])

    def claims(self, wanted: list[Claimed], got: list[Claimed]) -> None:
        """Compare what was claimed."""
        same("claimed", wanted, [Claimed(self._run(one.run), one.lost_by) for one in got])

    def where(self, conditions: Sequence[Where], *, model: bool) -> list[Where]:
        """Return conditions with the keys that the model, or the store, has given."""
        return [
            (column, how, self._key(value.run, model=model) if isinstance(value, KeyOf) else value)
            for column, how, value in conditions
        ]

    def record(self, record: Record) -> Record:
        """Return a record of the store as the model would have it."""
        return self._run(record) if isinstance(record, Run) else _plain(record)

    async def everything(self, store: Store) -> None:
        """Compare all that there is."""
        for kind in RECORDS:
            await self.kind(store, kind)
        for run in await self._model.find(Run, limit=ALL):
            await self.log(store, run.run_id)

    async def kind(self, store: Store, kind: type[Record]) -> None:
        """Compare all records of one kind, and how many there are said to be."""
        wanted, got = await self._model.find(kind, limit=ALL), await store.find(kind, limit=ALL)
        same(f"count of {kind.TABLE}", len(got), await store.count(kind))
        if kind is Lease:
            now = store.now()
            wanted, got = ([one for one in found if _lives(one, now)] for found in (wanted, got))
        if kind is Blob:
            got = [blob for blob in got if getattr(blob, "name", "") not in _OWN]
        self.records(kind.TABLE, wanted, got)
        if kind is Message:
            same("the order of those who wait", _waiting(wanted), _waiting(got))

    async def log(self, store: Store, run_id: str) -> None:
        """Compare a run's log byte by byte; one that is not trimmed has no hole."""
        wanted, got = await whole(self._model, run_id), await whole(store, run_id)
        same(f"the numbers of {run_id}", list(wanted.seqs), list(got.seqs))
        same(f"the log of {run_id}", wanted.texts, got.texts)
        run = await store.get(Run, run_id)
        if run is not None and not run.trimmed:
            same(f"the numbers of {run_id}", list(range(1, run.head + 1)), list(got.seqs))

    def _learn(self, op: Op, mine: Committed, theirs: Outcome) -> None:
        if isinstance(theirs, Committed) and op.create is not None:
            if theirs.key <= max(self._keys, default=0):
                raise AssertionError(f"the key {theirs.key} does not follow {max(self._keys)}")
            self._keys[theirs.key] = mine.key
            self._runs[op.create.run_id] = theirs.key

    def _key(self, number: int, *, model: bool) -> int:
        key = self._runs.get(run_of(number).run_id, 0)
        return self._keys.get(key, 0) if model else key

    def _outcome(self, outcome: Outcome) -> Outcome:
        if isinstance(outcome, Refused):
            record = outcome.record
            return Refused(outcome.why, None if record is None else self.record(record))
        return replace(outcome, key=self._keys.get(outcome.key, 0))

    def _run(self, run: Run) -> Run:
        return replace(run, key=self._keys.get(run.key, -1))


async def whole(store: Store, run_id: str) -> Batch:
    """Return all events of a run, read from page to page."""
    parts = list[Batch]()
    after = 0
    while part := await store.read(run_id, after, 1000):
        parts.append(part)
        after = part.seqs[-1]
    return Batch.chain(parts) if parts else await store.read(run_id, after)


def _plain(record: Record) -> Record:
    if isinstance(record, Message) and record.pos > PENDING:
        return replace(record, pos=PENDING)
    return record


def _rank(record: Record, column: str) -> Any:
    """Return what tells where a record stands in an order; equal ones may stand either way."""
    if isinstance(record, Message) and column == "pos" and record.pos >= PENDING:
        return key_of(record)
    return getattr(record, column) if column else None


def _lives(lease: Record, now: int) -> bool:
    return isinstance(lease, Lease) and lease.expires_at > now


def _waiting(found: Sequence[Record]) -> dict[str, list[str]]:
    waiting: dict[str, list[str]] = {}
    messages = [one for one in found if isinstance(one, Message) and one.pos > PENDING]
    for message in sorted(messages, key=lambda one: one.pos):
        waiting.setdefault(message.session_id, []).append(message.message_id)
    return waiting


def _short(op: Op) -> str:
    return f"{op.run_id} ({len(op.events)} events, {op.guard}, {op.changes}, {op.writes})"
