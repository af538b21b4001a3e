"""Carries out ops on tables: guards, events, the run's row, the rows around it."""

from collections.abc import Mapping
from typing import Any

from msgspec.structs import replace

from orchestrator.core.audit import chained
from orchestrator.core.batch import Batch, seal_all
from orchestrator.core.events import DELTAS
from orchestrator.core.ops import (
    Committed,
    Delete,
    Guard,
    Insert,
    Op,
    Outcome,
    Patch,
    Put,
    Refused,
    Write,
)
from orchestrator.core.records import (
    HEAD,
    NEXT,
    PENDING,
    WAITING,
    AuditEntry,
    Message,
    Record,
    Run,
    Session,
)
from orchestrator.core.states import HOLDS_SESSION, OPEN
from orchestrator.testing.simulator.tables import Key, Tables, key_of, undo


class Refusal(Exception):  # an outcome, not an error
    """Ends one op and takes it back."""

    def __init__(self, why: str, record: Record | None = None) -> None:
        super().__init__(why)
        self.refused = Refused(why, record)


class Applier:
    """Executes ops on `tables`. With `guarded` off the epoch is not looked at: a planted fault."""

    def __init__(self, tables: Tables, *, guarded: bool = True) -> None:
        self._tables = tables
        self._guarded = guarded

    def apply(self, op: Op) -> Outcome:
        """Return what became of `op`; a refused one leaves no trace."""
        mark = len(self._tables.journal)
        try:
            return self._whole(op)
        except Refusal as refusal:
            undo(self._tables.journal, mark)
            return refusal.refused

    def _whole(self, op: Op) -> Outcome:
        if op.create is not None:
            if op.room is not None:
                self._find_room(op.create, op.room)
            self._insert(Insert(replace(op.create, key=self._tables.next_key())))
        outcome = self._run_part(op) if op.run_id is not None else Committed()
        for write in op.writes:
            self._write(write)
        return outcome

    def _find_room(self, run: Run, room: int) -> None:
        runs = sorted(self._tables.rows[Run].values(), key=lambda one: one.key)
        ahead = [other for other in runs if _is_in_the_way(other, run)]
        if len(ahead) > room:
            raise Refusal("full", ahead[room])

    def _run_part(self, op: Op) -> Committed:
        run = self._tables.run(op.run_id)
        if run is None:
            raise Refusal("missing")
        self._judge(run, op.guard)
        batch = seal_all(run.run_id, run.head + 1, op.events)
        head = run.head + len(batch)
        version = run.version + sum(kind not in DELTAS for kind in batch.types)
        changes = dict(op.changes)
        if changes.get("attempt_seq") == HEAD:
            changes["attempt_seq"] = head
        self._tables.put(replace(run, head=head, version=version, **changes))
        if batch:
            known = self._tables.log(run.run_id)
            whole = Batch.chain([known, batch]) if known else batch
            self._tables.set(self._tables.logs, run.run_id, whole)
        return Committed(head=head, version=version, key=run.key, events=batch)

    def _judge(self, run: Run, guard: Guard) -> None:
        asked = guard if self._guarded else replace(guard, epoch=None)
        why = asked.objection(run)
        if why is not None:
            raise Refusal(why)

    def _write(self, write: Write) -> None:
        match write:
            case Insert():
                self._insert(write)
            case Put(record=record, keep=keep):
                self._put(self._placed(record), keep)
            case Patch():
                self._patch(write)
            case Delete():
                self._delete(write)

    def _insert(self, write: Insert) -> None:
        record = self._placed(write.record)
        found = self._tables.rows[type(record)].get(key_of(record))
        if found is None:
            self._tables.put(record)
        elif not write.absent_ok:
            raise Refusal("exists", found)

    def _put(self, record: Record, keep: tuple[str, ...]) -> None:
        found = self._tables.rows[type(record)].get(key_of(record))
        if found is not None and keep:
            record = replace(record, **{column: getattr(found, column) for column in keep})
        self._tables.put(record)

    def _patch(self, write: Patch) -> None:
        found = self._tables.rows[write.kind].get(write.key)
        if found is None or not _agrees(found, write.where):
            if write.required:
                raise Refusal("missing")
            return
        changes = dict(write.changes)
        if isinstance(found, Message) and changes.get("pos") == NEXT:
            changes["pos"] = self._next_pos(found)
        self._tables.put(replace(found, **changes))

    def _delete(self, write: Delete) -> None:
        rows = self._tables.rows[write.kind]
        gone: list[Key] = [key for key in rows if key[: len(write.key)] == write.key]
        for key in gone:
            self._tables.remove(rows, key)
        if write.required and not gone:
            raise Refusal("missing")

    def _placed(self, record: Any) -> Any:
        """Give a message its position, an audit entry its place in the chain."""
        if isinstance(record, AuditEntry):
            entries = self._tables.rows[AuditEntry].values()
            chain = [(e.seq, e.hash) for e in entries if e.tenant == record.tenant]
            return chained(record, max(chain, default=None))
        if not isinstance(record, Message) or record.pos >= 0:
            return record
        if record.pos != WAITING:
            return replace(record, pos=self._next_pos(record))
        place = (record.tenant, record.session_id)
        rows = self._tables.rows[Message].values()
        taken = [m.pos for m in rows if (m.tenant, m.session_id) == place]
        return replace(record, pos=max([PENDING, *taken]) + 1)

    def _next_pos(self, message: Message) -> int:
        session = self._tables.rows[Session].get((message.tenant, message.session_id))
        if session is None:
            return 1
        self._tables.put(replace(session, pos=session.pos + 1))
        return int(session.pos) + 1


def _is_in_the_way(other: Run, run: Run) -> bool:
    if run.parent_run_id is not None:
        return other.parent_run_id == run.parent_run_id and other.status in OPEN
    if other.parent_run_id is not None or other.status not in HOLDS_SESSION:
        return False
    here = (run.tenant, run.session_id, run.parallel)
    return (other.tenant, other.session_id, other.parallel) == here


def _agrees(record: Record, where: Mapping[str, Any]) -> bool:
    return all(getattr(record, column) == value for column, value in where.items())
