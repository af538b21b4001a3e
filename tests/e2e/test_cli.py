"""The command line against a real server: what it prints, and with which code it ends.

Commands that a server answers are tried on both stores. What is on SQLite only: columns and colours
of a terminal and the probe of an agent, which no store has a part in; a port that is taken before a
database is opened; and what is said of a file: its backup, its damage, its second server.
"""

import os
import pty
import re
import signal
import socket
import subprocess
import sys
import tarfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest

from ..processes import ROOT, Running, request, spawn, start_server, until
from ..stores import Kept

PROGRAM = (sys.executable, "-m", "orchestrator")
PATH = "/usr/local/bin:/usr/bin:/bin"
shown_alike = pytest.mark.only_sqlite("a store has no part in what a terminal shows")
of_a_file = pytest.mark.only_sqlite("it is about the database's file")


class Command:
    """Runs commands against one server."""

    def __init__(self, url: str, folder: Path) -> None:
        self.folder = folder
        self.env = {"PATH": PATH, "HOME": str(folder), "ORCHESTRATOR_URL": url}

    def __call__(
        self, *words: str, code: int = 0, stdin: str = "", **env: str
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [*PROGRAM, *words], cwd=self.folder, env=self.env | env, input=stdin,
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == code, f"{words}: {done.returncode}\n{done.stdout}{done.stderr}"
        assert "Traceback" not in done.stderr
        return done

    def json(self, *words: str, code: int = 0) -> list[Any]:
        """Return what a command writes with --json."""
        out = self(*words, "--json", code=code).stdout
        return [msgspec.json.decode(line) for line in out.splitlines()]


@pytest.fixture
def cli(server: str, demo_agent: str, tmp_path: Path) -> Command:
    """Hand out the commands of a server that knows the demo agent."""
    command = Command(server, tmp_path)
    command("agents", "add", "demo", demo_agent)
    return command


def test_an_answer_is_streamed_and_its_outcome_is_the_code(cli: Command) -> None:
    done = cli("invoke", "demo", "count 3")
    assert done.stdout == "1 2 3 \n"
    assert re.search(r"run_\w+  session sess_", done.stderr)
    failed = cli("invoke", "demo", "fail", code=1)
    assert "failed: demo_failure" in failed.stderr
    assert "./orchestrator replay run_" in failed.stderr
    assert cli("invoke", "demo", "-", stdin="count 2").stdout == "1 2 \n"


def test_sessions_go_on(cli: Command) -> None:
    cli("invoke", "demo", "blue", "--session", "talk", "--on-busy", "reject")
    assert "“blue”" in cli("invoke", "demo", "remember", "--session", "talk").stdout


def test_json_is_the_log_byte_for_byte(cli: Command) -> None:
    live = cli("invoke", "demo", "count 3", "--json").stdout
    run_id = msgspec.json.decode(live.splitlines()[0])["run_id"]
    assert cli("replay", run_id, "--json").stdout == live
    assert cli("tail", run_id, "--json").stdout == live
    page = request("GET", f"{cli.env['ORCHESTRATOR_URL']}/v1/runs/{run_id}/events?limit=1000")
    assert ",".join(live.splitlines()).encode() in page.body
    assert cli("tail", run_id, "--json", "--after", "3").stdout == "".join(
        live.splitlines(keepends=True)[3:]
    )
    assert cli("replay", run_id, "--words").stdout == "1 2 3 \n"


def test_a_detached_run_is_cancelled(cli: Command) -> None:
    run_id = cli("invoke", "demo", "hang", "--detach").stdout.strip()
    assert "CANCELLED" in cli("runs", "cancel", run_id, "--reason", "enough").stdout
    assert 'reason="enough"' in cli("tail", run_id, code=5).stdout
    cli("runs", "cancel", run_id)
    assert cli.json("runs", "show", run_id)[0]["status"] == "CANCELLED"
    assert run_id in cli("runs", "show", run_id, "--tree").stdout


def test_replay_of_an_open_run_ends_and_calls_nobody(cli: Command) -> None:
    run_id = cli("invoke", "demo", "hang", "--detach").stdout.strip()
    until(lambda: len(cli.json("replay", run_id)) == 3, "the agent is called")
    done = cli("replay", run_id)
    assert "agent_invoke_started" in done.stdout
    assert "the run goes on" in done.stderr
    assert cli.json("runs", "show", run_id)[0]["attempt"] == 1
    cli("runs", "cancel", run_id)


def test_runs_are_listed_by_filters(cli: Command) -> None:
    run_id = cli("invoke", "demo", "count 1", "--detach", "--session", "filters").stdout.strip()
    cli("tail", run_id)
    assert [r["run_id"] for r in cli.json("runs", "ls", "--session", "filters")] == [run_id]
    assert cli("runs", "ls", "--session", "filters", "--status", "FAILED,running").stdout == ""
    assert cli("runs", "ls", "--session", "filters", "--older-than", "1h").stdout == ""
    row = cli("runs", "ls", "--agent", "demo", "--limit", "1").stdout
    assert row.count("\n") == 1
    assert "\t" in row
    assert "no state 'gone'" in cli("runs", "ls", "--status", "gone", code=2).stderr
    assert "no age" in cli("runs", "ls", "--older-than", "soon", code=2).stderr


def test_many_runs_are_repeated_by_filters(cli: Command) -> None:
    for _ in range(2):
        cli("invoke", "demo", "fail", "--session", "again", code=1)
    dry = cli("runs", "rerun", "--session", "again", "--status", "failed", "--dry-run").stdout
    assert dry.count("would: run_") == 2
    assert len(cli.json("runs", "ls", "--session", "again")) == 2
    cli("runs", "rerun", "--session", "again", "--status", "failed")
    assert len(cli.json("runs", "ls", "--session", "again")) == 4
    assert "not both" in cli("runs", "rerun", code=2).stderr
    assert "no such runs" in cli("runs", "cancel", "--session", "nobody").stderr


def test_agents_come_and_go(cli: Command, demo_agent: str) -> None:
    token = cli.folder / "token"
    token.write_text("s3cret-s3cret\n")
    cli("agents", "add", "other", demo_agent, "--token-file", str(token), "--on-lost", "retry",
        "--max-attempts", "3", "--idle-ms", "5000", "--capability", "talk")  # fmt: skip
    [agent] = cli.json("agents", "show", "other")
    assert agent["has_auth"] is True
    assert agent["retry"]["max_attempts"] == 3
    assert agent["timeouts"] == {"idle_ms": 5000}
    assert "s3cret" not in cli("agents", "show", "other").stdout
    assert "other" in cli("agents", "ls", "--capability", "talk").stdout
    cli("agents", "rm", "other")
    assert "not found" in cli("agents", "show", "other", code=4).stderr


@pytest.mark.only_sqlite("the sentences are the command's own")
def test_errors_have_a_sentence_and_a_code(cli: Command) -> None:
    assert "agent nobody not found" in cli("invoke", "nobody", "x", code=4).stderr
    assert "not found" in cli("tail", "run_x", code=4).stderr
    assert "not found" in cli("replay", "run_x", code=4).stderr
    away = cli("runs", "ls", code=3, ORCHESTRATOR_URL="http://127.0.0.1:9")
    assert "no server answers at http://127.0.0.1:9" in away.stderr
    assert "./orchestrator" in away.stderr
    assert "not the URL" in cli("runs", "ls", code=2, ORCHESTRATOR_URL="nowhere").stderr
    assert "No such command" in cli("nonsense", code=2).stderr
    refused = cli("agents", "add", "bad", "http://169.254.169.254/", code=2)
    assert "never dialled" in refused.stderr


@shown_alike
def test_words_of_agents_do_not_control_the_terminal(cli: Command) -> None:
    evil = "count\x1b]0;owned\x07\x1b[2J\u202e"
    shown = in_terminal(cli, "invoke", "demo", evil)
    assert "owned" in shown
    assert "\x1b]0;" not in shown
    assert "\x1b[2J" not in shown
    assert "\\x1b" in shown
    plain = cli("invoke", "demo", evil).stdout
    assert "\x1b[2J" in plain, "a program that reads us gets what the agent said"


def in_terminal(cli: Command, *words: str, width: int = 120) -> str:
    """Run a command on a terminal and return all that it wrote there."""
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [*PROGRAM, *words], cwd=cli.folder, env=cli.env | {"TERM": "xterm", "COLUMNS": str(width)},
        stdin=follower, stdout=follower, stderr=follower,
    )  # fmt: skip
    os.close(follower)
    said = b""
    with suppress(OSError):  # Linux says EIO when the other side is gone
        while data := os.read(leader, 65_536):
            said += data
    os.close(leader)
    process.wait(30)
    return said.decode()


@shown_alike
def test_a_terminal_gets_columns(cli: Command) -> None:
    cli("invoke", "demo", "count 1")
    shown = in_terminal(cli, "runs", "ls")
    assert "run" in shown.splitlines()[0]
    assert "\x1b[" in shown


@shown_alike
@pytest.mark.parametrize("width", [40, 80, 120, 200])
def test_ids_are_never_cut(cli: Command, width: int) -> None:
    run_id = cli("invoke", "demo", "count 1", "--detach").stdout.strip()
    cli("tail", run_id)
    shown = in_terminal(cli, "runs", "ls", "--limit", "1", width=width)
    assert run_id in shown
    assert "DONE" in shown
    assert ("session" in shown.splitlines()[0]) == (width >= 120)


def test_following_outlives_a_restart(
    start_server: Callable[..., Running], demo_agent: str, tmp_path: Path, kept: Kept
) -> None:
    first = start_server()
    cli = Command(first.url, tmp_path)
    cli("agents", "add", "demo", demo_agent, "--on-lost", "retry")
    run_id = cli("invoke", "demo", "slow 3", "--detach").stdout.strip()
    log = tmp_path / "tail.log"
    words = [*PROGRAM, "tail", run_id, "--json"]
    following = Running("", spawn(words, tmp_path, log, cli.env), log)
    try:
        until(lambda: "agent_stream_delta" in following.said(), "a first word")
        first.kill()
        away = f"\norchestrator: {first.url} is away; waiting for it, 60 s at most\n"
        until(lambda: away in following.said(), "what is waited for")
        start_server(HTTP_PORT=first.url.rpartition(":")[2])
        until(lambda: following.process.poll() is not None, "the run ends", 30 + kept.patience_s)
    finally:
        following.kill()
    assert following.process.returncode == 0, following.said()
    assert cli("replay", run_id, "--json").stdout == following.said().replace(away, "", 1)
    assert "agent_invoke_retrying" in following.said()


@pytest.mark.only_sqlite("a probe calls the agent itself")
def test_probe_finds_what_is_wrong(cli: Command, demo_agent: str) -> None:
    good = cli("probe", demo_agent).stdout
    assert good.count("✓") == 11
    assert "✗" not in good
    bad = cli.json("probe", demo_agent, "--message", "crash", code=1)
    broken = [verdict for verdict in bad if verdict["good"] is False]
    assert [verdict["rule"] for verdict in broken] == ["its answer ends with done, error or pause"]
    assert "event: done" in broken[0]["fix"]
    slow = cli("probe", demo_agent, "--message", "hang", "--seconds", "0.3", code=1).stdout
    assert "✗ it answers in time" in slow
    with ThreadPoolExecutor(1) as thread, socket.create_server(("127.0.0.1", 0)) as door:
        thread.submit(_slam, door)
        silent = cli("probe", f"http://127.0.0.1:{door.getsockname()[1]}", code=1).stdout
        door.shutdown(socket.SHUT_RDWR)
    assert "✓ POST /invoke can be reached" in silent
    assert "✗ it answers 200" in silent
    absent = cli("probe", "http://127.0.0.1:9", code=1).stdout
    assert "✗ POST /invoke can be reached" in absent
    assert "never dialled" in cli("probe", "http://169.254.169.254", code=2).stderr


def _slam(door: socket.socket) -> None:
    with suppress(OSError):
        while True:
            door.accept()[0].close()


def test_the_doctor_and_its_bundle(server: str, cli: Command, kept_together: Kept) -> None:
    cli("invoke", "demo", "my-private-words")
    port = server.rpartition(":")[2]
    cli.env |= {**kept_together.settings, "SECRET_KEY": "k" * 40, "HTTP_PORT": port}
    out = cli("doctor", "--bundle", "report.tgz").stdout
    assert "✗" not in out
    of_the_store = ("database",) if kept_together.postgres else ("disk", "fsync")
    for name in ("settings", *of_the_store, "clock", "server", "agent: demo"):
        assert f"✓ {name}" in out
    with tarfile.open(cli.folder / "report.tgz") as bundle:
        parts = {m.name.rpartition("/")[2]: _text(bundle, m) for m in bundle.getmembers()}
    assert set(parts) == {
        "checks.json", "settings.json", "health.json", "metrics.txt", "agents.json", "runs.json",
    }  # fmt: skip
    assert msgspec.json.decode(parts["runs.json"])
    everything = "".join(parts.values())
    assert "my-private-words" not in everything
    assert "k" * 40 not in everything


def _text(bundle: tarfile.TarFile, member: tarfile.TarInfo) -> str:
    file = bundle.extractfile(member)
    assert file is not None
    return file.read().decode()


@of_a_file
def test_the_doctor_names_a_fault(cli: Command) -> None:
    (cli.folder / "orchestrator.db").write_text("not a database, by any means " * 100)
    done = cli("doctor", code=1, HTTP_PORT="0")
    assert "✗ database" in done.stdout


@pytest.fixture
def busy(start_server: Callable[..., Running]) -> Running:
    """Hand out a server whose folder and port are taken."""
    return start_server()


@of_a_file
def test_a_backup_beside_a_server_is_whole(busy: Running, demo_agent: str) -> None:
    cli = Command(busy.url, busy.log.parent)
    cli("agents", "add", "demo", demo_agent)
    run_id = cli("invoke", "demo", "count 20", "--detach").stdout.strip()
    log = cli("tail", run_id, "--json").stdout
    cli("backup", "copy.db")
    assert "exists already" in cli("backup", "copy.db", code=2).stderr
    busy.stop()
    other = cli.folder / "other"
    other.mkdir()
    (cli.folder / "copy.db").rename(other / "orchestrator.db")
    restored = start_server(other)
    try:
        again = Command(restored.url, other)
        assert again("replay", run_id, "--json").stdout == log
        assert [agent["agent_id"] for agent in again.json("agents", "ls")] == ["demo"]
    finally:
        restored.kill()


@pytest.mark.only_sqlite("the port is taken before a database is opened")
def test_a_busy_port_is_named_with_its_owner(busy: Running) -> None:
    port = busy.url.rpartition(":")[2]
    cli = Command(busy.url, busy.log.parent)
    for words in ((), ("serve",), ("--http-port", port)):
        done = cli(*words, code=2, HTTP_PORT=port, DATABASE_URL="file:second.db")
        assert f"port {port} is in use; process {busy.process.pid} (" in done.stderr
        assert "HTTP_PORT=" in done.stderr


@of_a_file
def test_a_second_server_on_the_same_file_is_refused(busy: Running) -> None:
    cli = Command(busy.url, busy.log.parent)
    done = cli("serve", code=2, HTTP_PORT="0")
    assert f"in use by another server (process {busy.process.pid})" in done.stderr
    assert request("GET", f"{busy.url}/health").status == 200


def demo(folder: Path, words: Sequence[str], **env: str) -> Running:
    """Start `dev` or `demo` in a folder."""
    log = folder / "demo.log"
    return Running("", spawn([*PROGRAM, *words], folder, log, env), log)


def test_the_demo_streams_one_run_and_ends_well(tmp_path: Path, kept: Kept) -> None:
    running = demo(tmp_path, ["demo"], HTTP_PORT="0", **kept.settings)
    assert running.process.wait(30) == 0, running.said()
    assert "You said: “Hello, how are you?”" in running.said()
    assert running.said().count("./orchestrator ") == 1
    assert "./orchestrator dev" in running.said(), "the server of a demo is gone when it is read"
    running = demo(tmp_path, ["demo", "fail"], HTTP_PORT="0", **kept.settings)
    assert running.process.wait(30) == 1, running.said()


def test_dev_takes_the_next_port_stays_up_and_leaves_nothing_behind(
    busy: Running, tmp_path: Path, kept: Kept
) -> None:
    port = busy.url.rpartition(":")[2]
    database = kept.settings or {"DATABASE_URL": "file:dev.db"}
    running = demo(tmp_path, ["dev"], HTTP_PORT=port, **database)
    try:
        until(lambda: "Ctrl-C stops it" in running.said(), "dev is up", 30)
        assert f"port {port} is taken by process {busy.process.pid} (" in running.said()
        url = re.findall(r"server +(http\S+)", running.said())[0]
        agent = re.findall(r"demo agent +(http\S+)", running.said())[0]
        assert running.said().count(f"ORCHESTRATOR_URL={url} ./orchestrator ") == 4
        assert url != busy.url
        assert request("GET", f"{url}/health").status == 200
        assert request("GET", f"{agent}/health").status == 200
    finally:
        code = running.stop(signal.SIGINT)
    assert code == 0, running.said()
    with pytest.raises(OSError, match="refused"):
        request("GET", f"{agent}/health")


def test_the_version_is_said_without_loading_the_server() -> None:
    script = (
        "import sys\nfrom orchestrator.cli.main import run\nrun(['--version'])\n"
        "heavy = {'aiohttp', 'starlette', 'uvicorn', 'rich', 'apsw'} & set(sys.modules)\n"
        "sys.exit(f'loaded {heavy}' if heavy else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("orchestrator ")
