"""Writes the golden databases of the present schemas: python -m tests.golden

Once for each schema that is released; what is there already is never written again.
"""

import asyncio
import subprocess
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import apsw
from msgspec.structs import replace

from orchestrator.ports import Store
from orchestrator.stores.postgres import open_store as open_postgres
from orchestrator.stores.postgres import schema as postgres_schema
from orchestrator.stores.sqlite import open_store
from orchestrator.stores.sqlite import schema as sqlite_schema
from orchestrator.world import RealWorld

from .. import postgres
from ..processes import demo_agent_process, start_server
from . import Golden, Outcome, outcome_of
from .story import Story, pause

_NO_HOST: Final = b'{"boot":"golden","clean":false}'
# Settings of a session, comments, and what only psql understands.
_LEFT_OUT: Final = ("SET ", "--", "\\", "SELECT pg_catalog.set_config('search_path'")


def main() -> None:
    """Write those that are missing."""
    sqlite, pg = (one.migrations()[-1].number for one in (sqlite_schema, postgres_schema))
    writers: dict[Golden, Callable[[Golden, Path], None]] = {
        Golden("sqlite", sqlite): _sqlite,
        Golden("sqlite", 1): _first_sqlite,
        Golden("postgres", pg): _postgres,
    }
    for golden, write in writers.items():
        if golden.packed.exists():
            print(f"{golden.packed.name} is there already, and stays as it is")
            continue
        with TemporaryDirectory() as folder:
            write(golden, Path(folder))
        print(f"{golden.packed.name}: {golden.packed.stat().st_size:,} bytes")


def _told(folder: Path, **store: str) -> list[str]:
    """Have the story told to servers in a folder; return the runs that are to be paused."""
    with ExitStack() as stack:

        def start(**env: str):
            server = start_server(folder, **env)
            stack.callback(server.kill)
            return server

        story = Story(start, stack.enter_context(demo_agent_process(folder)), store)
        story.tell()
        return story.to_pause


async def _finished(store: Store, run_ids: list[str]) -> Outcome:
    try:
        await pause(store, run_ids)
        return await outcome_of(store)
    finally:
        await store.close()


def _sqlite(golden: Golden, folder: Path) -> None:
    path, to_pause = folder / "orchestrator.db", _told(folder)

    async def finished() -> Outcome:
        return await _finished(await open_store(f"file:{path}", world=RealWorld()), to_pause)

    outcome = asyncio.run(finished())
    with closing(apsw.Connection(str(path))) as db:
        # As a power cut would have left it, on whichever host it is opened.
        db.execute("UPDATE blobs SET data = ? WHERE name = 'host'", (_NO_HOST,))
        db.execute("VACUUM")
    golden.keep(path.read_bytes(), outcome)


def _first_sqlite(golden: Golden, folder: Path) -> None:
    """Give the rows of schema 2 to schema 1, whose programs were never released."""
    second, path = Golden("sqlite", 2), folder / "first.db"
    (folder / "second.db").write_bytes(second.unpacked())
    with closing(apsw.Connection(str(path))) as db:
        [first, *_] = sqlite_schema.migrations()
        db.execute("PRAGMA auto_vacuum=INCREMENTAL")
        db.execute(first.script)
        sqlite_schema.stamp(db, first)
        db.execute("ATTACH ? AS second", (str(folder / "second.db"),))
        tables = "SELECT name FROM main.sqlite_master WHERE type = 'table' AND name NOT LIKE 'sql%'"
        for (table,) in db.execute(tables).fetchall():
            columns = ", ".join(row[1] for row in db.execute(f"PRAGMA main.table_info({table})"))
            copied = f"SELECT {columns} FROM second.{table}"  # noqa: S608  # of our own schema
            db.execute(f"INSERT INTO main.{table} ({columns}) {copied}")
        db.execute("DETACH second")
        db.execute("PRAGMA journal_mode=WAL")
    golden.keep(path.read_bytes(), replace(second.expected, audit=0, keys=0))


def _postgres(golden: Golden, folder: Path) -> None:
    with postgres.running(fsync=False) as server:
        to_pause = _told(folder, DATABASE_URL=server.url())

        async def finished() -> Outcome:
            return await _finished(await open_postgres(server.url(), world=RealWorld()), to_pause)

        outcome = asyncio.run(finished())
        dump = subprocess.run(
            [server.program("pg_dump"), "--inserts", "--rows-per-insert=100", "--no-owner",
             "--no-privileges", server.url()],
            check=True, capture_output=True, text=True,
        ).stdout  # fmt: skip
    kept = [line for line in dump.split("\n") if line and not line.startswith(_LEFT_OUT)]
    golden.keep("\n".join(kept).encode(), outcome)


if __name__ == "__main__":
    main()
