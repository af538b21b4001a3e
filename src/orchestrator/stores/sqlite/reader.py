"""Reads: short ones inline on the loop, long replays page by page on a thread."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any, Final, NamedTuple, TypeAlias, TypeVar

import apsw

from orchestrator.core.batch import EMPTY, Batch, joined, unpack
from orchestrator.core.records import R
from orchestrator.ports import Where
from orchestrator.stores.sqlite import sql
from orchestrator.stores.sqlite.query import condition
from orchestrator.stores.sqlite.tables import TABLES

T = TypeVar("T")
Part: TypeAlias = tuple[int, list[str], list[str]]
INLINE_SEGMENTS: Final = 8
INLINE_BYTES: Final = 16 << 10
"""Up to here a read costs less than the way to a thread and back."""
_SEGMENTS: Final = "SELECT key, n, data FROM segments WHERE key >= ? AND key <= ? ORDER BY key"
_FIRST: Final = "SELECT max(key) FROM segments WHERE key >= ? AND key <= ?"
_SEQ_MAX: Final = 0xFFFFFFFF
_KEYS_MAX: Final = 100_000
READ_BYTES: Final = 256 << 10
"""Bytes of the log after which a read ends, so that nobody has more than that in hand."""


class Reader:
    """Reads without waiting for the writer, nor holding it up.

    What is short is read inline, through the writer's own connection where that is free: its pages
    are in memory, while those of any other connection are void after each commit.
    """

    def __init__(
        self,
        connect: Callable[[], apsw.Connection],
        writing: Callable[[], apsw.Connection | None] = lambda: None,
    ) -> None:
        self._writing = writing
        self._own = connect()
        self._paged = connect()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="reader")
        self._keys: dict[str, int] = {}

    async def read(self, run_id: str, after: int, limit: int) -> Batch:
        """Return up to `limit` events of a run after `after`."""
        key = self._key(run_id)
        if key is None:
            return EMPTY
        begun = events_of(self._inline, key, after, limit, INLINE_BYTES, INLINE_SEGMENTS)
        if begun.whole or len(begun.batch) == limit:
            return begun.batch
        read = await self._on_thread(lambda: events_of(self._paged, key, after, limit))
        return read.batch

    def get(self, kind: type[R], key: Sequence[Any]) -> R | None:
        """Return the record of that key."""
        table = TABLES[kind]
        text = f"SELECT {table.select} FROM {table.name} WHERE {table.by_key}"
        found = sql.row(self._inline, text, key)
        return table.record(found) if found else None

    def find(self, kind: type[R], where: Sequence[Where], order: str, limit: int) -> list[R]:
        """Return records that meet every condition."""
        table = TABLES[kind]
        text, bound = condition(table, where)
        ordered = f"{text}{table.ordering(order)} LIMIT ?"
        found = sql.rows(
            self._inline, f"SELECT {table.select} FROM {table.name}{ordered}", (*bound, limit)
        )
        return [table.record(row) for row in found]

    def count(self, kind: type[R], where: Sequence[Where]) -> int:
        """Return how many records meet every condition."""
        table = TABLES[kind]
        text, bound = condition(table, where)
        return int(sql.value(self._inline, f"SELECT count(*) FROM {table.name}{text}", bound))

    async def close(self) -> None:
        """Close the connections."""
        self._thread.shutdown()
        self._own.close()
        self._paged.close()

    @property
    def _inline(self) -> apsw.Connection:
        return self._writing() or self._own

    def _key(self, run_id: str) -> int | None:
        key = self._keys.get(run_id)
        if key is None:
            key = sql.value(self._inline, "SELECT key FROM runs WHERE run_id = ?", (run_id,))
            if key is None:
                return None
            if len(self._keys) > _KEYS_MAX:
                self._keys.clear()
            self._keys[run_id] = key
        return key

    async def _on_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)


class Read(NamedTuple):
    """Events that were read; `whole` when there are no more behind them."""

    batch: Batch
    whole: bool


def events_of(
    db: apsw.Connection,
    key: int,
    after: int,
    limit: int,
    most: int = READ_BYTES,
    segments: int = 1 << 62,
) -> Read:
    """Return up to `limit` events of the run with that key, of `segments` and `most` bytes."""
    low, high = key << 32, key << 32 | _SEQ_MAX
    first = sql.value(db, _FIRST, (low, low | (after + 1))) if after else low
    parts, count, whole = list[Part](), 0, True
    with closing(db.execute(_SEGMENTS, (first or low, high))) as rows:
        for at, size, data in rows:
            if count >= limit or most <= 0 or segments <= 0:
                whole = False
                break
            part = _unread(at & _SEQ_MAX, size, data, after)
            count += len(part[2])
            most -= len(data) if part[2] else 0
            segments -= 1
            parts.append(part)
    found = joined(parts) if count else EMPTY
    return Read(found if count <= limit else found.part(0, limit), whole and count <= limit)


def _unread(first: int, size: int, data: bytes, after: int) -> Part:
    """Return a segment's events after `after`."""
    types, texts = unpack(first, size, data)
    seen = max(0, min(after + 1 - first, size))
    return first + seen, types[seen:], texts[seen:]
