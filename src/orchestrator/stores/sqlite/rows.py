"""Gives a whole file out, table by table and page by page, while nobody else has it."""

from array import array
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from typing import Any, Final

import apsw
from msgspec.structs import fields, replace

from orchestrator.core.errors import DatabaseRefused
from orchestrator.core.records import Record, Run
from orchestrator.stores.copying import SEGMENTS, Form, Page, Part, Row, paged
from orchestrator.stores.sqlite import migrating, opening, schema, sql
from orchestrator.stores.sqlite.location import Location, locate
from orchestrator.stores.sqlite.lock import LockFile, address_of, holder_of
from orchestrator.stores.sqlite.opening import OPEN_STATES
from orchestrator.stores.sqlite.tables import HEAD, TABLES

_SEQ_MAX: Final = 0xFFFFFFFF
# From the first segment of a run to the first one behind all of that run.
_LOGS: Final = f"""
WITH RECURSIVE logs (run) AS (
    SELECT min(key) >> 32 FROM segments
    UNION ALL
    SELECT (SELECT min(key) >> 32 FROM segments WHERE key > (logs.run << 32 | {_SEQ_MAX}))
    FROM logs WHERE logs.run IS NOT NULL
)
SELECT logs.run, coalesce(r.run_id, '') FROM logs LEFT JOIN runs AS r ON r.key = logs.run
WHERE logs.run IS NOT NULL
"""
_LOG: Final = (
    "SELECT key, n, epoch, ts, data FROM segments WHERE key >= ? AND key <= ? ORDER BY key"
)
_LAST_KEY: Final = "SELECT seq FROM sqlite_sequence WHERE name = 'runs'"
_FORKED: Final = f"json_insert(forks, '$[#]', {HEAD})"
_FORKS: Final = f"CASE WHEN status IN ({OPEN_STATES}) THEN {_FORKED} ELSE forks END AS forks"
"""What a start makes of `forks` when the host stopped without a word of ours."""


class Rows:
    """`copying.Source` on a file, as it was when it was opened.

    Whatever the next start would correct in the file is corrected in what is given out.
    """

    def __init__(self, location: Location, db: apsw.Connection, boot: str) -> None:
        self._path = location.path
        self._db = db
        self._unclean = opening.unclean(db, boot)

    @property
    def last_key(self) -> int:
        """Return the highest number that a run was ever given."""
        return int(sql.value(self._db, _LAST_KEY) or 0)

    def pages(self, part: Part, form: Form) -> Iterator[Page]:
        """Return the rows of a table, in the order in which the target's keys sort."""
        try:
            yield from paged(self._log(form) if part is SEGMENTS else self._records(part, form))
        except (apsw.Error, UnicodeDecodeError) as error:
            raise DatabaseRefused(
                f"the table {part.name} of {self._path} cannot be read ({error}); "
                "copy a backup that is whole"
            ) from error

    def _records(self, part: Part, form: Form) -> Iterator[Row]:
        columns = self._columns(part)
        text = f"SELECT {columns} FROM {part.name} WHERE {part.where} ORDER BY "
        flags = _flags(part.kind)
        for row in self._db.execute(text + self._order(part, form)):
            values = list(row)
            for at in flags:
                values[at] = bool(values[at])
            yield tuple(values)

    def _columns(self, part: Part) -> str:
        if part.kind is not Run:
            return ", ".join(part.columns)
        select = TABLES[Run].select
        return select.replace("forks", _FORKS) if self._unclean else select

    def _order(self, part: Part, form: Form) -> str:
        """Return by what to sort; a key that the target keeps otherwise sorts otherwise there."""
        told = " OR ".join(f"instr(CAST({column} AS BLOB), x'00')" for column in part.key)
        if not sql.value(self._db, f"SELECT EXISTS (SELECT 1 FROM {part.name} WHERE {told})"):
            return ", ".join(part.key)
        self._db.create_scalar_function("plain", form.plain, 1)
        return ", ".join(f"plain({column})" for column in part.key)

    def _log(self, form: Form) -> Iterator[Row]:
        days: defaultdict[date, array[int]] = defaultdict(lambda: array("q"))
        for run, run_id in self._db.execute(_LOGS):
            days[form.day_of(run_id)].append(run)
        for day in sorted(days):
            for run in days[day]:
                for key, *rest in self._db.execute(_LOG, (run << 32, run << 32 | _SEQ_MAX)):
                    yield day, run, key & _SEQ_MAX, *rest


@contextmanager
def opened(url: str, boot: str) -> Iterator[Rows]:
    """Hand out the rows of the file that `DATABASE_URL` names, which is not written to.

    `boot` is the present start of this host. Raises DatabaseRefused, also while a server has it.
    """
    location = replace(locate(url), mode="ro")
    _must_be_current(url)
    lock = _locked(location.path)
    try:
        with schema.refusing(location):
            db = schema.connect(location, read_only=True)
        try:
            with schema.refusing(location):
                db.execute("BEGIN")
                rows = Rows(location, db, boot)
            yield rows
        finally:
            db.close()
    finally:
        lock.release()


def _must_be_current(url: str) -> None:
    planned = migrating.plan(url)
    if planned.schema == 0:
        raise DatabaseRefused(f"there is no database at {planned.database} to copy")
    if planned.schema != planned.known:
        older = "bring it up to date first: ./orchestrator migrate up"
        newer = "copy it with the version that wrote it"
        raise DatabaseRefused(
            f"{planned.database} has schema {planned.schema}, and this version copies "
            f"{planned.known}; {older if planned.steps else newer}"
        )


def _locked(path: str) -> LockFile:
    holder = holder_of(path)
    if holder is None:
        return LockFile.take(path)
    address = address_of(path)
    raise DatabaseRefused(
        f"{path} is in use by the server {f'at {address} ' if address else ''}(process {holder}), "
        f"which goes on writing; stop it first: kill {holder}"
    )


def _flags(kind: type[Record] | None) -> list[int]:
    """Return which columns hold truth values; SQLite has numbers for them."""
    found: list[Any] = list(fields(kind)) if kind is not None else []
    return [at for at, field in enumerate(found) if field.type is bool]
