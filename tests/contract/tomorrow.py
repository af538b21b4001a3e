"""Databases of both stores, and what a later version may do to them."""

import re
import subprocess
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, closing, contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, TypeAlias

import apsw
import pytest

from orchestrator.ports import Store
from orchestrator.stores import postgres as pg
from orchestrator.stores import sqlite
from orchestrator.stores.postgres import schema as postgres_schema
from orchestrator.stores.postgres.clock import WorldClock
from orchestrator.stores.sqlite import schema as sqlite_schema
from orchestrator.stores.steps import Plan, Step
from orchestrator.testing.fake_world import FakeWorld

from .. import postgres

_TABLE = re.compile(r"^CREATE TABLE (\w+)", re.MULTILINE)


def tables(steps: Sequence[Step]) -> list[str]:
    """Return every table that steps make."""
    return [name for step in steps for name in _TABLE.findall(step.script)]


def tomorrow(steps: Sequence[Step]) -> Step:
    """Return a step after the last one that adds to every table and takes nothing away."""
    last = steps[-1].number
    added = "".join(
        f"ALTER TABLE {table} ADD COLUMN later_note TEXT;\n"
        f"ALTER TABLE {table} ADD COLUMN later_count INTEGER NOT NULL DEFAULT 7;\n"
        for table in tables(steps)
    )
    return Step(
        last + 1,
        f"-- What tomorrow adds.\n-- serves: {last}\n{added}"
        "CREATE TABLE laters (name TEXT PRIMARY KEY, run_id TEXT NOT NULL);\n"
        "CREATE INDEX runs_by_note ON runs (later_note);\n",
    )


@contextmanager
def knowing(schema: ModuleType, steps: Sequence[Step]) -> Iterator[None]:
    """Be a program that has these steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(schema, "migrations", lambda: list(steps))
        yield


class File:
    """A file of SQLite."""

    schema = sqlite_schema

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "o.db"
        self.url = f"file:{self.path}"

    async def open(self, world: FakeWorld | None = None, **how: Any) -> Store:
        return await sqlite.open_store(self.url, world=world or FakeWorld(), **how)

    async def ask(self, statement: str) -> list[Any]:
        with closing(apsw.Connection(str(self.path))) as db:
            return list(db.execute(statement))

    async def up(self) -> Plan:
        return sqlite.up(self.url)

    async def plan(self) -> Plan:
        return sqlite.plan(self.url)

    @asynccontextmanager
    async def copy(self, store: Store, world: FakeWorld) -> AsyncIterator[Store]:
        await store.backup(str(self.folder / "copy.db"))
        other = await sqlite.open_store(f"file:{self.folder}/copy.db", world=world)
        try:
            yield other
        finally:
            await other.close()


class Base:
    """A database of PostgreSQL."""

    schema = postgres_schema

    def __init__(self, url: str, server: str, folder: Path) -> None:
        self.url = url
        self.server = server
        self.folder = folder

    async def open(self, world: FakeWorld | None = None, **how: Any) -> Store:
        given = world or FakeWorld()
        return await pg.open_store(self.url, world=given, clock=WorldClock(given), **how)

    async def ask(self, statement: str) -> list[Any]:
        return await postgres.ask(self.url, statement)

    async def up(self) -> Plan:
        return await pg.prepare(self.url)

    async def plan(self) -> Plan:
        return await pg.plan(self.url)

    @asynccontextmanager
    async def copy(self, store: Store, world: FakeWorld) -> AsyncIterator[Store]:
        programs = postgres.binaries()
        async with postgres.database(self.server) as url:
            dumped = str(self.folder / "copy.dump")
            for program in (("pg_dump", "--format=custom", f"--file={dumped}", self.url),
                            ("pg_restore", f"--dbname={url}", dumped)):  # fmt: skip
                subprocess.run([programs / program[0], *program[1:]], check=True)
            other = await Base(url, self.server, self.folder).open(world)
            try:
                yield other
            finally:
                await other.close()


Place: TypeAlias = File | Base
