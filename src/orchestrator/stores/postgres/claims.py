"""Ownership: which runs may run now, and whose they are; time is the database's own."""

from collections.abc import Sequence
from typing import Final

from orchestrator.core.records import Run
from orchestrator.ports import Claimed
from orchestrator.stores.postgres.clock import NOW
from orchestrator.stores.postgres.pool import Connection
from orchestrator.stores.postgres.tables import TABLES

_RUNS: Final = TABLES[Run]
_FORGET_MS: Final = 600_000
_NOW: Final = NOW.format(mark="$1")
_CLAIM: Final = f"""
WITH ready AS (
    SELECT r.key, CASE WHEN r.status = 'RUNNING' THEN r.owner END AS lost_by FROM runs AS r
    WHERE r.status IN ('CREATED', 'RUNNING')
      AND (r.owner IS NULL OR NOT EXISTS (
        SELECT 1 FROM leases AS l WHERE l.owner = r.owner AND l.expires_at > {_NOW}))
      AND (r.status = 'RUNNING' OR r.parent_run_id IS NOT NULL OR r.parallel OR NOT EXISTS (
        SELECT 1 FROM runs AS e
        WHERE e.tenant = r.tenant AND e.session_id = r.session_id AND e.key < r.key
          AND e.status IN ('CREATED', 'RUNNING') AND e.parent_run_id IS NULL
          AND NOT e.parallel))
      AND EXISTS (SELECT 1 FROM leases AS m WHERE m.owner = $2 AND m.expires_at > {_NOW})
      AND {{narrowed}}
    ORDER BY r.key LIMIT $3 FOR NO KEY UPDATE OF r SKIP LOCKED
), taken AS (
    UPDATE runs SET owner = $2, epoch = epoch + 1 FROM ready WHERE runs.key = ready.key
    RETURNING {", ".join(f"runs.{column}" for column in _RUNS.columns)}, ready.lost_by
)
SELECT {_RUNS.select}, lost_by FROM taken ORDER BY key
"""
_ALL: Final = _CLAIM.format(narrowed="TRUE")
_SOME: Final = _CLAIM.format(narrowed="r.run_id = ANY($4::text[])")
_RENEW: Final = f"""
WITH clock AS MATERIALIZED (SELECT {_NOW} AS now), forgotten AS (
    DELETE FROM leases WHERE expires_at < (SELECT now FROM clock) - {_FORGET_MS} AND owner != $2
), kept AS (
    INSERT INTO leases (owner, expires_at) SELECT $2, now + $3 FROM clock WHERE $3 > 0
    ON CONFLICT (owner) DO UPDATE SET expires_at = excluded.expires_at
), left_ AS (
    DELETE FROM leases WHERE owner = $2 AND $3 = 0
)
SELECT now FROM clock
"""
_PROBE: Final = f"""
INSERT INTO blobs (name, data, created_at) VALUES ('probe', '', {_NOW})
ON CONFLICT (name) DO UPDATE SET created_at = excluded.created_at
RETURNING {NOW.format(mark="NULL")}
"""


async def claim(
    db: Connection, owner: str, now: int | None, limit: int, run_ids: Sequence[str]
) -> list[Claimed]:
    """Take up to `limit` runs for `owner`; the port says which.

    Runs that somebody is just writing to are passed over; nobody is waited for.
    """
    rows = (
        await db.fetch(_SOME, now, owner, limit, list(run_ids))
        if run_ids
        else await db.fetch(_ALL, now, owner, limit)
    )
    return [Claimed(_RUNS.record(row[:-1]), row[-1]) for row in rows]


async def renew(db: Connection, owner: str, now: int | None, ttl_ms: int) -> int:
    """Write a lease and return the database's time; one that is given up goes."""
    return int(await db.fetchval(_RENEW, now, owner, ttl_ms))


async def probe(db: Connection, now: int | None) -> int:
    """Write one row of no meaning and return the time: a commit has reached the disk."""
    return int(await db.fetchval(_PROBE, now))
