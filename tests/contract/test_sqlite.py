"""What holds for SQLite alone: its schema, its indexes, whose file it takes and whose not."""

import re
import sqlite3
from collections.abc import AsyncIterator
from enum import StrEnum
from pathlib import Path
from typing import Any

import pytest

from orchestrator.core.errors import DatabaseRefused
from orchestrator.core.records import RECORDS, Message, Run, Timer
from orchestrator.core.states import OPEN, RunState
from orchestrator.stores.sqlite import claims, locate, open_store, reader, schema
from orchestrator.stores.sqlite.query import condition
from orchestrator.stores.sqlite.store import SQLiteStore
from orchestrator.stores.sqlite.tables import TABLES
from orchestrator.testing import records as r
from orchestrator.testing.fake_world import FakeWorld


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SQLiteStore]:
    opened = await open_store(f"file:{tmp_path}/o.db", world=FakeWorld())
    yield opened
    await opened.close()


@pytest.fixture
def db(store: SQLiteStore, tmp_path: Path) -> sqlite3.Connection:
    """Hand out the file as any other program would see it."""
    return sqlite3.connect(f"file:{tmp_path}/o.db?mode=ro", uri=True)


def test_the_lists_of_states_are_those_of_the_tables() -> None:
    script = "".join(text for _, text in schema.migrations())
    checks = re.findall(r"CHECK \(status IN \((.*?)\)\)", script, re.DOTALL)
    listed = [set(re.findall(r"'(\w+)'", found)) for found in checks]
    assert listed == [{str(state) for state in RunState}]
    holding = re.findall(r"WHERE status IN \((.*?)\)", script)
    assert [set(re.findall(r"'(\w+)'", found)) for found in holding] == [{"CREATED", "RUNNING"}] * 2
    assert issubclass(RunState, StrEnum)


def test_every_record_has_its_table_and_every_field_its_column(db: sqlite3.Connection) -> None:
    for kind in RECORDS:
        columns = [row[1] for row in db.execute(f"PRAGMA table_info({kind.TABLE})")]
        assert sorted(columns) == sorted(kind.__struct_fields__)


async def test_the_view_shows_events_under_the_names_of_the_wire(
    store: SQLiteStore, db: sqlite3.Connection
) -> None:
    made = r.run(1)
    await store.commit(r.accept(made), r.append(made, *r.deltas(300)))
    rows = db.execute("SELECT event_id, run_id, seq, ts, type, payload FROM events ORDER BY seq")
    found = rows.fetchall()
    assert [row[2] for row in found] == list(range(1, 302))
    assert found[5][1:] == (made.run_id, 6, r.AT, "agent_stream_delta", '{"text":"word 4"}')


HOT: dict[str, tuple[str, tuple[Any, ...]]] = {
    "claim": (claims._READY.format(narrowed="TRUE"), (0, 10)),
    "claim by id": (claims._READY.format(narrowed="r.run_id IN (?)"), (0, "x", 10)),
    "read": (reader._SEGMENTS, (0, 1)),
    "where to begin": (reader._FIRST, (0, 1)),
}


def plan(db: sqlite3.Connection, text: str, bound: tuple[Any, ...]) -> str:
    return "\n".join(row[3] for row in db.execute(f"EXPLAIN QUERY PLAN {text}", bound))


@pytest.mark.parametrize("name", HOT)
def test_hot_statements_use_an_index(db: sqlite3.Connection, name: str) -> None:
    found = plan(db, *HOT[name])
    assert "SCAN runs" not in found
    assert not re.search(r"SCAN (?!leases|r USING INDEX runs_ready)\w", found), found


FINDS: dict[str, tuple[type[Any], list[Any], str]] = {
    "due timers": (Timer, [("due_at", "<=", 1)], "due_at"),
    "children": (Run, [("parent_run_id", "=", "x"), ("status", "in", sorted(OPEN))], ""),
    "runs of a session": (
        Run, [("tenant", "=", "d"), ("session_id", "=", "s"), ("key", ">", 0)], "key",
    ),
    "a transcript": (
        Message, [("tenant", "=", "d"), ("session_id", "=", "s"), ("pos", "<", 9)], "-pos",
    ),
    "runs of a tenant": (Run, [("tenant", "=", "d"), ("key", "<", 9)], "-key"),
}  # fmt: skip


@pytest.mark.parametrize("name", FINDS)
def test_lists_use_an_index_and_need_no_sorting(db: sqlite3.Connection, name: str) -> None:
    kind, where, order = FINDS[name]
    text, bound = condition(TABLES[kind], where)
    ordered = TABLES[kind].ordering(order)
    found = plan(db, f"SELECT * FROM {kind.TABLE}{text}{ordered} LIMIT 9", bound)  # noqa: S608  # ours
    assert "SCAN" not in found
    assert "TEMP B-TREE" not in found


def untouched(path: Path) -> tuple[bytes, set[str]]:
    """Return a file's bytes and who its neighbours are."""
    return path.read_bytes(), {p.name for p in path.parent.iterdir()} - {f"{path.name}.lock"}


async def refused(url: str) -> str:
    """Return the sentence with which a database is refused."""
    with pytest.raises(DatabaseRefused) as caught:
        await open_store(url, world=FakeWorld())
    return caught.value.message


def foreign(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE theirs (a)")
    connection.close()


def other_program(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA application_id = 77")
    connection.close()


def wal_of_another_program(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("CREATE TABLE theirs (a)")
    connection.commit()
    connection.close()


def newer(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute(f"PRAGMA application_id = {schema.APPLICATION_ID}")
        connection.execute("PRAGMA user_version = 999")
        connection.execute("CREATE TABLE runs (a)")
    connection.close()


def garbage(path: Path) -> None:
    path.write_bytes(b"this was never a database, whatever its name says. " * 100)


def torn(path: Path) -> None:
    foreign(path)
    data = bytearray(path.read_bytes())
    data[100:200] = b"\xff" * 100
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (foreign, "another program"),
        (other_program, "another program"),
        (wal_of_another_program, "another program"),
        (newer, "newer version"),
        (garbage, "no database"),
        (torn, "damaged"),
    ],
)
async def test_files_that_are_not_ours_are_left_untouched(
    tmp_path: Path, make: Any, words: str
) -> None:
    path = tmp_path / "orchestrator.db"
    make(path)
    before = untouched(path)
    assert words in await refused(f"file:{path}")
    assert untouched(path) == before


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("file::memory:", "in memory"),
        ("file:x.db?mode=memory", "in memory"),
        ("sqlite://x.db", "unknown form"),
        ("mysql://u:secret@h/db", "unknown form"),
        ("postgres://u:secret@h/db", "unknown form"),
        ("file:x.db?mode=rwx", "mode must be"),
        ("file:", "in memory"),
        ("", "unknown form"),
    ],
)
def test_urls_that_mean_no_file_are_refused(url: str, words: str) -> None:
    with pytest.raises(DatabaseRefused, match=words) as caught:
        locate(url)
    assert "secret" not in caught.value.message


async def test_a_file_that_was_being_copied_into_is_whole_with_its_log(tmp_path: Path) -> None:
    made = r.run(1)
    store = await open_store(f"file:{tmp_path}/o.db", world=FakeWorld())
    await store.commit(r.accept(made), r.append(made, *r.deltas(3000)))
    for end in ("", "-wal"):
        (tmp_path / f"left.db{end}").write_bytes((tmp_path / f"o.db{end}").read_bytes())
    await store.close()
    _copy_page_one(tmp_path / "left.db")
    left = await open_store(f"file:{tmp_path}/left.db", world=FakeWorld())
    assert len(await left.read(made.run_id, 0, 5000)) > 2000
    await left.close()


def _copy_page_one(path: Path) -> None:
    """Do what a checkpoint does first, and no more: the file's header counts pages it lacks."""
    log = path.with_name(path.name + "-wal").read_bytes()
    size = int.from_bytes(log[8:12], "big")
    frames = range(32, len(log), size + 24)
    [*_, last] = [at for at in frames if log[at : at + 4] == (1).to_bytes(4, "big")]
    page = log[last + 24 : last + 24 + size]
    assert int.from_bytes(page[28:32], "big") * size > path.stat().st_size
    with path.open("r+b") as file:
        file.write(page)


async def test_folders_and_missing_files_are_named(tmp_path: Path) -> None:
    assert str(tmp_path) in await refused(f"file:{tmp_path}")
    assert "cannot" in await refused(f"file:{tmp_path}/nowhere/o.db")
    assert "does not exist" in await refused(f"file:{tmp_path}/absent.db?mode=rw")
    assert not (tmp_path / "absent.db").exists()


async def test_a_second_opener_is_told_who_has_it(store: SQLiteStore, tmp_path: Path) -> None:
    message = await refused(f"file:{tmp_path}/o.db")
    assert re.search(r"in use by another server \(process \d+\)", message)
    other = await open_store(f"file:{tmp_path}/o.db?mode=ro", world=FakeWorld())
    await other.close()


async def test_closing_leaves_one_whole_file(tmp_path: Path) -> None:
    made = r.run(1)
    for number in range(3):
        opened = await open_store(f"sqlite:///{tmp_path}/o.db", world=FakeWorld())
        await opened.commit(r.accept(made) if not number else r.append(made, *r.deltas(1)))
        await opened.close()
    assert {p.name for p in tmp_path.iterdir()} == {"o.db", "o.db.lock"}
    with sqlite3.connect(tmp_path / "o.db") as connection:
        assert connection.execute("SELECT max(seq) FROM events").fetchone() == (3,)
    connection.close()
