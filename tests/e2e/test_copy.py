"""A team moves from one process on a file to servers on PostgreSQL, with the command for it."""

import asyncio
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from secrets import token_hex
from typing import Any

import msgspec
import pytest

from .. import postgres
from ..processes import Running, start_server
from .callers import Curl, Talker, again, ended, invoke, talking

PASSWORD = token_hex(8)


@pytest.fixture
async def target() -> AsyncIterator[str]:
    """Hand out the address of a new database, with a password in it that nobody may show."""
    with postgres.address(fsync=True) as server:
        async with postgres.database(server) as address:
            yield address.replace("tester@", f"tester:{PASSWORD}@")


def copy(folder: Path, target: str, *words: str, code: int = 0) -> tuple[str, str]:
    """Run the command with the address on its standard input; return what it wrote."""
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator", "copy", "-", *words], cwd=folder,
        env={"PATH": "", "HOME": str(folder)}, input=f"{target}\n", capture_output=True, text=True,
        timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == code, (done.stdout, done.stderr)
    assert PASSWORD not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout, done.stderr


@dataclass
class Team:
    """Who calls one server after the other, with one key and one agent."""

    curl: Curl
    talker: Talker
    stack: ExitStack
    key: str = ""
    runs: list[str] = field(default_factory=list)
    """Those that have ended on the file; then one that was left in the middle."""

    def serve(self, folder: Path, **env: str) -> Running:
        """Start a server and call that from now on."""
        folder.mkdir(exist_ok=True)
        server = start_server(folder, EGRESS_ALLOW="loopback", **env)
        self.stack.callback(server.stop)
        self.curl.url = server.url
        return server

    async def ends(self, run: str) -> None:
        """Let the agent go on and see a run to its good end."""
        self.talker.go.set()
        assert (await ended(self.curl, self.key, run))["status"] == "DONE"

    async def reads(self) -> dict[str, Any]:
        """Return the two runs that have ended, as every way of reading shows them."""
        found: dict[str, Any] = {}
        for run in self.runs[:2]:
            for what in ("", "/events?limit=1000", "/events?limit=2&after_seq=1"):
                path = f"/v1/runs/{run}{what}"
                found[path] = await self.curl(path, self.key)
                assert found[path][0] == 200, found[path]
            found[run] = await self._stream(run)
            assert "\nid: " in found[run]
            assert "run_done" in found[run]
        for path in ("/v1/sessions/s/messages", "/v1/audit"):
            code, said = await self.curl(path, self.key)
            assert code == 200, said
            found[path] = next(value for value in said.values() if isinstance(value, list))[:4]
        return found

    async def _stream(self, run: str) -> str:
        """Return the stream of a run as it is on the wire."""
        url = f"{self.curl.url}/v1/runs/{run}/events/stream"
        words = ["curl", "-sN", "-H", f"Authorization: Bearer {self.key}", url]
        done = await asyncio.to_thread(subprocess.run, words, capture_output=True, check=True)
        return done.stdout.decode()


@pytest.fixture
async def team(tmp_path: Path, program: Callable[[str], Path]) -> AsyncIterator[Team]:
    """Hand out a team; its servers stop at the end."""
    program("curl")
    with ExitStack() as stack:
        yield Team(Curl(tmp_path, stack), Talker(), stack)


async def test_a_team_moves_and_nobody_can_tell(team: Team, tmp_path: Path, target: str) -> None:
    old, token = tmp_path / "old", token_hex(16)
    async with talking(team.talker) as agent:
        server = team.serve(old, DRAIN_TIMEOUT_MS="100")
        await live_on_a_file(team, agent, token)
        before = await team.reads()
        team.runs.append(await again(team.curl, team.key))
        await team.talker.called(3)

        _, why = copy(old, target, code=2)
        assert f"(process {server.process.pid}), which goes on writing; stop it first" in why
        assert server.stop() == 0
        file = (old / "orchestrator.db").read_bytes()
        secret = (old / "orchestrator.db.key").read_text().strip()
        said, _ = copy(old, target, "--json")
        assert secret not in said
        rows = {one["table"]: one["rows"] for one in msgspec.json.decode(said)["tables"]}
        assert (rows["runs"], rows["messages"], rows["agents"], rows["keys"]) == (3, 5, 1, 1)
        assert (old / "orchestrator.db").read_bytes() == file

        team.serve(tmp_path / "new", DATABASE_URL=target, SECRET_KEY=secret)
        assert await team.reads() == before
        await live_on(team, token)
    assert "is not empty" in copy(old, target, code=2)[1]


async def live_on_a_file(team: Team, agent: str, token: str) -> None:
    """Make a key, an agent with a credential, and two runs that end."""
    made = (await team.curl("/v1/keys", "", {"name": "root", "role": "admin"}))[1]
    team.key = made["key"]
    auth = {"type": "bearer", "token": token}
    team.runs.append(await invoke(team.curl, team.key, agent, auth=auth, on_lost="retry"))
    await team.ends(team.runs[0])
    team.runs.append(await again(team.curl, team.key))
    await team.ends(team.runs[1])


async def live_on(team: Team, token: str) -> None:
    """See the run that was left to its end, and one more of the same session behind it."""
    assert (await team.curl("/v1/runs"))[0] == 401
    assert await team.talker.called(4) != team.talker.tokens[2], "another attempt"
    await team.ends(team.runs[2])
    team.runs.append(await again(team.curl, team.key))
    await team.talker.called(5)
    await team.ends(team.runs[3])
    assert set(team.talker.credentials) == {f"Bearer {token}"}
    _, listed = await team.curl("/v1/runs?session_id=s", team.key)
    assert [run["run_id"] for run in listed["runs"]] == team.runs[::-1]
    _, whole = await team.curl("/v1/audit/verify", team.key)
    assert whole["ok"]


async def test_the_command_says_what_it_did_and_what_comes_next(
    tmp_path: Path, target: str
) -> None:
    start_server(tmp_path).stop()
    said, next_steps = copy(tmp_path, target)
    table = dict(line.split("\t", 1) for line in said.splitlines()[:-1])
    assert {"runs", "segments", "audit", "blobs"} <= table.keys()
    assert all(re.fullmatch(r"[\d,]+\t[\d,]+\t[0-9a-f]{16}", row) for row in table.values())
    assert "is a whole copy of" in said.splitlines()[-1]
    assert "each compared" in said
    assert f'SECRET_KEY="$(paste -sd, {tmp_path}/orchestrator.db.key)"' in next_steps
    assert "not copied" in next_steps
    key = (tmp_path / "orchestrator.db.key").read_text().strip()
    assert key not in said + next_steps


def test_what_cannot_be_copied_is_said(tmp_path: Path) -> None:
    where = "postgresql://u@127.0.0.1:1/db"
    assert "there is no database at" in copy(tmp_path, where, code=2)[1]
    start_server(tmp_path).stop()
    assert "cannot be reached" in copy(tmp_path, where, code=2)[1]
    assert "TARGET has an unknown form" in copy(tmp_path, "", code=2)[1]
    assert "TARGET has an unknown form" in copy(tmp_path, "file:other.db", code=2)[1]
