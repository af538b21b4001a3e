"""Opens database files: looks whose they are, and leaves those that are not ours untouched."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final
from urllib.parse import quote

import apsw

from orchestrator.core.errors import DatabaseRefused
from orchestrator.stores.sqlite import sql
from orchestrator.stores.sqlite.location import Location
from orchestrator.stores.steps import Schema, Step, steps_of

APPLICATION_ID: Final = 0x4F726368  # "Orch"
NONE: Final = Schema(0, 0)
ENGINE_NEEDED: Final = (3, 51, 3)
"""Older engines can lose a commit when one connection checkpoints while another one commits."""
_HEADER_BYTES: Final = 100
_USER_VERSION_AT: Final = 60
_APPLICATION_ID_AT: Final = 68
_SERVES: Final = 1000
"""What a file's `user_version` counts in thousands is the oldest schema that its own one serves."""
_BUSY_MS: Final = 5000
_CACHE_KIB: Final = 16_384


def migrations() -> list[Step]:
    """Return the steps of the schema, in order."""
    return steps_of("orchestrator.stores.sqlite")


def check_engine() -> None:
    """Raise DatabaseRefused when the SQLite library is too old to be trusted."""
    found = tuple(int(part) for part in apsw.sqlite_lib_version().split("."))
    if found < ENGINE_NEEDED:
        needed = ".".join(map(str, ENGINE_NEEDED))
        raise DatabaseRefused(
            f"SQLite {apsw.sqlite_lib_version()} is older than {needed}, which can lose commits; "
            "install the apsw of the lock file, which bundles a newer one"
        )


def connect(
    location: Location, *, read_only: bool = False, synchronous: str = "FULL"
) -> apsw.Connection:
    """Open a connection with our pragmas; raises DatabaseRefused when the file cannot be opened."""
    flags = apsw.SQLITE_OPEN_READONLY if read_only else apsw.SQLITE_OPEN_READWRITE
    try:
        db = apsw.Connection(location.path, flags=flags, vfs=location.vfs)
        db.set_busy_timeout(_BUSY_MS)
        db.execute(f"PRAGMA cache_size=-{_CACHE_KIB}")
        if not read_only:
            db.execute("PRAGMA journal_mode=WAL")
            db.execute(f"PRAGMA synchronous={synchronous}")
            # Proves that the file can be written at all, before anything is promised.
            if db.readonly("main"):
                raise apsw.ReadOnlyError("the file is read-only")  # noqa: TRY301  # told below
            db.execute("BEGIN IMMEDIATE")
            db.execute("ROLLBACK")
    except (apsw.ReadOnlyError, apsw.CantOpenError, apsw.PermissionsError) as error:
        raise DatabaseRefused(
            f"{location.path} cannot be opened for writing ({error}); check the owner and mode of "
            "the file and its folder"
        ) from error
    except (apsw.NotADBError, apsw.CorruptError) as error:
        raise _damaged(location.path, error) from error
    return db


def inspect(location: Location) -> Schema:
    """Return the schema in a file's header, 0 for a new one; nothing is changed or opened.

    Raises DatabaseRefused for what is not ours to open.
    """
    path = Path(location.path)
    if path.is_dir():
        raise DatabaseRefused(f"{path} is a folder; DATABASE_URL must name a file in it")
    if not path.exists() or path.stat().st_size == 0:
        if location.mode != "rwc":
            raise DatabaseRefused(
                f"{path} does not exist, and mode={location.mode} makes no new one"
            )
        return NONE
    try:
        header = _header(location)
        if _number(header, _APPLICATION_ID_AT) == APPLICATION_ID:
            return _schema(_number(header, _USER_VERSION_AT))
        foreign = _holds_anything(location)
    except (apsw.NotADBError, apsw.CorruptError, apsw.IOError) as error:
        raise _damaged(location.path, error) from error
    except (apsw.CantOpenError, apsw.PermissionsError, apsw.AuthError) as error:
        raise DatabaseRefused(
            f"{path} cannot be read ({error}); check its owner and mode"
        ) from error
    if foreign:
        raise DatabaseRefused(
            f"{path} is the database of another program and was left untouched; "
            "give the server a DATABASE_URL of its own"
        )
    return NONE


def _header(location: Location) -> bytes:
    """Return the file's first 100 bytes (SQLite's file format, §1.3), without asking SQLite.

    A process that was killed while it copied its log into the file leaves a file that is whole only
    together with the log; what stands in the header is true all the same.
    """
    flags = [apsw.SQLITE_OPEN_MAIN_DB | apsw.SQLITE_OPEN_READONLY, 0]
    file = apsw.VFSFile(location.vfs or "", location.path, flags)
    try:
        header = file.xRead(_HEADER_BYTES, 0)
    finally:
        file.xClose()
    if not header.startswith(b"SQLite format 3\0"):
        raise apsw.NotADBError("file is not a database")
    return header


def _number(header: bytes, at: int) -> int:
    return int.from_bytes(header[at : at + 4], "big")


def schema_of(location: Location, *, read_only: bool) -> Schema:
    """Return the schema of a file of ours: its log may know of a later one than its header."""
    db = connect(location, read_only=read_only)
    try:
        return _schema(_pragma(db, "user_version"))
    finally:
        db.close()


def stamp(db: apsw.Connection, step: Step) -> None:
    """Write into a file, in the open transaction, that it is ours and which step was the last."""
    serves = step.serves if step.serves < step.number else 0
    db.execute(f"PRAGMA application_id={APPLICATION_ID}")
    db.execute(f"PRAGMA user_version={_SERVES * serves + step.number}")


def _schema(version: int) -> Schema:
    serves, number = divmod(version, _SERVES)
    return Schema(number, serves or number)


def _holds_anything(location: Location) -> bool:
    """Return whether a database that is not ours is anybody's."""
    # Immutable: no lock, no journal, no shared memory file beside it.
    uri = f"file:{quote(location.path)}?immutable=1"
    flags = apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI
    db = apsw.Connection(uri, flags=flags, vfs=location.vfs)
    try:
        tables = int(sql.value(db, "SELECT count(*) FROM sqlite_master"))
        return bool(tables or _pragma(db, "application_id"))
    finally:
        db.close()


def backup(db: apsw.Connection, path: str, progress: Callable[[], None] = lambda: None) -> None:
    """Copy a database that is in use to a new file, a few pages at a time."""
    target = apsw.Connection(path)
    try:
        with target.backup("main", db, "main") as copy:
            while not copy.done:
                copy.step(256)
                progress()
    finally:
        target.close()


@contextmanager
def refusing(location: Location) -> Iterator[None]:
    """Say of what keeps a file from being opened what it is and what to do, as DatabaseRefused."""
    try:
        yield
    except apsw.FullError as error:
        raise DatabaseRefused(
            f"{location.path} cannot be opened: the disk is full; free some space and start again"
        ) from error
    except (apsw.Error, OSError) as error:
        raise DatabaseRefused(
            f"{location.path} cannot be opened ({error}); look at the disk, and start again"
        ) from error


def _pragma(db: apsw.Connection, name: str) -> int:
    return int(sql.value(db, f"PRAGMA {name}"))


def _damaged(path: str, error: Exception) -> DatabaseRefused:
    return DatabaseRefused(
        f"{path} is damaged or no database at all ({error}) and was left untouched; "
        "restore a backup, or move it away to begin anew"
    )
