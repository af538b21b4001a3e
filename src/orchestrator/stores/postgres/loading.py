"""Takes a whole database in: one transaction on an empty one, read back before it is committed."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from datetime import date
from typing import Final

import asyncpg

from orchestrator.core.errors import DatabaseRefused, StorageFull, StoreFailure, Unavailable
from orchestrator.stores.copying import PAGE_BYTES, PAGE_ROWS, PARTS, SEGMENTS, Form, Page, Part
from orchestrator.stores.postgres import faults, schema
from orchestrator.stores.postgres.buckets import listed, name_of
from orchestrator.stores.postgres.clock import NOW
from orchestrator.stores.postgres.location import locate, shown
from orchestrator.stores.postgres.pool import CONNECT_S, Connection, connect
from orchestrator.stores.postgres.segments import bucket_of
from orchestrator.stores.postgres.tables import plain

_DRIVER: Final = (asyncpg.PostgresError, asyncpg.InterfaceError, OSError)
_UNFIT: Final = (TypeError, ValueError, OverflowError)
"""What the driver says to a value that is of no kind that the column has."""
_LONG_S: Final = 86_400.0
"""Sorting a table, and committing all of them, take as long as they take."""
_FIRST_ROWS: Final = 16
_SETTINGS: Final = {"statement_timeout": "0", "idle_in_transaction_session_timeout": "0"}
_LOCK: Final = f"LOCK TABLE {', '.join(part.name for part in PARTS)}, leases IN EXCLUSIVE MODE"
_SERVED: Final = (
    f"SELECT EXISTS (SELECT 1 FROM leases WHERE expires_at > {NOW.format(mark='NULL')})"
)


class Loading:
    """`copying.Target` on a connection with an open transaction."""

    form = Form(plain, bucket_of)

    def __init__(self, db: Connection, place: str) -> None:
        self._db = db
        self._place = place
        self._days: set[date] = set()

    async def begin(self) -> None:
        """Keep everybody else from writing; raises DatabaseRefused where anything is kept."""
        with _explained(self._place):
            await self._db.execute("BEGIN")
            await self._db.execute(_LOCK)
            await _must_be_empty(self._db, self._place)
            self._days.update(await listed(self._db))

    async def load(self, part: Part, page: Page) -> None:
        """Insert rows; the days that the log needs are made."""
        with _explained(self._place):
            if part is SEGMENTS:
                for day in sorted({row[0] for row in page} - self._days):
                    await self._make(day)
            await self._db.copy_records_to_table(part.name, records=page, columns=part.columns)

    async def number_after(self, key: int) -> None:
        """Have new runs numbered from behind `key`."""
        with _explained(self._place):
            await self._db.execute(f"ALTER TABLE runs ALTER COLUMN key RESTART WITH {key + 1}")

    async def pages(self, part: Part) -> AsyncIterator[Page]:
        """Return the rows that are there by now, in the order of their key."""
        order = ", ".join(part.key)
        text = f"SELECT {', '.join(part.columns)} FROM {part.name} WHERE {part.where}"
        with _explained(self._place):
            rows = await self._db.cursor(f"{text} ORDER BY {order}", timeout=_LONG_S)
        count = _FIRST_ROWS
        while True:
            with _explained(self._place):
                page = [tuple(row) for row in await rows.fetch(count, timeout=_LONG_S)]
            if not page:
                return
            yield page
            size = sum(len(v) for row in page for v in row if isinstance(v, str | bytes))
            count = max(1, min(2 * count, PAGE_ROWS, PAGE_BYTES * len(page) // max(size, 1)))

    async def commit(self) -> None:
        """Make all of it stay."""
        try:
            done = await self._db.execute("COMMIT", timeout=_LONG_S)
        except _DRIVER as error:
            if not faults.is_lost(error):
                raise _judged(self._place, error) from error
            raise Unavailable(
                f"the connection to {self._place} was lost while all of the copy was being "
                "committed, so it is either whole or not there; copy again to find out: where it "
                "is there, that is refused"
            ) from error
        if done != "COMMIT":
            raise StoreFailure(f"{self._place} rolled the copy back; nothing of it is there")

    async def _make(self, day: date) -> None:
        await self._db.execute(
            f"CREATE TABLE {name_of(day)} PARTITION OF segments FOR VALUES IN ('{day.isoformat()}')"
        )
        self._days.add(day)


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[Loading]:
    """Hand out an empty database in a transaction that is committed at the end, if that is good.

    Raises DatabaseRefused for a database that holds anything, which is left untouched.
    """
    with _of_target():
        db = await _prepared(locate(url))
    try:
        loading = Loading(db, shown(url))
        await loading.begin()
        yield loading
        await loading.commit()
        with suppress(*_DRIVER):
            await db.close(timeout=CONNECT_S)
    finally:
        db.terminate()


async def _prepared(url: str) -> Connection:
    """Return a connection to a database that has our tables and nothing in them."""
    place = shown(url)
    planned = await schema.plan(url)
    with _explained(place):
        if planned.schema:
            db = await connect(url)
            try:
                await _must_be_empty(db, place)  # else an old one would be brought up to date
            finally:
                await db.close(timeout=CONNECT_S)
    await schema.prepare(url)
    with _explained(place):
        return await connect(url, **_SETTINGS)


async def _must_be_empty(db: Connection, place: str) -> None:
    for part in PARTS:
        if await db.fetchval("SELECT to_regclass($1)", part.name) is None:
            continue
        if await db.fetchval(f"SELECT EXISTS (SELECT 1 FROM {part.name} WHERE {part.where})"):
            raise DatabaseRefused(
                f"{place} is in use: its table {part.name} is not empty. It was left untouched; "
                "copy into a new database: createdb NAME"
            )
    if await db.fetchval(_SERVED):
        raise DatabaseRefused(
            f"{place} has a server running on it; stop that first, and start it after the copy "
            "with the SECRET_KEY of the source"
        )


@contextmanager
def _of_target() -> Iterator[None]:
    """Have refusals speak of the address that was given, which is not DATABASE_URL."""
    try:
        yield
    except DatabaseRefused as refused:
        raise DatabaseRefused(refused.message.replace("DATABASE_URL", "TARGET")) from refused


@contextmanager
def _explained(place: str) -> Iterator[None]:
    try:
        yield
    except (*_DRIVER, *_UNFIT) as error:
        raise _judged(place, error) from error


def _judged(place: str, error: Exception) -> Exception:
    """Return the sentence for what ended a copy: whatever it was, nothing stays of it."""
    if faults.is_lost(error):
        return Unavailable(f"the connection to {place} was lost, nothing of the copy is there")
    if isinstance(error, asyncpg.LockNotAvailableError):
        return DatabaseRefused(
            f"others are writing to {place}: a server that starts there, or another copy"
        )
    told = faults.judged(error)
    if isinstance(told, StorageFull):
        return StorageFull(f"the disk of {place} is full, nothing of the copy is there")
    return StoreFailure(f"{place} does not take the copy, and has nothing of it: {error}")
