"""Commands that meet something they were not made for: one sentence, the documented code.

Servers are strangers here, and the only database is a file that is copied: no store but SQLite is
meant. What PostgreSQL refuses is in test_refused_postgres.py.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from secrets import token_hex
from threading import Thread
from typing import Any

import pytest

PROGRAM = (sys.executable, "-m", "orchestrator")
RUN = {
    "run_id": "run_x", "session_id": "s", "agent_id": "a", "status": "DONE", "created_at": 10**18,
}  # fmt: skip


def run(
    folder: Path, *words: str | bytes, code: int, stdin: bytes = b"", stdout: Any = None, **env: str
) -> tuple[str, str]:
    """Run a command; it ends with `code` and without a traceback."""
    around = {"PATH": os.defpath, "HOME": str(folder), "INGRESS_URL": "off"}
    out = subprocess.PIPE if stdout is None else stdout
    done = subprocess.run(
        [*PROGRAM, *words], cwd=folder, env=around | env, input=stdin, stdout=out,
        stderr=subprocess.PIPE, timeout=60, check=False,
    )  # fmt: skip
    said, problems = (done.stdout or b"").decode(), done.stderr.decode()
    assert done.returncode == code, (words, said, problems)
    assert "Traceback" not in problems
    assert "Exception ignored" not in problems
    return said, problems


@contextmanager
def answering(body: bytes, kind: str = "application/json", status: int = 200) -> Iterator[str]:
    """Serve one and the same answer to whatever is asked."""

    class Stranger(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_DELETE = do_GET  # noqa: N815  # http.server wants these names

        def log_message(self, *args: Any) -> None:
            """Stay quiet."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Stranger) as server:
        serving = Thread(target=server.serve_forever)
        serving.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            serving.join()


COMMANDS = (
    ("runs", "ls"), ("agents", "ls"), ("runs", "show", "r"), ("runs", "show", "r", "--tree"),
    ("invoke", "a", "x"), ("replay", "r"), ("tail", "r"), ("runs", "cancel", "r"),
    ("agents", "rm", "a"), ("agents", "add", "a", "http://localhost:1"),
)  # fmt: skip


@pytest.mark.parametrize(
    ("status", "kind", "body"),
    [
        (200, "application/json", b"[1, 2]"),
        (200, "text/html", b"<h1>hello</h1>"),
        (200, "application/json", b"[" * 5000),
        (404, "text/html", b"\xff not here"),
    ],
)
def test_another_program_is_called_one(tmp_path: Path, status: int, kind: str, body: bytes) -> None:
    with answering(body, kind, status) as url:
        for words in COMMANDS[:: 1 if body == b"[1, 2]" else 3]:
            _, problems = run(tmp_path, *words, code=3, ORCHESTRATOR_URL=url)
            assert "not as an orchestrator would" in problems, words
            assert problems.count("\n") == 2


def test_answers_of_almost_the_right_shape(tmp_path: Path) -> None:
    with answering(b'{"runs": [{"run_id": 5}], "agents": [{}], "has_more": false}') as url:
        for words in (("runs", "ls"), ("agents", "ls"), ("runs", "ls", "--json")):
            run(tmp_path, *words, code=3, ORCHESTRATOR_URL=url)
    page = json.dumps({"events": [{"seq": "x"}], "has_more": False, "next_cursor": "1"})
    with answering(page.encode()) as url:
        run(tmp_path, "replay", "r", code=3, ORCHESTRATOR_URL=url)
    event = {"run_id": "r", "seq": 1, "ts": 10**18, "type": "agent_stream_delta", "payload": {}}
    page = json.dumps({"events": [event], "has_more": False, "next_cursor": "1"} | RUN)
    with answering(page.encode()) as url:
        run(tmp_path, "replay", "r", "--words", code=0, ORCHESTRATOR_URL=url)
        assert str(10**18) in run(tmp_path, "replay", "r", code=0, ORCHESTRATOR_URL=url)[0]


def test_a_stream_of_what_are_no_events(tmp_path: Path) -> None:
    with answering(b"event: run_done\ndata: hello\n\n", "text/event-stream") as url:
        assert "no event" in run(tmp_path, "tail", "r", code=3, ORCHESTRATOR_URL=url)[1]


def test_the_doctor_tells_another_program_from_a_server(tmp_path: Path) -> None:
    for body in (b"[1]", b'{"status": "healthy", "version": "1"}', b"hello"):
        with answering(body) as url:
            said, _ = run(tmp_path, "doctor", code=1, ORCHESTRATOR_URL=url, HTTP_PORT="0")
            assert "✗ server: " in said
            assert "not as an orchestrator would" in said


@pytest.mark.parametrize("url", ["http://[", "http://h:abc", "http://h:99999", "http://a..b", "x"])
def test_a_url_that_is_none(tmp_path: Path, url: str) -> None:
    for words in (("runs", "ls"), ("invoke", "a", "x")):
        assert "is not the URL" in run(tmp_path, *words, code=2, ORCHESTRATOR_URL=url)[1]
        assert "is not the URL" in run(tmp_path, *words, "--url", url, code=2)[1]


def test_a_port_that_is_none(tmp_path: Path) -> None:
    for words in (("runs", "ls"), ("tail", "r"), ("agents", "ls")):
        assert "HTTP_PORT must be a port" in run(tmp_path, *words, code=2, HTTP_PORT="abc")[1]


def test_the_doctor_looks_at_the_key(tmp_path: Path) -> None:
    path, short = tmp_path / "new.key", tmp_path / "short.key"
    short.write_text("short")
    said, _ = run(tmp_path, "doctor", code=0, HTTP_PORT="0", SECRET_KEY_FILE=str(path))
    assert f"{path} does not exist yet; a start makes it" in said
    assert not path.exists()
    for file, why in ((tmp_path / "absent" / "k", "cannot be made"), (short, "at least 32"),
                      (tmp_path, "cannot be read")):  # fmt: skip
        said, _ = run(tmp_path, "doctor", code=1, HTTP_PORT="0", SECRET_KEY_FILE=str(file))
        assert "✗ key: " in said
        assert why in said
    said, _ = run(tmp_path, "doctor", code=0, HTTP_PORT="0", SECRET_KEY=token_hex(32))
    assert "✓ key: SECRET_KEY encrypts credentials" in said


def test_the_doctor_begins_with_the_setting_that_is_wrong(tmp_path: Path) -> None:
    wrong: list[dict[str, Any]] = [
        {"LOG_LEVEL": "loud"}, {"HTTP_PORT": "abc"}, {"PUBLIC_URL": "http://["},
    ]  # fmt: skip
    for env in wrong:
        said, _ = run(tmp_path, "doctor", code=1, **env)
        first = said.splitlines()[:2]
        assert first[0].startswith(f"✗ settings: {next(iter(env))} must be"), first
        assert "docs/settings.md" in first[1]
        assert "✓ versions" in said
        told = [json.loads(line) for line in run(tmp_path, "doctor", "--json", code=1, **env)[0]
                .splitlines()]  # fmt: skip
        assert (told[0]["name"], told[0]["good"]) == ("settings", False)
        assert "docs/settings.md" in told[0]["fix"]
        assert all(check.get("fix", "") == "" for check in told if check["good"])
    said, _ = run(tmp_path, "doctor", code=0, HTTP_PORT="0")
    assert said.startswith("✓ settings"), "a port that is given at the start names no server yet"


def test_words_and_input_that_are_no_text(tmp_path: Path) -> None:
    url = "http://127.0.0.1:9"
    problems = run(tmp_path, "invoke", "a", b"\xff", code=2, ORCHESTRATOR_URL=url)[1]
    assert "not UTF-8 text" in problems
    problems = run(tmp_path, "invoke", "a", "-", code=2, stdin=b"\xff", ORCHESTRATOR_URL=url)[1]
    assert "standard input is not UTF-8 text" in problems
    (tmp_path / "token").write_bytes(b"\xff")
    for file in ("token", "."):
        problems = run(tmp_path, "agents", "add", "a", "http://h", "--token-file", file, code=2)[1]
        assert file in problems


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_an_output_that_takes_nothing(tmp_path: Path) -> None:
    body = json.dumps({"runs": [RUN], "agents": [], "has_more": False}).encode()
    with answering(body) as url, Path("/dev/full").open("wb") as full:
        for words in (("runs", "ls"), ("runs", "ls", "--json"), ("doctor",), ("--version",)):
            problems = run(tmp_path, *words, code=1, stdout=full, ORCHESTRATOR_URL=url)[1]
            assert "the output cannot be written: No space left on device" in problems


@pytest.mark.parametrize("words", [
    ("invoke", "a", "x", "--timeout-ms", "0"),
    ("invoke", "a", "x", "--timeout-ms", str(1 << 63)),
    ("runs", "ls", "--older-than", "9" * 5000 + "d"),
    ("runs", "ls", "--older-than", ""),
    ("probe", "http://localhost:1/invoke"),
    ("probe", "http://localhost:1/invoke/"),
])  # fmt: skip
def test_options_out_of_their_range(tmp_path: Path, words: tuple[str, ...]) -> None:
    problems = run(tmp_path, *words, code=2)[1]
    if words[0] == "probe":
        assert "leave /invoke off" in problems


def test_a_probe_of_nothing_has_one_fault(tmp_path: Path) -> None:
    said, _ = run(tmp_path, "probe", "http://127.0.0.1:9", code=1)
    assert said.count("✗") == 1
    assert "– GET /health says how it is (optional): not tried" in said
    exact = run(tmp_path, "probe", "http://127.0.0.1:9/invoke", "--protocol", "json", code=1)[0]
    assert "can be reached" in exact, "a JSON service is called at its URL as it is"


def test_a_backup_says_what_it_did_or_why_not(tmp_path: Path) -> None:
    problems = run(tmp_path, "backup", "copy.db", code=2)[1]
    assert f"there is no database at {tmp_path}/orchestrator.db" in problems
    run(tmp_path, "demo", code=0, HTTP_PORT="0")
    said = json.loads(run(tmp_path, "backup", "copy.db", "--json", code=0)[0])
    assert said["path"] == str(tmp_path / "copy.db")
    assert said["bytes"] == (tmp_path / "copy.db").stat().st_size
    (tmp_path / "kept.db").write_text("kept")
    for path in ("kept.db", "absent/../kept.db", "./kept.db", str(tmp_path / "kept.db")):
        problems = run(tmp_path, "backup", path, code=2)[1]
        assert f"{tmp_path}/kept.db exists already" in problems
    assert (tmp_path / "kept.db").read_text() == "kept"
    assert "cannot be made" in run(tmp_path, "backup", "absent/copy.db", code=2)[1]
