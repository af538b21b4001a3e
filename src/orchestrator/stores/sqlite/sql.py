"""Two ways to ask a connection, each typed as loosely as SQL is."""

from collections.abc import Sequence
from typing import Any

import apsw


def rows(db: apsw.Connection, sql: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
    """Return all rows of a statement."""
    found: list[tuple[Any, ...]] = db.execute(sql, tuple(values)).fetchall()
    return found


def row(db: apsw.Connection, sql: str, values: Sequence[Any] = ()) -> tuple[Any, ...] | None:
    """Return the first row of a statement, or None."""
    found = rows(db, sql, values)
    return found[0] if found else None


def value(db: apsw.Connection, sql: str, values: Sequence[Any] = ()) -> Any:
    """Return the first column of the first row of a statement, or None."""
    found = row(db, sql, values)
    return found[0] if found else None
