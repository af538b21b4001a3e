"""What a newcomer meets on PostgreSQL: what is refused says what, why and what to do next.

No refusal says a password, and none changes a database.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from secrets import token_hex
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec
import pytest

from .. import postgres
from ..processes import free_port
from ..stores import Kept, new_database

PROGRAM: Final = (sys.executable, "-m", "orchestrator")
COMMANDS: Final = (
    ("serve",), ("demo",), ("keys", "create", "--role", "admin", "a"), ("keys", "ls"),
    ("audit", "ls"), ("audit", "verify"), ("secrets", "rotate"),
)  # fmt: skip
"""What opens the database by itself."""
TABLES: Final = "SELECT tablename FROM pg_tables WHERE schemaname = current_schema()"
Ask = Callable[[str], list[Any]]


@pytest.fixture
def url(postgres_server: str) -> Iterator[str]:
    """Hand out the address of a new, empty database."""
    with new_database(postgres_server) as found:
        yield found


@pytest.fixture
def ask(url: str) -> Ask:
    """Hand out what runs a statement in the database."""
    return lambda statement: Kept("postgres", {"DATABASE_URL": url}).ask(Path(), statement)


def run(folder: Path, *words: str, code: int, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a command; it ends with `code`, without a traceback and without a word of a secret."""
    around = {"PATH": os.defpath, "HOME": str(folder), "INGRESS_URL": "off", "SECRET_KEY": "k" * 40}
    around |= {"HTTP_PORT": str(free_port())} | env
    done = subprocess.run(
        [*PROGRAM, *words], cwd=folder, env=around, capture_output=True, text=True, timeout=60,
        check=False,
    )  # fmt: skip
    assert done.returncode == code, (words, done.stdout, done.stderr)
    said = done.stdout + done.stderr
    assert "Traceback" not in said
    secrets = (around["SECRET_KEY"], urlsplit(around.get("DATABASE_URL", "")).password)
    assert not any(secret in said for secret in secrets if secret)
    return done


def refused(folder: Path, *words: str, **env: str) -> str:
    """Run a command that is refused before anything has begun; return its sentence."""
    done = run(folder, *words, code=2, **env)
    assert done.stdout == ""
    assert done.stderr.startswith("orchestrator: ")
    assert list(folder.iterdir()) == []
    return done.stderr


def with_user(url: str, user: str, password: str) -> str:
    """Return an address with another user and a password."""
    place = urlsplit(url).netloc.rpartition("@")[2]
    return url.replace(f"//{urlsplit(url).netloc}/", f"//{user}:{password}@{place}/")


@pytest.mark.parametrize("words", [*COMMANDS, ("backup", "copy.db")], ids=" ".join)
def test_without_a_secret_key_it_is_told_how_to_make_one(
    tmp_path: Path, url: str, words: tuple[str, ...], ask: Ask
) -> None:
    said = refused(tmp_path, *words, DATABASE_URL=url, SECRET_KEY="")
    assert "SECRET_KEY or SECRET_KEY_FILE must be set with a PostgreSQL database" in said
    assert "openssl rand -hex 32" in said
    assert ask(TABLES) == []


def test_a_secret_key_that_is_too_short(tmp_path: Path, url: str) -> None:
    said = refused(tmp_path, DATABASE_URL=url, SECRET_KEY=token_hex(15), LOG_LEVEL="error")
    assert "SECRET_KEY must be a comma list of keys of at least 32 characters" in said
    assert "openssl rand -hex 32" in said


@pytest.fixture
def locked(url: str, ask: Ask) -> Iterator[str]:
    """Hand out the address of a database for a user with another password."""
    user = postgres.ASKED
    with suppress(Exception):  # a server that was given may have him since the last time
        ask(f"CREATE ROLE {user} LOGIN")
    ask(f"ALTER ROLE {user} PASSWORD '{token_hex(8)}'")
    yield with_user(url, user, token_hex(8))
    ask(f"DROP ROLE {user}")


def test_a_wrong_password(tmp_path: Path, locked: str) -> None:
    said = refused(tmp_path, DATABASE_URL=locked)
    assert "lets us not in (password authentication failed for user" in said
    assert "check user and password in DATABASE_URL" in said


def test_a_user_that_may_make_no_tables(tmp_path: Path, url: str, ask: Ask) -> None:
    user, password = f"user_{token_hex(8)}", token_hex(8)
    ask(f"CREATE ROLE {user} LOGIN PASSWORD '{password}'")
    try:
        said = refused(tmp_path, DATABASE_URL=with_user(url, user, password))
        assert "permission denied for schema public" in said
        assert "grant the user CREATE on the schema, or make him its owner" in said
    finally:
        ask(f"DROP ROLE {user}")


def test_a_database_that_does_not_exist(tmp_path: Path, url: str) -> None:
    said = refused(tmp_path, DATABASE_URL=postgres.named(url, "absent"))
    assert 'database "absent" does not exist; create it: `createdb' in said


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_a_server_that_is_away(tmp_path: Path, words: tuple[str, ...]) -> None:
    place = f"127.0.0.1:{free_port()}/runs"
    url = f"postgresql://somebody:{token_hex(8)}@{place}"
    said = refused(tmp_path, *words, DATABASE_URL=url)
    assert f"'{place}' cannot be reached" in said
    assert "is the server running, and at that place?" in said


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("postgresql://", "names no database"),
        ("postgresql://u:{}@h", "names no database"),
        ("postgresql://u:{}@h:port/d", "cannot be read"),
        ("postgresql://u:{}@/d?host=/nowhere", "'/nowhere/d' cannot be reached"),
        ("postgres+asyncpg://u:{}@h/d", "DATABASE_URL"),
    ],
)
def test_an_address_that_is_none(tmp_path: Path, url: str, why: str) -> None:
    password = token_hex(8)
    said = refused(tmp_path, DATABASE_URL=url.format(password))
    assert why in said
    assert password not in said


def test_a_database_of_another_program_is_left_alone(tmp_path: Path, url: str, ask: Ask) -> None:
    ask("CREATE TABLE runs (mine TEXT)")
    said = refused(tmp_path, DATABASE_URL=url)
    assert "has tables of another program (runs) and was left untouched" in said
    assert "a database of its own, or a schema" in said
    assert [row[0] for row in ask(TABLES)] == ["runs"]


def test_a_backup_is_the_databases_own(tmp_path: Path, url: str, ask: Ask) -> None:
    said = refused(tmp_path, "backup", "copy.db", DATABASE_URL=url)
    assert "a PostgreSQL database is copied by its own program" in said
    assert "pg_dump --format=custom --file=PATH DATABASE_URL" in said
    assert ask(TABLES) == []


def findings(done: subprocess.CompletedProcess[str]) -> dict[str, dict[str, Any]]:
    """Return what the doctor found, by name."""
    lines = (msgspec.json.decode(line) for line in done.stdout.splitlines())
    return {line["name"]: line for line in lines}


def test_the_doctor_names_each_fault(tmp_path: Path, url: str, locked: str) -> None:
    faults = [
        ("settings", {"SECRET_KEY": ""}, "SECRET_KEY or SECRET_KEY_FILE must be set"),
        ("database", {"DATABASE_URL": postgres.named(url, "absent")}, "does not exist"),
        ("database", {"DATABASE_URL": locked}, "check user and password"),
        ("database", {"DATABASE_URL": "postgresql://u@127.0.0.1:9/d"}, "cannot be reached"),
    ]  # fmt: skip
    for name, env, why in faults:
        done = run(tmp_path, "doctor", "--json", code=1, **{"DATABASE_URL": url, **env})
        found = findings(done)
        assert [one for one in found if found[one]["good"] is False] == [name], env
        assert why in found[name]["said"]
        assert found[name]["fix"]


def test_the_doctor_finds_a_good_database_good(tmp_path: Path, url: str, ask: Ask) -> None:
    found = findings(run(tmp_path, "doctor", "--json", code=0, DATABASE_URL=url))
    assert "has no schema yet" in found["database"]["said"]
    assert ask(TABLES) == []
    run(tmp_path, "migrate", "up", code=0, DATABASE_URL=url)
    found = findings(run(tmp_path, "doctor", "--json", code=0, DATABASE_URL=url))
    assert found["database"]["said"] == "PostgreSQL takes a commit"
    assert not {"disk", "fsync"} & set(found), "which are those of another machine"
