"""Copies a whole database into an empty one of another kind, and proves that it is the same.

Every row is hashed in the order of its key, as it is read at the source and as it is read back at
the target before anything there is committed.
"""

from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from datetime import date
from hashlib import blake2b
from typing import Any, Final, NamedTuple, Protocol, TypeAlias

import msgspec

from orchestrator.core.errors import StoreFailure
from orchestrator.core.records import RECORDS, Blob, Lease, Record, Run

Row: TypeAlias = tuple[Any, ...]
Page: TypeAlias = list[Row]
PAGE_ROWS: Final = 1000
PAGE_BYTES: Final = 1 << 20
"""Bytes of texts and blobs after which a page ends; a single larger row is a page of its own."""
_encoded: Final = msgspec.msgpack.Encoder().encode
"""A row's one and only form in bytes: MessagePack, in which each value says where it ends."""


class Part(NamedTuple):
    """A table as it is copied, its rows in the order of `key`; `where` leaves some of them out."""

    name: str
    columns: tuple[str, ...]
    key: tuple[str, ...]
    kind: type[Record] | None = None
    where: str = "TRUE"

    def key_of(self, row: Row) -> str:
        """Return what identifies a row, for people."""
        named = dict(zip(self.columns, row, strict=True))
        return ", ".join(f"{column} {named[column]}" for column in self.key)


class Form(NamedTuple):
    """What differs at the target: how it keeps a value, and under which day the log of a run id."""

    plain: Callable[..., Any]
    day_of: Callable[[str], date]


_LEFT_OUT: Final[dict[type[Record], str]] = {Blob: "name NOT IN ('host', 'probe')"}
"""Marks of a host and of its health checks, which mean nothing elsewhere."""


def _part_of(kind: type[Record]) -> Part:
    # Runs come in the order of acceptance, as they must be kept.
    key = ("key",) if kind is Run else kind.KEY
    return Part(kind.TABLE, kind.__struct_fields__, key, kind, _LEFT_OUT.get(kind, "TRUE"))


SEGMENTS: Final = Part(
    "segments", ("bucket", "run", "seq", "n", "epoch", "ts", "data"), ("bucket", "run", "seq")
)
PARTS: Final = (*(_part_of(kind) for kind in RECORDS if kind is not Lease), SEGMENTS)
"""All that is copied; a lease is a living process's."""


class Source(Protocol):
    """A database that is read and that nobody writes to meanwhile."""

    @property
    def last_key(self) -> int:
        """Return the highest number that a run was ever given."""
        ...

    def pages(self, part: Part, form: Form) -> Iterator[Page]:
        """Return the rows of a table, in the order in which the target's keys sort."""
        ...


class Target(Protocol):
    """An empty database in an open transaction, to which nobody else can write."""

    form: Form

    async def load(self, part: Part, page: Page) -> None:
        """Insert rows."""
        ...

    async def number_after(self, key: int) -> None:
        """Have new runs numbered from behind `key`."""
        ...

    def pages(self, part: Part) -> AsyncIterator[Page]:
        """Return the rows that are there by now, in the order of their key."""
        ...


class Tally:
    """What was counted of a table; `changed` values are kept otherwise than they were."""

    def __init__(self) -> None:
        self.rows = self.bytes = self.changed = 0
        self._hash = blake2b(digest_size=32)

    def add(self, page: Page) -> None:
        """Count and hash rows."""
        for row in page:
            data = _encoded(row)
            self.bytes += len(data)
            self._hash.update(data)
        self.rows += len(page)

    @property
    def digest(self) -> str:
        """Return the hash of all rows so far."""
        return self._hash.hexdigest()


class Copied(NamedTuple):
    """What became of a table."""

    table: str
    rows: int
    bytes: int
    hash: str
    changed: int


Told = Callable[[str, str, Tally], None]
"""Is told what is being done (`copy` or `check`), to which table, and how far it is."""


async def copied(source: Source, target: Target, told: Told) -> list[Copied]:
    """Copy every table and read it back; the caller commits.

    Raises StoreFailure naming the table and the first row of one that is not the same.
    """
    tallies = {part: await _load(source, target, part, told) for part in PARTS}
    await target.number_after(source.last_key)
    for part, tally in tallies.items():
        await _check(source, target, part, tally, told)
    return [
        Copied(part.name, tally.rows, tally.bytes, tally.digest, tally.changed)
        for part, tally in tallies.items()
    ]


def paged(rows: Iterable[Row]) -> Iterator[Page]:
    """Cut rows into pages of bounded size."""
    page, size = Page(), 0
    for row in rows:
        page.append(row)
        size += sum(len(value) for value in row if isinstance(value, str | bytes))
        if len(page) == PAGE_ROWS or size >= PAGE_BYTES:
            yield page
            page, size = Page(), 0
    if page:
        yield page


async def _load(source: Source, target: Target, part: Part, told: Told) -> Tally:
    tally = Tally()
    for page in source.pages(part, target.form):
        kept = [tuple(map(target.form.plain, row)) for row in page]
        tally.changed += sum(map(_differences, page, kept))
        tally.add(kept)
        await target.load(part, kept)
        told("copy", part.name, tally)
    return tally


def _differences(one: Row, other: Row) -> int:
    return 0 if one == other else sum(a != b for a, b in zip(one, other, strict=True))


async def _check(source: Source, target: Target, part: Part, read: Tally, told: Told) -> None:
    """Raise StoreFailure where a table is not what was read of the source."""
    there = Tally()
    async for page in target.pages(part):
        there.add(page)
        told("check", part.name, there)
    if (there.rows, there.digest) != (read.rows, read.digest):
        raise StoreFailure(
            f"the copy of the table {part.name} is not what was read: {read.rows} rows with hash "
            f"{read.digest[:16]} became {there.rows} with {there.digest[:16]}, the first that "
            f"differs is {await _first_difference(source, target, part)}. Nothing was kept of the "
            "copy. Look for triggers and rules at the target, and for damage at the source"
        )


async def _first_difference(source: Source, target: Target, part: Part) -> str:
    plain = target.form.plain
    rows = (row for page in source.pages(part, target.form) for row in page)
    expected = (tuple(map(plain, row)) for row in rows)
    async for page in target.pages(part):
        for found in page:
            wanted = next(expected, None)
            if wanted != found:
                return part.key_of(found if wanted is None else wanted)
    missing = next(expected, None)
    return "none when read again" if missing is None else part.key_of(missing)
