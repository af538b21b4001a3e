"""The days that the log is divided into: each is a table, made when it is first needed."""

from collections.abc import Iterable
from datetime import date
from typing import Final

from orchestrator.stores.postgres.pool import Connection, Pool

# "orch", then which lock of ours it is.
BUCKETS_LOCK: Final = 0x6F726368 << 8 | 1
_LISTED: Final = """
SELECT c.relname FROM pg_inherits AS i JOIN pg_class AS c ON c.oid = i.inhrelid
WHERE i.inhparent = 'segments'::regclass
"""
_PREFIX: Final = "segments_"


class Buckets:
    """Knows which days exist and makes those that do not."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._known: set[date] = set()

    def lacking(self, days: Iterable[date]) -> set[date]:
        """Return those days that are not known to exist."""
        return set(days) - self._known

    def forget(self) -> None:
        """Ask again what exists."""
        self._known.clear()

    async def ensure(self, days: set[date]) -> None:
        """Make days that do not exist; whoever else makes them waits."""
        async with self._pool.connection() as db:
            self._known.update(await listed(db))
            for day in sorted(days - self._known):
                async with db.transaction():
                    await db.execute("SELECT pg_advisory_xact_lock($1)", BUCKETS_LOCK)
                    if day not in await listed(db):
                        await _make(db, day)
                self._known.add(day)


async def listed(db: Connection) -> list[date]:
    """Return the days that exist, in order."""
    names = [row[0] for row in await db.fetch(_LISTED)]
    return sorted(date.fromisoformat(name.removeprefix(_PREFIX)) for name in names)


async def drop(db: Connection, day: date) -> None:
    """Remove a day with all that it holds, in the open transaction."""
    await db.execute(f"DROP TABLE {name_of(day)}")


def name_of(day: date) -> str:
    """Return the name of a day's table."""
    return f"{_PREFIX}{day:%Y%m%d}"


async def _make(db: Connection, day: date) -> None:
    """Make a day beside the log and attach it, for which nobody has to stop."""
    name = name_of(day)
    await db.execute(
        f"CREATE TABLE {name} (LIKE segments INCLUDING ALL); "
        f"ALTER TABLE segments ATTACH PARTITION {name} FOR VALUES IN ('{day.isoformat()}')"
    )
