"""Opens databases: makes our tables, brings older ones up to date, leaves all others untouched."""

import re
from importlib.resources import files
from typing import Any, Final

import asyncpg

from orchestrator.core.errors import DatabaseRefused
from orchestrator.stores.postgres import faults
from orchestrator.stores.postgres.location import shown
from orchestrator.stores.postgres.pool import Connection, connect

SERVER_NEEDED: Final = 15
VERSION_TABLE: Final = "orchestrator_schema"
# "orch", then which lock of ours it is.
_LOCK: Final = 0x6F726368 << 8
_MADE: Final = re.compile(r"^CREATE (?:TABLE|VIEW) (\w+)", re.MULTILINE)
_TAKEN: Final = """
SELECT c.relname FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE n.nspname = current_schema() AND c.relname = ANY($1::text[]) ORDER BY 1
"""
_CLEAN: Final = "DELETE FROM commits WHERE at < $1"


def migrations() -> list[tuple[int, str]]:
    """Return the schema steps, (version, SQL), in order."""
    folder = files("orchestrator.stores.postgres") / "migrations"
    steps = [(int(step.name[:3]), step.read_text()) for step in folder.iterdir()
             if step.name.endswith(".sql")]  # fmt: skip
    return sorted(steps)


async def prepare(url: str) -> None:
    """Make the database ours and up to date, or raise DatabaseRefused and leave it as it is."""
    try:
        db = await connect(url, lock_timeout="60s", statement_timeout="0")
    except Exception as error:
        raise _refused(url, error) from error
    try:
        await _check_server(db, url)
        async with db.transaction():  # replicas that start together wait for each other
            await db.execute("SELECT pg_advisory_xact_lock($1)", _LOCK)
            await _bring(db, url)
    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
        raise _refused(url, error) from error
    finally:
        await db.close()


async def _check_server(db: Connection, url: str) -> None:
    major = db.get_server_version().major
    if major < SERVER_NEEDED:
        raise DatabaseRefused(
            f"the PostgreSQL of {shown(url)} is version {major}; "
            f"version {SERVER_NEEDED} or newer is needed"
        )
    encoding = await db.fetchval("SHOW server_encoding")
    if encoding != "UTF8":
        raise DatabaseRefused(
            f"{shown(url)} keeps its texts as {encoding}; make a database WITH ENCODING 'UTF8'"
        )
    if await db.fetchval("SELECT pg_is_in_recovery()"):
        raise DatabaseRefused(
            f"{shown(url)} is a standby, which takes no writes; name the primary, or both hosts "
            "with target_session_attrs=primary"
        )
    if await db.fetchval("SELECT current_schema()") is None:
        raise DatabaseRefused(
            f"{shown(url)} has no schema to make tables in; create one, or set search_path to it"
        )


async def _bring(db: Connection, url: str) -> None:
    steps = migrations()
    version = await _version(db, url, steps)
    if version > steps[-1][0]:
        raise DatabaseRefused(
            f"{shown(url)} was written by a newer version (schema {version}, this one knows "
            f"{steps[-1][0]}); start that version, or restore the backup made before the upgrade"
        )
    for number, script in steps:
        if number > version:
            await db.execute(script)
            await db.execute(f"INSERT INTO {VERSION_TABLE} VALUES ($1, now())", number)


async def _version(db: Connection, url: str, steps: list[tuple[int, str]]) -> int:
    """Return the schema's version, 0 where there is none of ours nor anything in its place."""
    made = [name for _, script in steps for name in _MADE.findall(script)]
    taken = [row[0] for row in await db.fetch(_TAKEN, [VERSION_TABLE, *made])]
    if VERSION_TABLE in taken:
        try:
            return int(await db.fetchval(f"SELECT max(version) FROM {VERSION_TABLE}") or 0)
        except (asyncpg.UndefinedColumnError, asyncpg.WrongObjectTypeError, ValueError):
            taken = [VERSION_TABLE]
    if taken:
        raise DatabaseRefused(
            f"{shown(url)} has tables of another program ({', '.join(taken)}) and was left "
            "untouched; give the server a database of its own, or a schema (?search_path=NAME)"
        )
    await db.execute(
        f"CREATE TABLE {VERSION_TABLE} "
        "(version BIGINT PRIMARY KEY, applied_at TIMESTAMPTZ NOT NULL)"
    )
    return 0


def _refused(url: str, error: Exception) -> DatabaseRefused:
    """Return the sentence for what kept us out; it never holds what the address is secret about."""
    told: Any = type(error).__name__ if not isinstance(error, asyncpg.PostgresError) else error
    if isinstance(error, asyncpg.InvalidAuthorizationSpecificationError):
        why = f"{shown(url)} lets us not in ({told}); check user and password in DATABASE_URL"
    elif isinstance(error, asyncpg.InvalidCatalogNameError):
        why = f"{shown(url)}: {told}; create it: `createdb NAME`"
    elif isinstance(error, asyncpg.InsufficientPrivilegeError):
        why = f"{shown(url)}: {told}; grant the user CREATE on the schema, or make him its owner"
    elif faults.is_lost(error):
        why = f"{shown(url)} cannot be reached ({told}); is the server running, and at that place?"
    else:
        why = f"{shown(url)} cannot be used: {told}"
    return DatabaseRefused(why)
