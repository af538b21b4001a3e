"""Carries out ops in one open transaction: guards, events, the run's row, the rows around it."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

import apsw
from msgspec.structs import replace

from orchestrator.core.events import DELTAS, Draft, LogEvent, seal
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
from orchestrator.core.records import HEAD, NEXT, PENDING, WAITING, Message, Record, Run
from orchestrator.stores.sqlite import sql
from orchestrator.stores.sqlite.tables import TABLES, Table

SEGMENT_EVENTS: Final = 256
SEGMENT_BYTES: Final = 1 << 16
_RUNS: Final = TABLES[Run]
_NEXT_POS: Final = (
    "UPDATE sessions SET pos = pos + 1 WHERE tenant = ? AND session_id = ? RETURNING pos"
)
_WAITING_POS: Final = (
    "SELECT max(coalesce(max(pos), 0), ?) + 1 FROM messages WHERE tenant = ? AND session_id = ?"
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

    def apply(self, op: Op) -> Outcome:
        """Return what became of `op`; a refused one leaves no trace."""
        if op.create is None and not op.writes:
            try:  # a guarded update comes first, so nothing is there to undo
                return self._run_part(op)
            except Refusal as refusal:
                return refusal.refused
        self._db.execute("SAVEPOINT op")
        try:
            outcome = self._whole(op)
        except Refusal as refusal:
            self._db.execute("ROLLBACK TO op")
            outcome = refusal.refused
        self._db.execute("RELEASE op")
        return outcome

    def _whole(self, op: Op) -> Outcome:
        if op.create is not None:
            self._insert(Insert(op.create), skip=frozenset({"key"}))
        outcome = self._run_part(op) if op.run_id is not None else Committed()
        for write in op.writes:
            self._write(write)
        return outcome

    def _run_part(self, op: Op) -> Committed:
        count = len(op.events)
        version = sum(event.type not in DELTAS for event in op.events)
        sets, values = ["head = head + ?", "version = version + ?"], [count, version]
        for column, value in op.changes.items():
            if column == "attempt_seq" and value == HEAD:
                sets.append("attempt_seq = head + ?")
                values.append(count)
            else:
                sets.append(f"{column} = ?")
                values.append(_RUNS.value(column, value))
        where, bound = _guarded(op.guard)
        row = self._one(
            f"UPDATE runs SET {', '.join(sets)} WHERE run_id = ?{where} "
            "RETURNING key, head, version, epoch",
            (*values, op.run_id, *bound),
        )
        if row is None:
            raise Refusal(self._why(op))
        key, head, version, epoch = row
        events = tuple(
            seal(op.run_id or "", seq, draft)
            for seq, draft in enumerate(op.events, head - count + 1)
        )
        self._append(key, epoch, op.events, events)
        return Committed(head=head, version=version, key=key, events=events)

    def _append(
        self, key: int, epoch: int, drafts: Sequence[Draft], events: Sequence[LogEvent]
    ) -> None:
        for part in portions(events):
            first = part[0].seq
            ts = drafts[first - events[0].seq].ts
            data = b"[" + b",".join(event.data for event in part) + b"]"
            self._db.execute(
                "INSERT INTO segments VALUES (?, ?, ?, ?, ?)",
                (key << 32 | first, len(part), epoch, ts, data),
            )

    def _why(self, op: Op) -> str:
        row = self._one("SELECT version, epoch, status FROM runs WHERE run_id = ?", (op.run_id,))
        if row is None:
            return "missing"
        if op.guard.epoch is not None and row[1] != op.guard.epoch:
            return "epoch"
        if op.guard.version is not None and row[0] != op.guard.version:
            return "version"
        return "state"

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
        text = _insert_sql(table, row) + " ON CONFLICT DO NOTHING"
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
        self._db.execute(_insert_sql(table, row) + conflict, tuple(row.values()))

    def _patch(self, write: Patch) -> None:
        table = TABLES[write.kind]
        changes = dict(write.changes)
        if write.kind is Message and changes.get("pos") == NEXT:
            changes["pos"] = self._next_pos_of(write.key)
        sets = ", ".join(f"{column} = ?" for column in changes)
        more = "".join(f" AND {column} IS ?" for column in write.where)
        bound = [table.value(c, v) for c, v in (*changes.items(), *write.where.items())]
        values = (*bound[: len(changes)], *write.key, *bound[len(changes) :])
        text = f"UPDATE {table.name} SET {sets} WHERE {table.by_key}{more}"
        self._changed(text, values, required=write.required)

    def _placed(self, record: Record) -> Record:
        """Give a message its position."""
        if not isinstance(record, Message) or record.pos >= 0:
            return record
        place = (record.tenant, record.session_id)
        if record.pos == WAITING:
            row = self._one(_WAITING_POS, (PENDING, *place))
        else:
            row = self._one(_NEXT_POS, place)
        return replace(record, pos=row[0]) if row else replace(record, pos=1)

    def _next_pos_of(self, key: tuple[Any, ...]) -> int:
        place = self._one("SELECT tenant, session_id FROM messages WHERE message_id = ?", key)
        row = self._one(_NEXT_POS, place) if place else None
        return int(row[0]) if row else 1

    def _changed(self, text: str, values: Iterable[Any], *, required: bool) -> None:
        self._db.execute(text, tuple(values))
        if required and self._db.changes() == 0:
            raise Refusal("missing")

    def _one(self, text: str, values: Sequence[Any]) -> Any:
        return sql.row(self._db, text, values)


def portions(events: Sequence[LogEvent]) -> Iterator[Sequence[LogEvent]]:
    """Cut events into the parts that become one segment row each."""
    start = size = 0
    for at, event in enumerate(events):
        if at > start and (at - start == SEGMENT_EVENTS or size + len(event.data) > SEGMENT_BYTES):
            yield events[start:at]
            start, size = at, 0
        size += len(event.data)
    if start < len(events):
        yield events[start:]


def _guarded(guard: Guard) -> tuple[str, list[Any]]:
    where, bound = "", list[Any]()
    if guard.version is not None:
        where += " AND version = ?"
        bound.append(guard.version)
    if guard.epoch is not None:
        where += " AND epoch = ?"
        bound.append(guard.epoch)
    if guard.states:
        where += f" AND status IN ({', '.join('?' * len(guard.states))})"
        bound += sorted(str(state) for state in guard.states)
    return where, bound


def _insert_sql(table: Table[Any], row: dict[str, Any]) -> str:
    columns, marks = ", ".join(row), ", ".join("?" * len(row))
    return f"INSERT INTO {table.name} ({columns}) VALUES ({marks})"
