"""A conversation in the terminal and by lines: what is shown, what is cancelled, what goes on."""

import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from typing import Any
from urllib.parse import urlsplit

import msgspec
import pytest

from ..processes import Running, spawn, until
from ..stores import Kept
from .test_cli import PROGRAM, Command

shown_alike = pytest.mark.only_sqlite("a store has no part in what a terminal shows")


CONTROLLED = (
    "import fcntl, os, sys, termios\n"
    "fcntl.ioctl(0, termios.TIOCSCTTY, 0)\n"
    "os.execv(sys.argv[1], sys.argv[1:])\n"
)
"""Runs a command whose controlling terminal is its standard input, so that Ctrl-C reaches it."""


class Terminal:
    """A command on a terminal: what a person types, and all that was shown so far."""

    def __init__(self, leader: int, process: subprocess.Popen[bytes]) -> None:
        self._leader = leader
        self.process = process
        self.shown = ""

    def type(self, keys: str) -> None:
        """Type keys; `\\x03` is Ctrl-C, `\\x04` Ctrl-D."""
        os.write(self._leader, keys.encode())

    def see(self, text: str, since: int = 0, timeout_s: float = 30.0) -> int:
        """Wait until a text is shown behind `since`; return where it ends."""
        deadline = time.monotonic() + timeout_s
        while (found := self.shown.find(text, since)) < 0:
            assert time.monotonic() < deadline, f"{text!r} is not shown:\n{self.shown}"
            self._read(0.1)
        return found + len(text)

    def left(self) -> int:
        """Wait until the command has ended, reading what it says; return its exit code."""
        deadline = time.monotonic() + 30
        while self.process.poll() is None:
            assert time.monotonic() < deadline, f"it goes on:\n{self.shown}"
            self._read(0.05)
        self._read(0.05)
        return self.process.returncode

    def _read(self, wait_s: float) -> None:
        with suppress(OSError):  # Linux says EIO when the other side is gone
            while select.select([self._leader], [], [], wait_s)[0]:
                data = os.read(self._leader, 65_536)
                if not data:
                    return
                self.shown += data.decode()


@contextmanager
def terminal(cli: Command, *words: str, **env: str) -> Iterator[Terminal]:
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", CONTROLLED, *PROGRAM, *words], cwd=cli.folder,
        env=cli.env | {"TERM": "xterm"} | env,
        stdin=follower, stdout=follower, stderr=follower, start_new_session=True,
    )  # fmt: skip
    os.close(follower)
    try:
        yield Terminal(leader, process)
    finally:
        process.kill()
        process.wait(10)
        os.close(leader)


@pytest.fixture
def cli(server: str, demo_agent: str, tmp_path: Path) -> Command:
    command = Command(server, tmp_path)
    command("agents", "add", "demo", demo_agent)
    return command


def test_every_line_is_a_message_of_one_session(cli: Command) -> None:
    done = cli("chat", "demo", stdin="count 3\n\n  \nremember\n")
    assert done.stdout == "1 2 3 \nYou told me: “count 3”. \n"
    runs = cli.json("runs", "ls", "--limit", "2")
    assert len({run["session_id"] for run in runs}) == 1
    session = runs[0]["session_id"]
    again = cli("chat", "demo", "--session", session, stdin="remember").stdout
    assert again == "You told me: “count 3”, “remember”. \n"


def test_the_exit_code_is_the_first_bad_outcome(cli: Command) -> None:
    done = cli("chat", "demo", stdin="count 1\nfail\ncount 2\n", code=1)
    assert done.stdout.endswith("1 2 \n")
    assert "demo_failure" in done.stderr
    assert "agent nobody not found" in cli("chat", "nobody", stdin="x", code=4).stderr
    away = cli("chat", "demo", stdin="x", code=3, ORCHESTRATOR_URL="http://127.0.0.1:9")
    assert "no server answers" in away.stderr
    assert cli("chat", "demo").stdout == ""


def test_json_is_the_log_of_every_run(cli: Command) -> None:
    done = cli("chat", "demo", "--json", stdin="count 1\ncount 2\n")
    events = [msgspec.json.decode(line) for line in done.stdout.splitlines()]
    first, second = dict.fromkeys(event["run_id"] for event in events)
    logs = [cli("replay", run_id, "--json").stdout for run_id in (first, second)]
    assert done.stdout == "".join(logs)


def test_lines_that_are_no_text_are_refused(cli: Command) -> None:
    done = subprocess.run(
        [*PROGRAM, "chat", "demo"], cwd=cli.folder, env=cli.env, input=b"\xff\n",
        capture_output=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert b"is not UTF-8 text" in done.stderr
    assert b"Traceback" not in done.stderr


@shown_alike
def test_ctrl_c_cancels_the_answer_and_ctrl_d_leaves_the_chat(cli: Command) -> None:
    with terminal(cli, "chat", "demo") as person:
        at = person.see("> ")
        person.type("slow 60\r")
        at = person.see("tick", person.see("slow 60", at))
        person.type("\x03")
        at = person.see("> ", person.see("cancelled", at))
        person.type("count 3\r")
        at = person.see("1 2 3", at)
        at = person.see("> ", at)
        person.type("half a li\x03")
        at = person.see("> ", person.see("Ctrl-D leaves", at))
        person.type("\x04")
        person.see("go on: ./orchestrator chat demo --session sess_", at)
        assert person.left() == 0
    [session] = set(re.findall(r"--session (sess_\w+)", person.shown))
    runs = cli.json("runs", "ls", "--session", session)
    assert [run["status"] for run in runs] == ["DONE", "CANCELLED"]
    assert "half a li" not in cli("sessions", "show", session).stdout
    assert runs[1]["error"]["message"] == "Ctrl-C"


@contextmanager
def holding_back(server: str) -> Iterator[tuple[str, Event]]:
    """Pass requests on, and keep the first answer back; the event says that the server gave it."""
    held, over = Event(), Event()

    class Held(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            there = HTTPConnection(urlsplit(server).netloc, timeout=30)
            there.request("POST", self.path, body, {"Content-Type": "application/json"})
            answer = there.getresponse()
            said = answer.read()
            there.close()
            if not held.is_set():
                held.set()
                over.wait(60)
                return
            self.send_response(answer.status)
            self.send_header("Content-Length", str(len(said)))
            self.end_headers()
            self.wfile.write(said)

        def log_message(self, *args: Any) -> None:
            """Stay quiet."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Held) as between:
        serving = Thread(target=between.serve_forever)
        serving.start()
        try:
            yield f"http://127.0.0.1:{between.server_port}", held
        finally:
            over.set()
            between.shutdown()
            serving.join()


@shown_alike
def test_ctrl_c_before_the_run_is_known_cancels_it(cli: Command) -> None:
    with (
        holding_back(cli.env["ORCHESTRATOR_URL"]) as (url, held),
        terminal(cli, "chat", "demo", "--url", url) as person,
    ):
        person.see("> ")
        person.type("slow 60\r")
        assert held.wait(30), "the answer was kept back"
        [run] = cli.json("runs", "ls", "--limit", "1")
        assert run["status"] in {"CREATED", "RUNNING"}
        person.type("\x03")
        at = person.see("> ", person.see("cancelled"))
        person.type("\x04")
        person.see(f"--session {run['session_id']}", at)
        assert person.left() == 0
    [again] = cli.json("runs", "ls", "--limit", "1")
    assert (again["run_id"], again["status"]) == (run["run_id"], "CANCELLED")


@shown_alike
def test_words_of_an_agent_do_not_control_the_terminal(cli: Command) -> None:
    with terminal(cli, "chat", "demo") as person:
        person.see("> ")
        person.type("evil\x16\x1b]0;owned\x16\x07\r")
        at = person.see("You said:")
        person.see("> ", person.see("evil\\x1b]0;owned\\x07", at))
        assert "\x1b]0;" not in person.shown[at:]


@shown_alike
def test_a_chat_outlives_one_bad_message(cli: Command) -> None:
    with terminal(cli, "chat", "demo") as person:
        person.see("> ")
        person.type("count 2\r")
        at = person.see("> ", person.see("1 2"))
        cli("agents", "drain", "demo")
        person.type("count 3\r")
        at = person.see("> ", person.see("drain", person.see("count 3", at)))
        person.type("\x04")
        person.see("go on:", at)
        assert person.left() == 0
    with terminal(cli, "chat", "nobody") as person:
        person.see("> ")
        person.type("hello\r")
        person.see("agent nobody not found")
        assert person.left() == 4


@shown_alike
def test_ctrl_c_without_a_terminal_cancels_and_ends(cli: Command) -> None:
    log = cli.folder / "chat.log"
    words = [*PROGRAM, "chat", "demo"]
    process = spawn(words, cli.folder, log, cli.env, stdin=subprocess.PIPE)
    chat = Running("", process, log)
    try:
        assert process.stdin is not None
        process.stdin.write(b"slow 60\ncount 3\n")
        process.stdin.flush()
        until(lambda: "tick" in chat.said(), "a first word")
        assert chat.stop(signal.SIGINT) == 130
        process.stdin.close()
    finally:
        chat.kill()
    assert "cancelled" in chat.said()
    [run] = cli.json("runs", "ls", "--limit", "1")
    assert run["status"] == "CANCELLED"
    assert "1 2 3" not in chat.said()


def test_an_answer_goes_on_over_a_restart(
    start_server: Callable[..., Running], demo_agent: str, tmp_path: Path, kept: Kept
) -> None:
    first = start_server()
    cli = Command(first.url, tmp_path)
    cli("agents", "add", "demo", demo_agent, "--on-lost", "retry")
    log = tmp_path / "chat.log"
    process = spawn([*PROGRAM, "chat", "demo"], tmp_path, log, cli.env, stdin=subprocess.PIPE)
    chat = Running("", process, log)
    try:
        assert process.stdin is not None
        process.stdin.write(b"slow 3\ncount 2\n")
        process.stdin.close()
        until(lambda: "tick" in chat.said(), "a first word")
        first.kill()
        start_server(HTTP_PORT=first.url.rpartition(":")[2])
        until(lambda: process.poll() is not None, "the chat ends", 30 + kept.patience_s)
    finally:
        chat.kill()
    assert process.returncode == 0, chat.said()
    assert "again in" in chat.said()
    assert "1 2 " in chat.said()
