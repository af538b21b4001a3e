"""SQLite alone, inserting events in bulk: the most that a log on it could take."""

import time
from pathlib import Path
from typing import Final

import apsw

PER_TRANSACTION: Final = 1024
PER_SEGMENT: Final = 512


def insert_rows(path: Path, blob: bytes, events: int) -> float:
    """Insert one row per event; return the events per second."""
    return _insert(path, blob, events, PER_TRANSACTION)


def insert_segments(path: Path, blob: bytes, events: int) -> float:
    """Insert the same bytes, as many events in a row as an agent's burst brings at once."""
    segment = b"[" + b",".join([blob] * PER_SEGMENT) + b"]"
    rate = _insert(path, segment, events // PER_SEGMENT, PER_TRANSACTION // PER_SEGMENT)
    return rate * PER_SEGMENT


def _insert(path: Path, blob: bytes, rows: int, per_transaction: int) -> float:
    db = apsw.Connection(str(path))
    try:
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=NORMAL")
        db.execute("CREATE TABLE log (key INTEGER PRIMARY KEY, data BLOB NOT NULL)")
        began = time.perf_counter()
        for first in range(0, rows, per_transaction):
            keys = range(first, min(first + per_transaction, rows))
            db.execute("BEGIN IMMEDIATE")
            db.executemany("INSERT INTO log VALUES (?, ?)", ((key, blob) for key in keys))
            db.execute("COMMIT")
        return rows / (time.perf_counter() - began)
    finally:
        db.close()
