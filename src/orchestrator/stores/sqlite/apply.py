"""Carries out ops in one open transaction: guards, events, the run's row, the rows around it."""

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any, Final

import apsw
from msgspec.structs import replace

from orchestrator.core.audit import chained
from orchestrator.core.batch import Batch, begun, seal_all
from orchestrator.core.ops import (
    Committed,
    Delete,
    Insert,
    Op,
    Outcome,
    Patch,
    Put,
    Refused,
    Write,
)
from orchestrator.core.records import HEAD, NEXT, PENDING, WAITING, AuditEntry, Message, Record, Run
from orchestrator.core.states import ENDED
from orchestrator.stores.segments import segments
from orchestrator.stores.sqlite import sql
from orchestrator.stores.sqlite.heads import Head, Heads
from orchestrator.stores.sqlite.tables import TABLES

_RUNS: Final = TABLES[Run]
_IN_THE_WAY: Final = (
    f"SELECT {_RUNS.select} FROM runs WHERE tenant = ? AND session_id = ? "
    "AND status IN ('CREATED', 'RUNNING') AND parent_run_id IS NULL AND parallel = ? "
    "ORDER BY key LIMIT 1 OFFSET ?"
)
_OPEN_CHILDREN: Final = (
    f"SELECT {_RUNS.select} FROM runs WHERE parent_run_id = ? AND status IN "
    "('CREATED', 'RUNNING', 'PAUSED_WAITING_TOOL', 'PAUSED_WAITING_APPROVAL') "
    "ORDER BY key LIMIT 1 OFFSET ?"
)
_SEGMENT: Final = "INSERT INTO segments (key, n, epoch, ts, data) VALUES (?, ?, ?, ?, ?)"
_NEXT_POS: Final = (
    "UPDATE sessions SET pos = pos + 1 WHERE tenant = ? AND session_id = ? RETURNING pos"
)
_NEXT_POS_OF: Final = (
    "UPDATE sessions SET pos = pos + 1 WHERE (tenant, session_id) = "
    "(SELECT tenant, session_id FROM messages WHERE message_id = ?) RETURNING pos"
)

_LAST_ENTRY: Final = (
    "SELECT seq, CAST(hash AS BLOB) FROM audit WHERE tenant = ? ORDER BY seq DESC LIMIT 1"
)


class Refusal(Exception):  # an outcome, not an error
    """Ends one op and rolls it back."""

    def __init__(self, why: str, record: Record | None = None) -> None:
        super().__init__(why)
        self.refused = Refused(why, record)


class Applier:
    """Executes ops on the writing connection; the caller owns the transaction."""

    def __init__(self, connection: apsw.Connection) -> None:
        self.connection = self._db = connection
        self.heads = Heads(connection)
        self._created = 0
        """The key of the run that was created last: messages wait in the order of their runs."""

    def apply(self, op: Op) -> Outcome:
        """Return what became of `op`; a refused one leaves no trace."""
        if not op.may_be_undone:
            try:  # guards come first, so nothing is there to undo
                return self._whole(op)
            except Refusal as refusal:
                return refusal.refused
        self._db.execute("SAVEPOINT op")
        try:
            outcome = self._whole(op)
        except Refusal as refusal:
            self._db.execute("ROLLBACK TO op")
            if op.run_id is not None:
                self.heads.forget(op.run_id)
            outcome = refusal.refused
        self._db.execute("RELEASE op")
        return outcome

    def append(self, op: Op) -> Outcome:
        """Return what became of an op that only adds words: one guard, one insert."""
        head = self.heads.of(op.run_id or "")
        why = "missing" if head is None else op.guard.objection(head)
        if head is None or why is not None:
            return Refused(why or "missing")
        if head.status in ENDED:
            return self.apply(op)
        batch = seal_all(op.run_id or "", head.head + 1, op.events)
        self._append(head.key, head.epoch, batch, op)
        head.head += len(batch.seqs)
        return Committed(head.head, head.version, head.key, batch)

    def _whole(self, op: Op) -> Outcome:
        if op.create is not None:
            outcome = self._create(op, op.create)
        else:
            outcome = self._run_part(op) if op.run_id is not None else Committed()
        for write in op.writes:
            self._write(write)
        return outcome

    def _create(self, op: Op, run: Run) -> Committed:
        if op.room is not None:
            self._find_room(run, op.room)
        created = replace(run, head=len(op.events), version=op.versions, **op.changes)
        self._insert(Insert(created), skip=frozenset({"key"}))
        key = self._created = self._db.last_insert_rowid()
        self.heads.created(created, key)
        batch = seal_all(run.run_id, 1, op.events)
        self._append(key, run.epoch, batch, op)
        return Committed(head=created.head, version=created.version, key=key, events=batch)

    def _find_room(self, run: Run, room: int) -> None:
        if run.parent_run_id is None:
            row = self._one(_IN_THE_WAY, (run.tenant, run.session_id, run.parallel, room))
        else:
            row = self._one(_OPEN_CHILDREN, (run.parent_run_id, room))
        if row:
            raise Refusal("full", _RUNS.record(row))

    def _run_part(self, op: Op) -> Committed:
        run_id = op.run_id or ""
        head = self.heads.of(run_id)
        why = "missing" if head is None else op.guard.objection(head)
        if head is None or why is not None:
            raise Refusal(why or "missing")
        batch = seal_all(run_id, head.head + 1, op.events)
        versions = op.versions
        after = Head(
            head.key, head.version + versions, head.epoch, head.status, head.head + len(batch)
        )
        if versions or op.changes or head.status in ENDED:
            self._change_run(after, op.changes)
        self._append(head.key, head.epoch, batch, op)
        self.heads.keep(run_id, after)
        return Committed(head=after.head, version=after.version, key=head.key, events=batch)

    def _change_run(self, after: Head, changes: Mapping[str, Any]) -> None:
        values = [
            after.head if (column, value) == ("attempt_seq", HEAD) else _RUNS.value(column, value)
            for column, value in changes.items()
        ]
        text = _update_sql(_RUNS.name, ("head", "version", *changes), "key = ?")
        self._db.execute(text, (after.head, after.version, *values, after.key))
        after.status = str(changes.get("status", after.status))
        after.epoch = changes.get("epoch", after.epoch)

    def _append(self, key: int, epoch: int, batch: Batch, op: Op) -> None:
        if not batch.seqs:
            return
        ts = begun(op.events)
        if len(batch.seqs) == 1:
            data = batch.stored()
            batch.measured(len(data) - 2)
            self._db.execute(_SEGMENT, (key << 32 | batch.seqs[0], 1, epoch, ts, data))
            return
        for part, data in segments(batch):
            self._db.execute(_SEGMENT, (key << 32 | part.seqs[0], len(part), epoch, ts, data))

    def _write(self, write: Write) -> None:
        match write:
            case Insert():
                self._insert(write)
            case Put():
                self._put(write)
            case Patch():
                self._patch(write)
            case Delete(kind=kind, key=key, required=required):
                table = TABLES[kind]
                where = " AND ".join(f"{column} = ?" for column in table.key[: len(key)])
                self._changed(f"DELETE FROM {table.name} WHERE {where}", key, required=required)

    def _insert(self, write: Insert, skip: frozenset[str] = frozenset()) -> None:
        record = self._placed(write.record)
        table = TABLES[type(record)]
        row = table.row(record, skip)
        text = _insert_sql(table.name, tuple(row)) + " ON CONFLICT DO NOTHING"
        self._db.execute(text, tuple(row.values()))
        if self._db.changes() == 0 and not write.absent_ok:
            found = self._one(
                f"SELECT {table.select} FROM {table.name} WHERE {table.by_key}",
                table.key_of(record),
            )
            raise Refusal("exists", table.record(found) if found else None)

    def _put(self, write: Put) -> None:
        record = self._placed(write.record)
        table = TABLES[type(record)]
        row = table.row(record)
        kept = {*table.key, *write.keep}
        sets = ", ".join(f"{c} = excluded.{c}" for c in row if c not in kept)
        conflict = f" ON CONFLICT ({', '.join(table.key)}) DO UPDATE SET {sets}"
        text = _insert_sql(table.name, tuple(row)) + conflict
        self._db.execute(text, tuple(row.values()))

    def _patch(self, write: Patch) -> None:
        table = TABLES[write.kind]
        changes = dict(write.changes)
        if write.kind is Message and changes.get("pos") == NEXT:
            changes["pos"] = self._next_pos_of(write.key)
        more = "".join(f" AND {column} IS ?" for column in write.where)
        bound = [table.value(c, v) for c, v in (*changes.items(), *write.where.items())]
        values = (*bound[: len(changes)], *write.key, *bound[len(changes) :])
        text = _update_sql(table.name, tuple(changes), table.by_key + more)
        self._changed(text, values, required=write.required)

    def _placed(self, record: Record) -> Record:
        """Give a message its position, an audit entry its place in the chain."""
        if isinstance(record, AuditEntry):
            return chained(record, self._last_entry(record.tenant))
        if not isinstance(record, Message) or record.pos >= 0:
            return record
        place = (record.tenant, record.session_id)
        if record.pos == WAITING:
            return replace(record, pos=PENDING + self._created)
        row = self._one(_NEXT_POS, place)
        return replace(record, pos=row[0] if row else 1)

    def _last_entry(self, tenant: str) -> tuple[int, bytes] | None:
        """Return where the chain ends; what else stands there may be damaged and stops nobody."""
        row = self._one(_LAST_ENTRY, (tenant,))
        return (int(row[0]), bytes(row[1])) if row else None

    def _next_pos_of(self, key: tuple[Any, ...]) -> int:
        row = self._one(_NEXT_POS_OF, key)
        return int(row[0]) if row else 1

    def _changed(self, text: str, values: Iterable[Any], *, required: bool) -> None:
        self._db.execute(text, tuple(values))
        if required and self._db.changes() == 0:
            raise Refusal("missing")

    def _one(self, text: str, values: Sequence[Any]) -> Any:
        return sql.row(self._db, text, values)


@cache
def _update_sql(table: str, columns: tuple[str, ...], where: str) -> str:
    return f"UPDATE {table} SET {', '.join(f'{column} = ?' for column in columns)} WHERE {where}"


@cache
def _insert_sql(table: str, columns: tuple[str, ...]) -> str:
    marks = ", ".join("?" * len(columns))
    return f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({marks})"
