"""Carries out ops in one open transaction: guards, events, the run's row, the rows around it."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from msgspec.structs import replace

from orchestrator.core.audit import chained
from orchestrator.core.batch import seal_all
from orchestrator.core.ops import (
    Committed,
    Insert,
    Op,
    Outcome,
    Patch,
    Put,
    Refused,
    Write,
)
from orchestrator.core.records import HEAD, NEXT, PENDING, WAITING, AuditEntry, Message, Record, Run
from orchestrator.stores.postgres import locks
from orchestrator.stores.postgres.finishing import Row
from orchestrator.stores.postgres.heads import Head
from orchestrator.stores.postgres.pool import Connection
from orchestrator.stores.postgres.room import Way, create_sql, way_of
from orchestrator.stores.postgres.segments import rows_of
from orchestrator.stores.postgres.tables import TABLES, plain
from orchestrator.stores.postgres.writes import Shape, Statement, statement_of, text_of

_RUNS: Final = TABLES[Run]
_HEADS: Final = (
    "SELECT run_id, key, version, epoch, status, head, tenant, session_id FROM runs "
    "WHERE run_id = ANY($1::text[]) ORDER BY run_id FOR NO KEY UPDATE"
)
_NEXT_POS: Final = (
    "UPDATE sessions SET pos = pos + 1 WHERE tenant = $1 AND session_id = $2 RETURNING pos"
)
_NEXT_POS_OF: Final = (
    "UPDATE sessions SET pos = pos + 1 WHERE (tenant, session_id) = "
    "(SELECT tenant, session_id FROM messages WHERE message_id = $1) RETURNING pos"
)
_LAST_ENTRY: Final = "SELECT seq, hash FROM audit WHERE tenant = $1 ORDER BY seq DESC LIMIT 1"


class Refusal(Exception):  # an outcome, not an error
    """Ends one op and rolls it back."""

    def __init__(self, why: str, record: Record | None = None) -> None:
        super().__init__(why)
        self.refused = Refused(why, record)


class Applier:
    """Executes the ops of one batch; what their logs grow by is left in `rows` and `moved`.

    `begin` locks the rows of all runs of the batch and reads where they stand. From then on nobody
    else can move them, so guards are judged and numbers given here, as the rows say.
    """

    def __init__(self, db: Connection) -> None:
        self._db = db
        self.heads: dict[str, Head] = {}
        self._pending: list[Statement] = []
        self._created = 0
        """The key of the run that was created last: messages wait in the order of their runs."""
        self.rows: list[Row] = []
        self.moved: dict[str, Head] = {}
        """Runs whose rows do not say their new head and version yet."""

    async def begin(self, ops: Sequence[Op]) -> None:
        """Take every lock that the ops need, in the order that all batches take them."""
        runs = locks.runs_of(ops)
        for run_id, *head in await self._db.fetch(_HEADS, runs) if runs else ():
            self.heads[run_id] = Head(*head)
        names = locks.names_of(ops, self.heads)
        if names:
            await self._db.execute(locks.LOCK, names)

    async def apply(self, op: Op) -> Outcome:
        """Return what became of `op`; a refused one leaves no trace."""
        if not op.may_be_undone:
            try:  # guards come first, so nothing is there to undo
                return await self.whole(op)
            except Refusal as refusal:
                return refusal.refused
        await self._db.execute("SAVEPOINT op")
        before = (len(self.rows), self.heads.copy(), self.moved.copy())
        try:
            outcome = await self.whole(op)
        except Refusal as refusal:
            await self._db.execute("ROLLBACK TO op; RELEASE op")
            count, self.heads, self.moved = before
            self._pending.clear()
            del self.rows[count:]
            return refusal.refused
        await self._db.execute("RELEASE op")
        return outcome

    async def whole(self, op: Op) -> Outcome:
        """Return what became of `op`; raises Refusal after part of it may have been written."""
        if op.create is not None:
            outcome = await self._create(op, op.create)
        else:
            outcome = self._run_part(op, op.run_id) if op.run_id is not None else Committed()
        for write in op.writes:
            await self._add(statement_of(await self._placed(write)))
        await self._flush()
        return outcome

    async def _create(self, op: Op, run: Run) -> Committed:
        created = replace(run, head=len(op.events), version=op.versions, **op.changes)
        row = _RUNS.row(created, frozenset({"key"}))
        way = None if op.room is None else way_of(run, op.room)
        full = way.query("1", len(row) + 1) if way else ""
        text = create_sql(tuple(row), full)
        key = await self._db.fetchval(text, *row.values(), *(way.values if way else ()))
        if key is None:
            raise await self._not_created(created, way)
        self._created = key
        head = Head(
            key, created.version, run.epoch, created.status, created.head, run.tenant,
            run.session_id,
        )  # fmt: skip
        self.heads[run.run_id] = head
        batch = seal_all(run.run_id, 1, op.events)
        self.rows += rows_of(run.run_id, head, batch, op.events)
        return Committed(head=head.head, version=head.version, key=key, events=batch)

    async def _not_created(self, run: Run, way: Way | None) -> Refusal:
        row = await self._db.fetchrow(way.query(_RUNS.select), *way.values) if way else None
        if row is not None:
            return Refusal("full", self._as_moved(_RUNS.record(row)))
        return Refusal("exists", await self._found(run))

    def _run_part(self, op: Op, run_id: str) -> Committed:
        head = self.heads.get(run_id)
        why = "missing" if head is None else op.guard.objection(head)
        if head is None or why is not None:
            raise Refusal(why or "missing")
        batch = seal_all(run_id, head.head + 1, op.events)
        versions = op.versions
        after = replace(head, version=head.version + versions, head=head.head + len(batch))
        if op.changes:
            after = self._change_run(after, op.changes)
            self.moved.pop(run_id, None)
        elif batch.seqs:
            self.moved[run_id] = after
        self.rows += rows_of(run_id, head, batch, op.events)
        self.heads[run_id] = after
        return Committed(head=after.head, version=after.version, key=head.key, events=batch)

    def _change_run(self, after: Head, changes: Mapping[str, Any]) -> Head:
        values = [
            after.head if (column, value) == ("attempt_seq", HEAD) else _RUNS.value(column, value)
            for column, value in changes.items()
        ]
        shape = Shape("patch", _RUNS.name, ("head", "version", *changes), ("key",))
        row = (after.head, after.version, *values, after.key)
        self._pending.append(Statement(shape, row))
        return replace(
            after,
            status=str(changes.get("status", after.status)),
            epoch=changes.get("epoch", after.epoch),
        )

    async def _placed(self, write: Write) -> Write:
        """Give a message its position, an audit entry its place in the chain."""
        match write:
            case Insert(record=AuditEntry() as entry) | Put(record=AuditEntry() as entry):
                await self._flush()
                kept = TABLES[AuditEntry].record([*TABLES[AuditEntry].row(entry).values()])
                row = await self._db.fetchrow(_LAST_ENTRY, kept.tenant)
                # Over what is kept, not over what was given: a NUL among it is not.
                return replace(write, record=chained(kept, (row[0], row[1]) if row else None))
            case Insert(record=Message(pos=pos) as said) | Put(record=Message(pos=pos) as said):
                return replace(write, record=await self._in_place(said)) if pos < 0 else write
            case Patch(kind=kind, changes=changes) if (
                kind is Message and changes.get("pos") == NEXT
            ):
                await self._flush()
                pos = await self._db.fetchval(_NEXT_POS_OF, *map(plain, write.key)) or 1
                return replace(write, changes={**changes, "pos": pos})
        return write

    async def _in_place(self, message: Message) -> Message:
        """Return a message with the position that it asks for."""
        if message.pos == WAITING:
            return replace(message, pos=PENDING + self._created)
        await self._flush()
        place = plain(message.tenant), plain(message.session_id)
        return replace(message, pos=await self._db.fetchval(_NEXT_POS, *place) or 1)

    async def _add(self, statement: Statement) -> None:
        """Put a statement off until the next ones are known, unless they touch the same table."""
        if any(one.shape.table == statement.shape.table for one in self._pending):
            await self._flush()
        self._pending.append(statement)

    async def _flush(self) -> None:
        """Execute what was put off; raises Refusal for the first that had to change something."""
        pending, self._pending = self._pending, []
        if not pending:
            return
        values = [value for statement in pending for value in statement.values]
        text = text_of(tuple(statement.shape for statement in pending))
        counts = await self._db.fetchrow(text, *values)
        for statement, count in zip(pending, counts or (), strict=True):
            if statement.why is not None and not count:
                found = await self._found(statement.record) if statement.record else None
                raise Refusal(statement.why, found)

    async def _found(self, record: Record) -> Record | None:
        """Return the record that has the key of another."""
        table = TABLES[type(record)]
        text = f"SELECT {table.select} FROM {table.name} WHERE {table.by_key}"
        row = await self._db.fetchrow(text, *table.key_of(record))
        found: Record | None = table.record(row) if row else None
        return self._as_moved(found) if isinstance(found, Run) else found

    def _as_moved(self, run: Run) -> Run:
        """Return a run as it is: the row of one that this batch has moved learns it at the end."""
        after = self.moved.get(run.run_id)
        return run if after is None else replace(run, head=after.head, version=after.version)
