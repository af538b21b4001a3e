"""Opens databases: makes our tables, brings older ones up to date, leaves all others untouched."""

import asyncio
import re
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import asyncpg

from orchestrator.core.errors import DatabaseRefused
from orchestrator.stores.postgres import faults
from orchestrator.stores.postgres.location import locate, shown
from orchestrator.stores.postgres.pool import Connection, connect
from orchestrator.stores.steps import Plan, Schema, Step, lacking, not_now, steps_of
from orchestrator.telemetry import get_logger

log = get_logger(__name__)

SERVER_NEEDED: Final = 15
VERSION_TABLE: Final = "orchestrator_schema"
# "orch", then which lock of ours it is.
_LOCK: Final = 0x6F726368 << 8
_MADE: Final = re.compile(r"^CREATE (?:TABLE|VIEW) (\w+)", re.MULTILINE)
_TAKEN: Final = """
SELECT c.relname FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE n.nspname = current_schema() AND c.relname = ANY($1::text[]) ORDER BY 1
"""
_VERSIONS: Final = f"""
CREATE TABLE IF NOT EXISTS {VERSION_TABLE}
    (version BIGINT PRIMARY KEY, applied_at TIMESTAMPTZ NOT NULL);
ALTER TABLE {VERSION_TABLE} ADD COLUMN IF NOT EXISTS serves BIGINT
"""
# Databases of the first releases do not say whom they serve, which is nobody but their own.
_FOUND: Final = f"""
SELECT version, (to_jsonb(s) ->> 'serves')::bigint FROM {VERSION_TABLE} AS s
ORDER BY version DESC LIMIT 1
"""
_APPLIED: Final = (
    f"INSERT INTO {VERSION_TABLE} (version, applied_at, serves) VALUES ($1, now(), $2)"
)
_NOT_OURS: Final = (
    asyncpg.UndefinedColumnError, asyncpg.WrongObjectTypeError, asyncpg.DataError,
)  # fmt: skip
# A step that waits for a table keeps others waiting behind it: better let them pass and try again.
_YIELDING: Final = "SET LOCAL lock_timeout = '1s'"
_TRIES: Final = 60
_PAUSE_S: Final = 1.0
_LONG_S: Final = 86_400.0
"""A step may take as long as it takes."""


def migrations() -> list[Step]:
    """Return the steps of the schema, in order."""
    return steps_of("orchestrator.stores.postgres")


async def plan(url: str) -> Plan:
    """Return what an upgrade would do; raises DatabaseRefused for what is not ours to open."""
    async with _connected(locate(url)) as db:
        return _planned(url, await _schema(db, url))


async def prepare(url: str, *, migrate: bool = True) -> Plan:
    """Make the database ours and up to date, or raise DatabaseRefused and leave it as it is.

    Returns what was done. Without `migrate` a database that lacks steps is refused.
    """
    async with _connected(url) as db:
        left = _TRIES
        while True:
            try:
                async with db.transaction():  # replicas that start together wait for each other
                    await db.execute("SELECT pg_advisory_xact_lock($1)", _LOCK, timeout=_LONG_S)
                    return await _bring(db, url, migrate=migrate)
            except (asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError):
                left -= 1
                if not left:
                    raise
            await asyncio.sleep(_PAUSE_S)


@asynccontextmanager
async def _connected(url: str) -> AsyncIterator[Connection]:
    """Hand out a connection to a server that can be used; what keeps us out is a refusal."""
    try:
        db = await connect(url, lock_timeout="60s", statement_timeout="0")
    except Exception as error:
        raise _refused(url, error) from error
    try:
        await _check_server(db, url)
        yield db
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


async def _bring(db: Connection, url: str, *, migrate: bool) -> Plan:
    """Apply, in the open transaction, what the database lacks."""
    planned = _planned(url, await _schema(db, url))
    if planned.schema > planned.known:
        log.warning("schema_is_newer", schema=planned.schema, known=planned.known)
    if not planned.steps:
        return planned
    if not migrate:
        raise not_now(planned)
    await db.execute(f"{_YIELDING}; {_VERSIONS}")
    for step in planned.steps:
        await db.execute(step.script, timeout=_LONG_S)
        await db.execute(_APPLIED, step.number, step.serves)
    log.info("schema_upgraded", was=planned.schema, now=planned.known)
    return planned


def _planned(url: str, found: Schema) -> Plan:
    steps = migrations()
    todo = lacking(shown(url), found, steps)
    beside = bool(found.number) and steps[-1].serves <= found.number
    return Plan(shown(url), found.number, steps[-1].number, todo, beside=beside)


async def _schema(db: Connection, url: str) -> Schema:
    """Return the database's schema, 0 where there is none of ours nor anything in its place."""
    made = [name for step in migrations() for name in _MADE.findall(step.script)]
    taken = [row[0] for row in await db.fetch(_TAKEN, [VERSION_TABLE, *made])]
    if VERSION_TABLE in taken:
        try:
            row = await db.fetchrow(_FOUND)
        except _NOT_OURS:
            taken = [VERSION_TABLE]
        else:
            return Schema(row[0], row[1] or row[0]) if row else Schema(0, 0)
    if taken:
        raise DatabaseRefused(
            f"{shown(url)} has tables of another program ({', '.join(taken)}) and was left "
            "untouched; give the server a database of its own, or a schema (?search_path=NAME)"
        )
    return Schema(0, 0)


def _refused(url: str, error: Exception) -> DatabaseRefused:
    """Return the sentence for what kept us out; it never holds what the address is secret about."""
    told: Any = type(error).__name__ if not isinstance(error, asyncpg.PostgresError) else error
    if isinstance(error, asyncpg.InvalidAuthorizationSpecificationError):
        why = f"{shown(url)} lets us not in ({told}); check user and password in DATABASE_URL"
    elif isinstance(error, asyncpg.InvalidCatalogNameError):
        why = f"{shown(url)}: {told}; create it: `createdb NAME`"
    elif isinstance(error, asyncpg.InsufficientPrivilegeError):
        why = f"{shown(url)}: {told}; grant the user CREATE on the schema, or make him its owner"
    elif isinstance(error, asyncpg.LockNotAvailableError):
        why = (
            f"{shown(url)} cannot be upgraded: {told}; somebody uses a table for very long, as "
            "pg_dump does; wait for its end, and start again"
        )
    elif isinstance(error, ssl.SSLError):
        why = (
            f"{shown(url)} shows a certificate that is not trusted ({told}); check sslrootcert "
            "and the host's name in DATABASE_URL"
        )
    elif faults.is_lost(error):
        why = f"{shown(url)} cannot be reached ({told}); is the server running, and at that place?"
    else:
        why = f"{shown(url)} cannot be used: {told}"
    return DatabaseRefused(why)
