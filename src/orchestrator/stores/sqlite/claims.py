"""Ownership: which runs may run now, and whose they are."""

from collections.abc import Sequence
from typing import Any, Final

import apsw

from orchestrator.core.records import Lease, Run
from orchestrator.ports import Claimed
from orchestrator.stores.sqlite.apply import Applier
from orchestrator.stores.sqlite.tables import TABLES

_RUNS: Final = TABLES[Run]
_FORGET_MS: Final = 600_000
_LIVING: Final = "SELECT owner FROM leases WHERE expires_at > ?"
_LIVES: Final = f"{_LIVING} AND owner = ?"
_READY: Final = f"""
SELECT r.key, r.owner, r.status FROM runs AS r
WHERE r.status IN ('CREATED', 'RUNNING')
  AND (r.owner IS NULL OR r.owner NOT IN ({_LIVING}))
  AND (r.status = 'RUNNING' OR r.parent_run_id IS NOT NULL OR r.parallel OR NOT EXISTS (
    SELECT 1 FROM runs AS e
    WHERE e.tenant = r.tenant AND e.session_id = r.session_id AND e.key < r.key
      AND e.status IN ('CREATED', 'RUNNING') AND e.parent_run_id IS NULL AND NOT e.parallel))
  AND {{narrowed}}
ORDER BY r.key LIMIT ?
"""
_TAKE: Final = (
    f"UPDATE runs SET owner = ?, epoch = epoch + 1 WHERE key = ? RETURNING {_RUNS.select}"
)
_PUT_LEASE: Final = "INSERT INTO leases (owner, expires_at) VALUES (?, ?)"
_PROBE: Final = "INSERT OR REPLACE INTO blobs (name, data, created_at) VALUES ('probe', x'', ?)"


def claim(
    applier: Applier, owner: str, now: int, limit: int, run_ids: Sequence[str]
) -> list[Claimed]:
    """Take up to `limit` runs for `owner`, inside the open transaction; the port says which."""
    if applier.connection.execute(_LIVES, (now, owner)).fetchone() is None:
        return []
    narrowed = f"r.run_id IN ({', '.join('?' * len(run_ids))})" if run_ids else "TRUE"
    text = _READY.format(narrowed=narrowed)
    ready = applier.connection.execute(text, (now, *run_ids, limit)).fetchall()
    return [_take(applier, owner, row) for row in ready]


def _take(applier: Applier, owner: str, ready: tuple[Any, ...]) -> Claimed:
    key, before, status = ready
    row = applier.connection.execute(_TAKE, (owner, key)).fetchall()[0]
    run = _RUNS.record(row)
    applier.heads.claimed(run)
    return Claimed(run, before if status == "RUNNING" else None)


def renew(db: apsw.Connection, lease: Lease) -> None:
    """Write a lease; one that is given up goes, and so do those that nobody renewed for long."""
    db.execute("DELETE FROM leases WHERE owner = ? OR expires_at < ?",
               (lease.owner, lease.expires_at - _FORGET_MS))  # fmt: skip
    if lease.expires_at:
        db.execute(_PUT_LEASE, (lease.owner, lease.expires_at))


def probe(db: apsw.Connection, now: int) -> None:
    """Write one row of no meaning, so that a commit has to reach the disk."""
    db.execute(_PROBE, (now,))
