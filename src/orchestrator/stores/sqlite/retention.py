"""What retention removes: old runs whole, or only the deltas of their logs."""

from typing import Final

import apsw

from orchestrator.core.events import DELTAS, open_event
from orchestrator.ports import Trimmed
from orchestrator.stores.segments import segments
from orchestrator.stores.sqlite import sql
from orchestrator.stores.sqlite.reader import events_of

_EXPIRED: Final = (
    "SELECT key, run_id FROM runs WHERE ended_at IS NOT NULL AND ended_at < ? "
    "ORDER BY ended_at LIMIT ?"
)
_UNTRIMMED: Final = (
    "SELECT key, run_id FROM runs WHERE trimmed = 0 AND ended_at IS NOT NULL AND ended_at < ? "
    "ORDER BY ended_at LIMIT ?"
)
_SEGMENT: Final = "INSERT INTO segments (key, n, epoch, ts, data) VALUES (?, ?, ?, ?, ?)"
_OF_RUN: Final = ("invocations", "messages", "idempotency_keys", "timers", "cursors")
_EMPTY_SESSIONS: Final = """
DELETE FROM sessions
WHERE (tenant, session_id) IN (SELECT tenant, session_id FROM runs WHERE key = ?)
  AND NOT EXISTS (SELECT 1 FROM runs AS r WHERE r.tenant = sessions.tenant
                  AND r.session_id = sessions.session_id AND r.key != ?)
  AND NOT EXISTS (SELECT 1 FROM messages AS m WHERE m.tenant = sessions.tenant
                  AND m.session_id = sessions.session_id)
"""


def trim(db: apsw.Connection, runs_before: int, deltas_before: int, limit: int) -> Trimmed:
    """Remove up to `limit` runs and the deltas of up to `limit` others, in the open transaction."""
    runs = sql.rows(db, _EXPIRED, (runs_before, limit)) if runs_before else []
    for key, run_id in runs:
        _remove(db, key, run_id)
    old = sql.rows(db, _UNTRIMMED, (deltas_before, limit)) if deltas_before else []
    return Trimmed(len(runs), sum(_thin(db, key) for key, _ in old))


def _remove(db: apsw.Connection, key: int, run_id: str) -> None:
    for table in _OF_RUN:
        db.execute(f"DELETE FROM {table} WHERE run_id = ?", (run_id,))
    db.execute("DELETE FROM segments WHERE key >= ? AND key <= ?", _range(key))
    db.execute(_EMPTY_SESSIONS, (key, key))
    db.execute("DELETE FROM runs WHERE key = ?", (key,))


def _thin(db: apsw.Connection, key: int) -> int:
    """Rewrite a run's log without the delta class; what stays keeps its seq and its bytes."""
    events = events_of(db, key, 0, 1 << 32, 1 << 62).batch
    kept = [at for at, kind in enumerate(events.types) if kind not in DELTAS]
    db.execute("DELETE FROM segments WHERE key >= ? AND key <= ?", _range(key))
    for part, data in segments(events.chosen(kept)) if kept else ():
        ts = open_event(part[0].data).ts
        values = (key << 32 | part.seqs[0], len(part), 0, ts, data)
        db.execute(_SEGMENT, values)
    db.execute("UPDATE runs SET trimmed = 1 WHERE key = ?", (key,))
    return len(events) - len(kept)


def _range(key: int) -> tuple[int, int]:
    return key << 32, key << 32 | 0xFFFFFFFF
