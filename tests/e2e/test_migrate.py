"""Upgrades as an operator makes them: look, upgrade, start; beside real servers and files."""

import secrets
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import apsw
import msgspec
import pytest

from orchestrator.stores.sqlite import schema
from orchestrator.stores.sqlite.lock import LockFile

from .. import postgres
from ..contract.tomorrow import tomorrow
from ..golden import Golden
from ..processes import Running, request, start_server

PROGRAM = (sys.executable, "-m", "orchestrator")
NEWEST = schema.migrations()[-1].number
Serve = Callable[..., Running]


class Operator:
    """Runs commands in a folder, on the database there or the one that is named."""

    def __init__(self, folder: Path, **env: str) -> None:
        self.folder = folder
        self.database = folder / "orchestrator.db"
        self._env = {"PATH": "", "HOME": str(folder), "HTTP_PORT": "0", "INGRESS_URL": "off", **env}

    def __call__(self, *words: str, code: int = 0, **env: str) -> str:
        """Return all that a command writes."""
        done = subprocess.run(
            [*PROGRAM, *words], cwd=self.folder, env=self._env | env, capture_output=True,
            text=True, timeout=60, check=False,
        )  # fmt: skip
        said = done.stdout + done.stderr
        assert done.returncode == code, said
        assert "Traceback" not in said
        return said

    def json(self, *words: str) -> Any:
        """Return what a command writes with --json."""
        return msgspec.json.decode(self(*words, "--json"))


@pytest.fixture
def operator(tmp_path: Path) -> Operator:
    """Hand out the commands beside a database of the first schema."""
    found = Operator(tmp_path)
    found.database.write_bytes(Golden("sqlite", 1).unpacked())
    return found


@pytest.fixture
def serve(operator: Operator) -> Iterator[Serve]:
    """Hand out a function that starts a server on the operator's file."""
    with ExitStack() as stack:

        def start(**env: str) -> Running:
            running = start_server(operator.folder, **env)
            stack.callback(running.kill)
            return running

        yield start


def test_an_upgrade_by_hand(operator: Operator, serve: Serve) -> None:
    before = operator.database.read_bytes()
    backup = f"{operator.database}.before-{NEWEST}"
    planned = operator("migrate", "plan")
    assert f"{operator.database}: schema 1, this version has {NEWEST}" in planned
    assert "  2  Who may do what: keys" in planned
    assert f"a copy is made first: {backup}" in planned
    assert "servers of the older version must be stopped first" in planned
    assert operator.database.read_bytes() == before
    assert not Path(backup).exists()
    done = operator("migrate", "up")
    assert f"the copy from before: {backup}" in done
    assert f"done: the database has schema {NEWEST}" in done
    assert Path(backup).exists()
    for word in ("plan", "up"):
        assert "nothing to do" in operator("migrate", word)
    server = serve(AUTH_MODE="off")
    assert len(request("GET", f"{server.url}/v1/runs?limit=100").json()["runs"]) > 10
    assert "nothing to do" in operator("migrate", "up"), "beside a server, too"
    assert server.stop() == 0


def test_the_doctor_upgrades_nothing(operator: Operator) -> None:
    before = operator.database.read_bytes()
    said = operator("doctor")
    assert f"has schema 1; this version has {NEWEST}, and a start brings it there" in said
    assert "✗ database" in operator("doctor", code=1, MIGRATE="never")
    assert operator.database.read_bytes() == before
    assert [path.name for path in operator.folder.iterdir()] == [operator.database.name]
    operator("migrate", "up")
    assert "takes a commit" in operator("doctor")


def test_programs_read_the_plan_as_json(operator: Operator) -> None:
    backup = f"{operator.database}.before-{NEWEST}"
    planned = operator.json("migrate", "plan")
    assert [step["number"] for step in planned.pop("steps")] == list(range(2, NEWEST + 1))
    assert planned == {
        "database": str(operator.database), "schema": 1, "known": NEWEST, "backup": backup,
        "beside": False,
    }  # fmt: skip
    assert operator.json("migrate", "up")["backup"] == backup
    assert operator.json("migrate", "up")["steps"] == []


def test_a_start_may_be_told_to_leave_the_schema_alone(operator: Operator, serve: Serve) -> None:
    before = operator.database.read_bytes()
    said = operator("serve", code=2, MIGRATE="never")
    assert f"has schema 1, this version needs {NEWEST}, and MIGRATE=never" in said
    assert "./orchestrator migrate up" in said
    assert operator.database.read_bytes() == before
    operator("migrate", "up", MIGRATE="never")
    assert serve(AUTH_MODE="off", MIGRATE="never").stop() == 0


def test_a_file_that_a_server_has_open(operator: Operator) -> None:
    before = operator.database.read_bytes()
    lock = LockFile.take(str(operator.database))
    assert "is in use by a server (process " in operator("migrate", "up", code=2)
    assert "schema 1" in operator("migrate", "plan")
    lock.release()
    assert operator.database.read_bytes() == before
    assert not Path(f"{operator.database}.before-{NEWEST}").exists()


def test_a_server_on_tomorrows_schema_says_so_once(operator: Operator, serve: Serve) -> None:
    operator("migrate", "up")
    later = tomorrow(schema.migrations())
    with closing(apsw.Connection(str(operator.database))) as db:
        db.execute(later.script)
        schema.stamp(db, later)
    said = operator("migrate", "plan")
    assert f"schema {NEWEST + 1}, this version has {NEWEST}" in said
    assert "nothing to do, the newer schema serves this version, too" in said
    server = serve(AUTH_MODE="off", MIGRATE="never")
    posted = {"role": "user", "content": "hello"}
    assert request("POST", f"{server.url}/v1/sessions/new/messages", posted).status < 300
    assert server.stop() == 0
    assert server.said().count('"schema_is_newer"') == 1
    assert "nothing to do" in operator("migrate", "up")


def test_databases_that_are_not_ours_are_left_alone(operator: Operator) -> None:
    operator.database.unlink()
    with closing(apsw.Connection(str(operator.database))) as db:
        db.execute("CREATE TABLE theirs (a)")
    for word in ("plan", "up"):
        assert "another program" in operator("migrate", word, code=2)
    assert {path.name for path in operator.folder.iterdir()} == {"orchestrator.db"}


@pytest.fixture
def shared(tmp_path: Path) -> Iterator[Operator]:
    """Hand out the commands of a new PostgreSQL database."""
    with ExitStack() as stack:
        url = stack.enter_context(postgres.address())
        yield Operator(tmp_path, DATABASE_URL=url, SECRET_KEY=secrets.token_hex(32))


def test_an_upgrade_of_postgresql(shared: Operator) -> None:
    first = shared.json("migrate", "plan")
    assert (first["schema"], first["backup"]) == (0, None)
    assert "has no schema yet" in shared("serve", code=2, MIGRATE="never")
    assert f"done: the database has schema {first['known']}" in shared("migrate", "up")
    assert "nothing to do" in shared("migrate", "up")
    assert shared.json("migrate", "plan")["steps"] == []
