"""Reads: each is one statement on a borrowed connection, and sees what is committed."""

from collections.abc import Sequence
from datetime import date
from functools import cache
from typing import Any, Final, TypeAlias

import asyncpg

from orchestrator.core.batch import EMPTY, Batch, joined, unpack
from orchestrator.core.records import R, Timer
from orchestrator.ports import Where
from orchestrator.stores.postgres.buckets import name_of
from orchestrator.stores.postgres.clock import NOW
from orchestrator.stores.postgres.pool import Connection, Pool
from orchestrator.stores.postgres.query import Bound, condition
from orchestrator.stores.postgres.segments import bucket_of
from orchestrator.stores.postgres.tables import TABLES, plain

Part: TypeAlias = tuple[int, list[str], list[str]]
READ_BYTES: Final = 256 << 10
"""Bytes of the log after which a read ends, so that nobody has more than that in hand."""
_SEGMENTS: Final = """
WITH r AS MATERIALIZED (SELECT key FROM runs WHERE run_id = $1),
f AS MATERIALIZED (
    SELECT coalesce(max(seq), 0) AS seq FROM {day}
    WHERE bucket = {bucket} AND run = (SELECT key FROM r) AND seq <= $2
)
SELECT seq, n, data FROM (
    SELECT seq, n, data, sum(octet_length(data)) OVER (ORDER BY seq) - octet_length(data) AS before
    FROM (
        SELECT seq, n, data FROM {day}
        WHERE bucket = {bucket} AND run = (SELECT key FROM r) AND seq >= (SELECT seq FROM f)
        ORDER BY seq LIMIT $3
    ) AS page
) AS measured WHERE before < $4 ORDER BY seq
"""
"""Asked of the day's own table: a plan for the whole log would have to look at every day."""
_DUE: Final = (
    f"SELECT {TABLES[Timer].select} FROM timers WHERE due_at <= {NOW.format(mark='$1')} "
    "ORDER BY due_at LIMIT $2"
)


class Reader:
    """Reads without waiting for the writer, nor holding it up."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def read(self, run_id: str, after: int, limit: int) -> Batch:
        """Return up to `limit` events of a run after `after`."""
        async with self._pool.connection() as db:
            return await events_of(db, run_id, after, limit)

    async def get(self, kind: type[R], key: Sequence[Any]) -> R | None:
        """Return the record of that key."""
        table = TABLES[kind]
        text = f"SELECT {table.select} FROM {table.name} WHERE {table.by_key}"
        async with self._pool.connection() as db:
            found = await db.fetchrow(text, *map(plain, key))
        return table.record(found) if found else None

    async def find(self, kind: type[R], where: Sequence[Where], order: str, limit: int) -> list[R]:
        """Return records that meet every condition."""
        table, bound = TABLES[kind], Bound()
        text = f"SELECT {table.select} FROM {table.name}{condition(table, where, bound)}"
        text += f"{table.ordering(order)} LIMIT {bound.mark(limit)}"
        async with self._pool.connection() as db:
            found = await db.fetch(text, *bound.values)
        return [table.record(row) for row in found]

    async def count(self, kind: type[R], where: Sequence[Where]) -> int:
        """Return how many records meet every condition."""
        table, bound = TABLES[kind], Bound()
        text = f"SELECT count(*) FROM {table.name}{condition(table, where, bound)}"
        async with self._pool.connection() as db:
            return int(await db.fetchval(text, *bound.values))

    async def due(self, now: int | None, limit: int) -> list[Timer]:
        """Return timers whose time has come by `now`, or by the database's clock."""
        table = TABLES[Timer]
        async with self._pool.connection() as db:
            found = await db.fetch(_DUE, now, limit)
        return [table.record(row) for row in found]


async def events_of(
    db: Connection, run_id: str, after: int, limit: int, most: int = READ_BYTES
) -> Batch:
    """Return up to `limit` events of a run, fewer where they have more than `most` bytes."""
    try:
        rows = await db.fetch(_of_day(bucket_of(run_id)), run_id, after + 1, limit + 1, most)
    except asyncpg.UndefinedTableError:  # a day that has gone, or never was
        return EMPTY
    parts = [_unread(first, size, data, after) for first, size, data in rows]
    parts = [part for part in parts if part[2]]
    found = joined(parts) if parts else EMPTY
    return found if len(found) <= limit else found.part(0, limit)


@cache
def _of_day(bucket: date) -> str:
    return _SEGMENTS.format(day=name_of(bucket), bucket=f"'{bucket.isoformat()}'")


def _unread(first: int, size: int, data: bytes, after: int) -> Part:
    """Return a segment's events after `after`."""
    types, texts = unpack(first, size, data)
    seen = max(0, min(after + 1 - first, size))
    return first + seen, types[seen:], texts[seen:]
