"""What retention removes: old runs whole, days that nothing is left of, deltas of old logs."""

from datetime import date
from typing import Final

import asyncpg

from orchestrator.core import ids
from orchestrator.core.events import DELTAS, open_event
from orchestrator.ports import Trimmed
from orchestrator.stores.postgres import buckets, locks
from orchestrator.stores.postgres.pool import Connection
from orchestrator.stores.postgres.reader import events_of
from orchestrator.stores.postgres.segments import DAY_MS, bucket_of, first_moment
from orchestrator.stores.segments import segments

_EXPIRED: Final = (
    "SELECT key, run_id, tenant, session_id FROM runs WHERE ended_at IS NOT NULL AND ended_at < $1 "
    "ORDER BY ended_at LIMIT $2 FOR UPDATE SKIP LOCKED"
)
_UNTRIMMED: Final = (
    "SELECT key, run_id FROM runs WHERE NOT trimmed AND ended_at IS NOT NULL AND ended_at < $1 "
    "ORDER BY ended_at LIMIT $2 FOR UPDATE SKIP LOCKED"
)
_OF_RUN: Final = ("invocations", "messages", "idempotency_keys", "timers", "cursors")
_EMPTY_SESSIONS: Final = """
DELETE FROM sessions WHERE (tenant, session_id) IN (
    SELECT s.tenant, s.session_id FROM sessions AS s
    JOIN runs AS g ON g.tenant = s.tenant AND g.session_id = s.session_id
    WHERE g.key = ANY($1::bigint[])
      AND NOT EXISTS (SELECT 1 FROM runs AS r WHERE r.tenant = s.tenant
                      AND r.session_id = s.session_id AND r.key != ALL($1::bigint[]))
      AND NOT EXISTS (SELECT 1 FROM messages AS m WHERE m.tenant = s.tenant
                      AND m.session_id = s.session_id)
    ORDER BY s.tenant, s.session_id FOR UPDATE OF s SKIP LOCKED)
"""
_SEGMENT: Final = (
    "INSERT INTO segments (bucket, run, seq, n, epoch, ts, data) "
    "VALUES ($1, $2, $3, $4, $5, $6, $7)"
)
_GONE: Final = "DELETE FROM segments WHERE bucket = $1 AND run = ANY($2::bigint[])"
_HOLDS: Final = "SELECT EXISTS (SELECT 1 FROM segments WHERE bucket = $1)"
_HELD: Final = "SELECT EXISTS (SELECT 1 FROM runs WHERE run_id >= $1 AND run_id < $2)"
_KEEP_DAYS: Final = 2
"""Days before the present one that are never dropped, whatever clock a run's id was minted by."""
_DROP_WAIT: Final = "SET LOCAL lock_timeout = '100ms'"


async def trim(db: Connection, runs_before: int, deltas_before: int, limit: int) -> Trimmed:
    """Remove up to `limit` runs and the deltas of up to `limit` others, each in a transaction."""
    runs = deltas = 0
    if runs_before:
        async with db.transaction():
            runs = await _remove(db, runs_before, limit)
    if deltas_before:
        async with db.transaction():
            for key, run_id in await db.fetch(_UNTRIMMED, deltas_before, limit):
                deltas += await _thin(db, key, run_id)
    return Trimmed(runs, deltas)


async def drop_days(db: Connection, now: int) -> int:
    """Drop the days that hold no run any more and return how many; one in use is left for later."""
    dropped = 0
    for day in await buckets.listed(db):
        if first_moment(day) >= now - _KEEP_DAYS * DAY_MS or await _is_held(db, day):
            continue
        try:
            async with db.transaction():
                await db.execute(_DROP_WAIT)
                await buckets.drop(db, day)
        except (asyncpg.LockNotAvailableError, asyncpg.UndefinedTableError):
            continue
        dropped += 1
    return dropped


async def _is_held(db: Connection, day: date) -> bool:
    """Return whether there is a run whose id was minted on a day; such ids sort by time."""
    first = first_moment(day)
    low, high = (f"run_{ids.stamp(at)}" for at in (first, first + DAY_MS))
    if first == 0:  # the day of those whose ids say nothing
        return bool(await db.fetchval(_HOLDS, day))
    return bool(await db.fetchval(_HELD, low, high))


async def _remove(db: Connection, before: int, limit: int) -> int:
    rows = await db.fetch(_EXPIRED, before, limit)
    keys, names = [row[0] for row in rows], [row[1] for row in rows]
    # Whoever accepts a run has its session's lock, too: no session goes while it gets a new run.
    await db.execute(locks.LOCK, locks.names_of_sessions((row[2], row[3]) for row in rows))
    for table in _OF_RUN:
        await db.execute(f"DELETE FROM {table} WHERE run_id = ANY($1::text[])", names)
    by_day: dict[date, list[int]] = {}
    for key, run_id, *_ in rows:
        by_day.setdefault(bucket_of(run_id), []).append(key)
    for day in sorted(by_day):
        await db.execute(_GONE, day, by_day[day])
    await db.execute(_EMPTY_SESSIONS, keys)
    await db.execute("DELETE FROM runs WHERE key = ANY($1::bigint[])", keys)
    return len(rows)


async def _thin(db: Connection, key: int, run_id: str) -> int:
    """Rewrite a run's log without the delta class; what stays keeps its seq and its bytes."""
    day = bucket_of(run_id)
    events = await events_of(db, run_id, 0, 1 << 32, 1 << 62)
    kept = [at for at, kind in enumerate(events.types) if kind not in DELTAS]
    await db.execute(_GONE, day, [key])
    rows = [
        (day, key, part.seqs[0], len(part), 0, open_event(part[0].data).ts, data)
        for part, data in (segments(events.chosen(kept)) if kept else ())
    ]
    await db.executemany(_SEGMENT, rows)
    await db.execute("UPDATE runs SET trimmed = TRUE WHERE key = $1", key)
    return len(events) - len(kept)
