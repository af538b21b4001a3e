"""Sessions as a person reads and follows them, and agents as they are tried and drained."""

import secrets
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest

from ..processes import Running, request, spawn, until
from ..stores import Kept
from .test_cli import PROGRAM, Command, in_terminal

shown_alike = pytest.mark.only_sqlite("a store has no part in what a terminal shows")


@pytest.fixture
def cli(server: str, demo_agent: str, tmp_path: Path) -> Command:
    command = Command(server, tmp_path)
    command("agents", "add", "demo", demo_agent)
    return command


@contextmanager
def following(cli: Command, *words: str) -> Iterator[Running]:
    """Run a command that goes on; what it says is in its log."""
    log = cli.folder / f"{secrets.token_hex(4)}.log"
    command = [*PROGRAM, *words]
    running = Running("", spawn(command, cli.folder, log, cli.env), log)
    try:
        yield running
    finally:
        running.kill()


def events_of(following: Running) -> list[dict[str, Any]]:
    """Return the events that were written whole."""
    whole, _, _ = written(following).rpartition("\n")
    return [msgspec.json.decode(line) for line in whole.splitlines()]


def written(following: Running) -> str:
    """Return what it wrote, without the line that Ctrl-C ends on a terminal."""
    return following.said().replace("\n\n", "\n")


def said(following: Running, words: str) -> bool:
    return words in following.said()


def told(following: Running, *logs: str) -> bool:
    return following.said() == "".join(logs)


def ends(following: Running, kind: str = "run_done") -> int:
    return sum(event["type"] == kind for event in events_of(following))


def test_sessions_are_listed_newest_first_over_pages(cli: Command) -> None:
    for name in ("first", "second", "third"):
        cli("invoke", "demo", "count 1", "--session", name)
    listed = [row["session_id"] for row in cli.json("sessions", "ls", "--limit", "1000")]
    assert [name for name in listed if name in {"first", "second", "third"}] == [
        "third", "second", "first",
    ]  # fmt: skip
    assert cli("sessions", "ls", "--limit", "2").stdout.splitlines()[0].startswith("third\t-\t")
    assert len(cli.json("sessions", "ls", "--limit", "2")) == 2
    assert "not found" in cli("sessions", "show", "nowhere", code=4).stderr


def test_a_session_is_shown_with_its_runs(cli: Command) -> None:
    cli("chat", "demo", "--session", "shown", stdin="count 2\nfail\n", code=1)
    [found] = cli.json("sessions", "show", "shown")
    assert found["session_id"] == "shown"
    said = [(line["role"], line["content"]) for line in found["messages"]]
    assert said == [("user", "count 2"), ("assistant", "1 2"), ("user", "fail")]
    assert [run["status"] for run in found["runs"]] == ["DONE", "FAILED"]
    page = cli("sessions", "show", "shown").stdout
    assert page.index("count 2") < page.index("1 2\n") < page.index("fail")
    assert "FAILED" in page
    assert "demo_failure" in page
    [newest] = cli.json("sessions", "show", "shown", "--limit", "1")
    assert [line["content"] for line in newest["messages"]] == ["fail"]
    assert [run["status"] for run in newest["runs"]] == ["FAILED"]


def test_a_long_transcript_is_read_over_pages(cli: Command) -> None:
    path = f"{cli.env['ORCHESTRATOR_URL']}/v1/sessions/long/messages"
    parts = [{"type": "text", "text": "a picture: "}, {"type": "image_url", "image_url": "x"}]
    request("POST", path, {"role": "user", "content": parts})
    for number in range(240):
        request("POST", path, {"role": "user", "content": f"line {number}"})
    [found] = cli.json("sessions", "show", "long", "--limit", "1000")
    said = [line["content"] for line in found["messages"]]
    assert said == [parts, *(f"line {number}" for number in range(240))]
    assert "a picture: [image_url]" in cli("sessions", "show", "long", "--limit", "999").stdout


@shown_alike
def test_a_transcript_does_not_control_the_terminal(cli: Command) -> None:
    cli("invoke", "demo", "evil\x1b]0;owned\x07", "--session", "evil")
    shown = in_terminal(cli, "sessions", "show", "evil")
    assert "owned" in shown
    assert "\x1b]0;" not in shown
    assert "./orchestrator chat AGENT --session evil" in shown


def test_a_session_is_followed_run_after_run(cli: Command) -> None:
    cli("invoke", "demo", "count 2", "--session", "followed")
    with (
        following(cli, "tail", "--session", "followed", "--json") as whole,
        following(cli, "tail", "--session", "followed") as lines,
        following(cli, "tail", "--session", "followed", "--words") as words,
    ):
        until(lambda: ends(whole) == 1, "the run before is told")
        cli("invoke", "demo", "count 3", "--session", "followed")
        cli("invoke", "demo", "count 4", "--session", "another")
        until(lambda: ends(whole) == 2, "the next run is told")
        until(lambda: lines.said().count("run_done") == 2, "lines")
        until(lambda: "1 2 3 \n" in words.said(), "words")
        assert whole.stop(signal.SIGINT) == 130
    runs = list(dict.fromkeys(event["run_id"] for event in events_of(whole)))
    assert written(whole) == "".join(cli("replay", run, "--json").stdout for run in runs)
    assert lines.said().startswith(f"{runs[0]}       1  ")
    assert "not found" in cli("tail", "--session", "nowhere", code=4).stderr


def test_an_agent_is_followed_from_what_is_open_on(cli: Command, demo_agent: str) -> None:
    cli("agents", "add", "watched", demo_agent)
    cli("invoke", "watched", "count 1")
    opened = cli("invoke", "watched", "hang", "--detach").stdout.strip()
    with following(cli, "tail", "--agent", "watched", "--json") as whole:
        until(lambda: events_of(whole), "the open run is told")
        cli("invoke", "demo", "count 9")
        new = [cli("invoke", "watched", "count 2", "--detach").stdout.strip() for _ in range(3)]
        until(lambda: ends(whole) == 3, "the new runs are told")
        cli("runs", "cancel", opened)
        until(lambda: ends(whole, "run_cancelled") == 1, "the open one ends")
        assert whole.stop(signal.SIGINT) == 130
    by_run: dict[str, list[str]] = {}
    for line in written(whole).splitlines(keepends=True):
        by_run.setdefault(msgspec.json.decode(line)["run_id"], []).append(line)
    assert set(by_run) == {opened, *new}
    for run_id, lines in by_run.items():
        code = 5 if run_id == opened else 0
        assert "".join(lines) == cli("replay", run_id, "--json", code=code).stdout
    assert "not found" in cli("tail", "--agent", "nobody", code=4).stderr


def test_sessions_and_agents_are_followed_over_a_restart(
    start_server: Callable[..., Running], demo_agent: str, tmp_path: Path, kept: Kept
) -> None:
    first = start_server()
    cli = Command(first.url, tmp_path)
    cli("agents", "add", "demo", demo_agent, "--on-lost", "retry")
    run_id = cli("invoke", "demo", "slow 600", "--detach", "--session", "s").stdout.strip()
    with (
        following(cli, "tail", "--session", "s", "--json") as session,
        following(cli, "tail", "--agent", "demo", "--json") as agent,
    ):
        for reader in (session, agent):
            until(partial(said, reader, "agent_stream_delta"), "a first word")
        first.kill()
        start_server(HTTP_PORT=first.url.rpartition(":")[2])
        for reader in (session, agent):
            patience_s = 30 + kept.patience_s
            until(partial(said, reader, "agent_invoke_retrying"), "it goes on", patience_s)
        cli("runs", "cancel", run_id)
        for reader in (session, agent):
            until(partial(ends, reader, "run_cancelled"), "the run ends")
        later = cli("invoke", "demo", "count 2", "--detach", "--session", "s").stdout.strip()
        whole = {run_id: 5, later: 0}
        logs = [cli("tail", name, "--json", code=code).stdout for name, code in whole.items()]
        for reader in (session, agent):
            until(partial(told, reader, *logs), "the next run is told")


def test_what_is_followed_is_one_thing(cli: Command) -> None:
    for words in ((), ("run_x", "--session", "s"), ("--session", "s", "--agent", "a")):
        assert "name one thing to follow" in cli("tail", *words, code=2).stderr
    assert "RUN only" in cli("tail", "--session", "s", "--after", "3", code=2).stderr
    assert "--words goes with" in cli("tail", "--agent", "a", "--words", code=2).stderr


@pytest.mark.only_sqlite("a probe calls the agent itself")
def test_a_registered_agent_is_probed_by_its_id(cli: Command, demo_agent: str) -> None:
    good = cli("agents", "probe", "demo").stdout
    assert "✗" not in good
    assert "✓ GET /health" in good
    assert "✓ an ordinary message is answered" in good
    verdicts = cli.json("agents", "probe", "demo", "--message", "crash", code=1)
    assert [v["rule"] for v in verdicts if v["good"] is False] == [
        "its answer ends with done, error or pause"
    ]
    cli("agents", "add", "gone", "http://127.0.0.1:9")
    assert "✗ POST /invoke can be reached" in cli("agents", "probe", "gone", code=1).stdout
    assert "not found" in cli("agents", "probe", "nobody", code=4).stderr
    token = cli.folder / "token"
    token.write_text(secrets.token_hex(16))
    cli("agents", "add", "closed", demo_agent, "--token-file", str(token))
    asked = cli("agents", "probe", "closed", code=2).stderr
    assert "--token-file FILE" in asked
    assert "✗" not in cli("agents", "probe", "closed", "--token-file", str(token)).stdout


@pytest.mark.only_sqlite("a probe calls the agent itself")
def test_a_probe_by_id_invokes_once(cli: Command) -> None:
    program = (
        "import http.server as h\n"
        "class H(h.BaseHTTPRequestHandler):\n"
        "    def do_POST(self):\n"
        "        self.rfile.read(int(self.headers['Content-Length']))\n"
        "        print('invoked', flush=True)\n"
        "        self.send_response(200)\n"
        "        self.send_header('Content-Type', 'text/event-stream')\n"
        "        self.end_headers()\n"
        '        self.wfile.write(b\'event: done\\ndata: {"final_message": "hi"}\\n\\n\')\n'
        "s = h.HTTPServer(('127.0.0.1', 0), H)\n"
        "print(s.server_port, flush=True)\n"
        "s.serve_forever()\n"
    )
    log = cli.folder / "agent.log"
    process = spawn([sys.executable, "-c", program], cli.folder, log, {})
    agent = Running("", process, log)
    try:
        port = until(lambda: agent.said().partition("\n")[0], "the agent listens")
        cli("agents", "add", "once", f"http://127.0.0.1:{port}")
        assert "✓" in cli("agents", "probe", "once").stdout
    finally:
        agent.kill()
    assert agent.said().count("invoked") == 1


def test_a_drained_agent_gets_no_more_runs(cli: Command, demo_agent: str) -> None:
    cli("agents", "add", "tired", demo_agent)
    assert "gets no more runs" in cli("agents", "drain", "tired").stdout
    assert cli.json("agents", "show", "tired")[0]["status"] == "draining"
    assert "drain" in cli("invoke", "tired", "x", code=6).stderr
    cli("agents", "add", "tired", demo_agent)
    cli("invoke", "tired", "count 1")
    assert "not found" in cli("agents", "drain", "nobody", code=4).stderr


def test_one_of_several_instances_is_named(cli: Command, demo_agent: str) -> None:
    cli("agents", "add", "twins", demo_agent, "--instance", "one")
    cli("agents", "add", "twins", "http://127.0.0.1:9", "--instance", "two")

    def states() -> dict[str, str]:
        lines = cli("agents", "show", "twins").stdout.partition("\n\n")[2].splitlines()
        return {name: status for name, status, *_ in (line.split("\t") for line in lines)}

    assert set(states()) == {"one", "two"}
    assert "✗" not in cli("agents", "probe", "twins", "--instance", "one").stdout
    cli("agents", "probe", "twins", "--instance", "two", code=1)
    assert "it has one, two" in cli("agents", "probe", "twins", "--instance", "x", code=4).stderr
    assert "--instance is empty" in cli("agents", "drain", "twins", "--instance", "", code=2).stderr
    assert "two of twins" in cli("agents", "drain", "twins", "--instance", "two").stdout
    assert [name for name, status in states().items() if status == "draining"] == ["two"]
    cli("invoke", "twins", "count 1")
    cli("agents", "rm", "twins", "--instance", "two")
    assert set(states()) == {"one"}
    assert "no instance" in cli("agents", "rm", "twins", "--instance", "two", code=4).stderr


@pytest.mark.only_sqlite("a store has no part in who may call")
def test_commands_show_their_key(
    start_server: Callable[..., Running], demo_agent: str, tmp_path: Path
) -> None:
    admin = secrets.token_urlsafe(32)
    cli = Command(start_server(ADMIN_KEY=admin).url, tmp_path)
    for words in (
        ("sessions", "ls"), ("sessions", "show", "s"), ("tail", "--session", "s"),
        ("tail", "--agent", "demo"), ("agents", "probe", "demo"), ("agents", "drain", "demo"),
    ):  # fmt: skip
        assert "ORCHESTRATOR_KEY" in cli(*words, code=6).stderr
    assert "ORCHESTRATOR_KEY" in cli("chat", "demo", code=6, stdin="x").stderr
    cli.env["ORCHESTRATOR_KEY"] = admin
    cli("agents", "add", "demo", demo_agent)
    assert cli("chat", "demo", "--session", "s", stdin="count 2").stdout == "1 2 \n"
    assert cli.json("sessions", "show", "s")[0]["runs"][0]["status"] == "DONE"
    with following(cli, "tail", "--session", "s", "--json") as whole:
        until(lambda: ends(whole) == 1, "the run is told")
    assert isinstance(whole.process, subprocess.Popen)
