"""How a batch reaches the log: the last statements of a transaction, or one that is all of it."""

from collections.abc import Collection, Mapping, Sequence
from datetime import date
from typing import Any, Final, TypeAlias
from uuid import UUID

import asyncpg

from orchestrator.stores.postgres.clock import NOW
from orchestrator.stores.postgres.heads import Head
from orchestrator.stores.postgres.pool import Connection

Row: TypeAlias = tuple[date, int, int, int, int, int, bytes]
"""A segment: bucket, run key, first seq, number of events, epoch, time, bytes."""
COPY_ROWS: Final = 64
"""Rows of the log from which on a COPY is quicker than a statement that has them all."""
_COLUMNS: Final = ("bucket", "run", "seq", "n", "epoch", "ts", "data")
_NAMED: Final = ", ".join(_COLUMNS)
_NOTED: Final = f"""
INSERT INTO commits AS c (writer, number, fenced, at)
VALUES ($1, $2, 0, {NOW.format(mark="NULL")})
ON CONFLICT (writer) DO UPDATE SET number = excluded.number, at = excluded.at
WHERE c.number < excluded.number AND c.fenced < excluded.number
RETURNING number
"""
_SEGMENTS: Final = (
    "unnest($3::date[], $4::bigint[], $5::bigint[], $6::bigint[], $7::bigint[], $8::bigint[], "
    "$9::bytea[])"
)
_GROWN: Final = f"INSERT INTO segments ({_NAMED}) SELECT {_NAMED} FROM {_SEGMENTS} AS s ({_NAMED})"
_FINISH: Final = f"""
WITH noted AS ({_NOTED}), grown AS ({_GROWN}), moved AS (
    UPDATE runs SET head = m.head, version = m.version
    FROM unnest($10::bigint[], $11::bigint[], $12::bigint[]) AS m (key, head, version)
    WHERE runs.key = m.key
)
SELECT number FROM noted
"""
# Locked by id first, as every batch does; what does not hold any more makes all of it fail.
_WORDS: Final = f"""
WITH noted AS ({_NOTED}), locked AS (
    SELECT key FROM runs WHERE run_id = ANY($10::text[]) ORDER BY run_id FOR NO KEY UPDATE
), moved AS (
    UPDATE runs SET head = m.head FROM locked, unnest(
        $11::bigint[], $12::bigint[], $13::bigint[], $14::bigint[], $15::bigint[], $16::text[]
    ) AS m (key, head, was, version, epoch, status)
    WHERE runs.key = locked.key AND m.key = locked.key AND runs.head = m.was
      AND runs.version = m.version AND runs.epoch = m.epoch AND runs.status = m.status
    RETURNING runs.key
), grown AS (
    INSERT INTO segments ({_NAMED})
    SELECT {_NAMED} FROM {_SEGMENTS} AS s ({_NAMED}) JOIN moved ON moved.key = s.run
)
SELECT 1 / CASE WHEN (SELECT count(*) FROM moved) = cardinality($11) AND EXISTS (SELECT FROM noted)
    THEN 1 ELSE 0 END
"""


class Fenced(Exception):
    """The batch was given up meanwhile and must not be committed."""


class Missed(Exception):
    """A run is not where it was thought to be; nothing has been written."""


async def finish(
    db: Connection, rows: Sequence[Row], moved: Collection[Head], writer: UUID, number: int
) -> None:
    """Write what the ops of a batch left to be written at once; the caller commits."""
    if len(rows) > COPY_ROWS:
        await db.copy_records_to_table("segments", records=rows, columns=_COLUMNS)
        rows = ()
    noted = await db.fetchval(
        _FINISH, writer, number, *_columns(rows),
        [head.key for head in moved], [head.head for head in moved],
        [head.version for head in moved],
    )  # fmt: skip
    if noted is None:
        raise Fenced


async def write_words(
    db: Connection,
    rows: Sequence[Row],
    runs: Mapping[str, tuple[Head, Head]],
    writer: UUID,
    number: int,
) -> None:
    """Commit words alone, in one statement; `runs` says from where to where each run moves.

    Raises Missed when one of them is not there: then none is moved.
    """
    before = [was for was, _ in runs.values()]
    try:
        await db.fetchval(
            _WORDS, writer, number, *_columns(rows), list(runs),
            [head.key for head in before], [now.head for _, now in runs.values()],
            [head.head for head in before], [head.version for head in before],
            [head.epoch for head in before], [head.status for head in before],
        )  # fmt: skip
    except asyncpg.DivisionByZeroError as error:
        raise Missed from error


def _columns(rows: Sequence[Row]) -> list[Any]:
    return list(zip(*rows, strict=True)) if rows else [[]] * len(_COLUMNS)
