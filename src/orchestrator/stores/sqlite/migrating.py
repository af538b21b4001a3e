"""Brings database files up to date: creates new ones, and copies older ones before a change."""

import os
from collections.abc import Sequence
from pathlib import Path

import apsw

from orchestrator.core.errors import DatabaseRefused
from orchestrator.stores.sqlite import schema
from orchestrator.stores.sqlite.location import Location, locate
from orchestrator.stores.sqlite.lock import LockFile, holder_of
from orchestrator.stores.steps import Plan, Schema, Step, lacking, not_now
from orchestrator.telemetry import get_logger

log = get_logger(__name__)


def prepare(location: Location, *, migrate: bool = True) -> None:
    """Make the file ours and up to date, or raise DatabaseRefused and leave it as it is.

    The caller holds the lock, unless the file is only read. Without `migrate` a file that lacks
    steps is refused.
    """
    schema.check_engine()
    found = schema.inspect(location)
    if found.number and found.serves <= schema.migrations()[-1].number:
        found = schema.schema_of(location, read_only=location.mode == "ro")
    planned = _planned(location, found)
    if planned.steps:
        _bring(location, planned, migrate=migrate)
    elif planned.schema > planned.known and location.mode != "ro":
        log.warning("schema_is_newer", schema=planned.schema, known=planned.known)


def plan(url: str) -> Plan:
    """Return what an upgrade would do; raises DatabaseRefused for what is not ours to open."""
    location = locate(url)
    with schema.refusing(location):
        schema.check_engine()
        return _planned(location, _seen(location))


def up(url: str) -> Plan:
    """Bring a file up to date that no server has open; return what was done to it."""
    location = locate(url)
    planned = plan(url)
    if not planned.steps:
        return planned
    holder = holder_of(location.path)
    if holder is not None:
        raise DatabaseRefused(
            f"{location.path} is in use by a server (process {holder}); stop it first, then run: "
            "./orchestrator migrate up"
        )
    with schema.refusing(location):
        lock = LockFile.take(location.path)
        try:
            planned = plan(url)  # what another has done meanwhile is not done again
            prepare(location)
        finally:
            lock.release()
    return planned


def _seen(location: Location) -> Schema:
    """Return a file's schema without a trace: only a log that is there already is opened."""
    found = schema.inspect(location)
    if found.number and Path(f"{location.path}-wal").exists():
        return schema.schema_of(location, read_only=True)
    return found


def _planned(location: Location, found: Schema) -> Plan:
    steps = schema.migrations()
    known = steps[-1].number
    todo = lacking(location.path, found, steps)
    backup = f"{location.path}.before-{known}" if todo and found.number else None
    return Plan(location.path, found.number, known, todo, backup)


def _bring(location: Location, planned: Plan, *, migrate: bool) -> None:
    if not migrate:
        raise not_now(planned)
    if location.mode == "ro":
        raise DatabaseRefused(
            f"{location.path} needs an upgrade of its schema; run: ./orchestrator migrate up"
        )
    if planned.backup is None:
        _create(location, planned.steps)
    else:
        _upgrade(location, planned.backup, planned.steps)
        log.info("schema_upgraded", was=planned.schema, now=planned.known, backup=planned.backup)


def _create(location: Location, steps: Sequence[Step]) -> None:
    """Create the file under another name and rename it when it is whole and on the disk.

    So whatever happens meanwhile, a file of this name is either ours from its first byte or absent.
    """
    path = Path(location.path).resolve()
    new = path.with_name(f"{path.name}.new")
    try:
        for left in (new, new.with_name(f"{new.name}-journal")):
            left.unlink(missing_ok=True)
        db = apsw.Connection(str(new), vfs=location.vfs)
    except (apsw.CantOpenError, OSError) as error:
        raise DatabaseRefused(
            f"{location.path} cannot be created ({error}); does its folder exist, "
            "and may the server write there?"
        ) from error
    try:
        db.execute("PRAGMA auto_vacuum=INCREMENTAL")
        db.execute("PRAGMA synchronous=FULL")
        _apply(db, steps)
    except apsw.ReadOnlyError as error:
        raise DatabaseRefused(f"{location.path} cannot be written ({error})") from error
    finally:
        db.close()
    new.replace(path)
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Have the names in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _upgrade(location: Location, backup: str, steps: Sequence[Step]) -> None:
    db = schema.connect(location)
    try:
        # As private as what it is a copy of.
        Path(backup).touch(mode=Path(location.path).stat().st_mode & 0o777)
        schema.backup(db, backup)
        _sync_folder(Path(backup).parent)
        _apply(db, steps)
    finally:
        db.close()


def _apply(db: apsw.Connection, steps: Sequence[Step]) -> None:
    db.execute("BEGIN IMMEDIATE")
    for step in steps:
        db.execute(step.script)
    schema.stamp(db, steps[-1])
    db.execute("COMMIT")
