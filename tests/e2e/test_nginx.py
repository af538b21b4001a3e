"""A real nginx in front, with nothing but `proxy_pass` and with the configuration that we ship.

On SQLite only: what nginx holds back or passes on are bytes of answers, wherever they were kept.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ..processes import ROOT, Running, nginx_configuration, until
from .place import Place, place

PAGE = (ROOT / "docs" / "behind-nginx.md").read_text()
BARE = re.findall(r"^```nginx\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)[0]
SNIPPET = (ROOT / "deploy" / "nginx" / "orchestrator.conf").read_text()
CONFIGURATIONS = pytest.mark.parametrize("server", [BARE, SNIPPET], ids=["bare", "snippet"])

ANSWER = 'event: done\ndata: {"final_message": "at last"}\n\n'
JSON = '-H "Content-Type: application/json"'
REGISTER = (
    "curl -s KEY -X POST http://localhost:8081/v1/agents/register " + JSON + " "
    '-d \'{"agent_id":"demo","name":"Demo","endpoint":"http://localhost:8000"}\''
)
INVOKE = (
    "curl -s KEY -X POST http://localhost:8081/internal/invoke " + JSON + " "
    '-d \'{"session_id":"s","agent_id":"demo","input_message":{"role":"user","content":"TEXT"}}\''
)
STREAM = "curl -sN KEY http://localhost:8081/v1/runs/RUN/events/stream"
MAKE = "./orchestrator keys create --role admin NAME"


@pytest.fixture
def here(tmp_path: Path, program: Callable[[str], Path]) -> Iterator[Place]:
    """Hand out a place of its own, in which nginx can be started."""
    program("nginx")
    with place(tmp_path) as found:
        yield found


def start_nginx(here: Place, server: str, timeout: str = "") -> None:
    """Start nginx with one server block in front of port 8080."""
    user = "user root;" if here.prefix else ""  # the only user there is in a network of our own
    configuration = nginx_configuration(f"{timeout}\n{server}", user)
    (here.folder / "nginx.conf").write_text(here.here(configuration))
    here.start(f"nginx -p {here.folder} -c {here.folder}/nginx.conf", "nginx")
    here.up("http://localhost:8081/health")


@dataclass
class Front:
    """The server behind nginx, as a caller who has a key meets it."""

    here: Place
    key: str = ""

    def written(self, command: str) -> str:
        """Return a command that shows the key, if there is one."""
        shown = f'-H "Authorization: Bearer {self.key}"' if self.key else ""
        return command.replace("KEY", shown)

    def follow(self, content: str) -> Running:
        """Invoke the demo agent through nginx and follow the run, in the background, through it."""
        assert self.here.json(self.written(REGISTER))["ok"] is True
        run_id = self.here.json(self.written(INVOKE.replace("TEXT", content)))["run_id"]
        return self.here.start(self.written(STREAM.replace("RUN", run_id)), "reader")


def start_server(here: Place, **env: str) -> Front:
    """Make a key, start the server as the page about nginx says, and return how it is called."""
    key = here.run(MAKE.replace("NAME", "nginx")).strip()
    here.start("./orchestrator", "server", INGRESS_URL="off", **env)
    here.up("http://localhost:8080/health")
    return Front(here, key)


def start_without_keys(here: Place, mode: str = "auto") -> Front:
    """Start the server without any key."""
    here.start(f"AUTH_MODE={mode} ./orchestrator", "server", INGRESS_URL="off")
    here.up("http://localhost:8080/health")
    return Front(here)


def start_silent_agent(here: Place, silence_s: float) -> None:
    """Start an agent that answers well after a silence."""
    (here.folder / "answer").write_text(ANSWER)
    program = ROOT / "tests" / "e2e" / "sample_agent.py"
    here.start(f"python3 {program} 8000 {silence_s} < answer", "agent")
    here.up("http://localhost:8000/")  # it knows only POST, and says so


def start_demo_agent(here: Place) -> None:
    here.start("python3 examples/demo_agent.py --port 8000", "agent")
    here.up("http://localhost:8000/health")


def follow_word_by_word(front: Front) -> str:
    """Follow a run of four words that come one by one; return all that was streamed."""
    reader = front.follow("slow 4")
    until(lambda: "event: agent_stream_delta" in reader.said(), "a first word")
    assert "event: run_done" not in reader.said()
    until(lambda: reader.process.poll() is not None, "the stream ends")
    assert reader.process.returncode == 0
    assert reader.said().count("event: agent_stream_delta") == 4
    assert reader.said().count("event: run_done") == 1
    return reader.said()


@CONFIGURATIONS
def test_words_pass_one_by_one(here: Place, server: str) -> None:
    front = start_server(here)
    start_demo_agent(here)
    start_nginx(here, server)
    said = follow_word_by_word(front)
    run_id = re.findall(r'"run_id":"(run_\w+)"', said)[0]
    again = STREAM.replace("RUN", run_id)
    rest = here.run(front.written(f'{again} -H "Last-Event-ID: 4"'))
    assert said.endswith(rest)
    assert rest.startswith("id: 5\n")
    code = " -o /dev/null -w '%{http_code}' "
    end = re.findall(r"^id: (\d+)$", said, re.MULTILINE)[-1]
    assert here.run(front.written(f'{again}{code}-H "Last-Event-ID: {end}"')) == "204"
    assert here.run(again.replace("KEY", code)) == "401"
    made = f"curl -s KEY -X POST http://localhost:8081/v1/sessions/s/tokens {JSON} -d '{{}}'"
    token = here.json(front.written(made))["token"]
    assert here.run(again.replace("KEY ", "") + f"?token={token}") == said


@CONFIGURATIONS
def test_without_keys_a_proxy_must_be_meant(here: Place, server: str) -> None:
    front = start_without_keys(here, "off")
    start_demo_agent(here)
    start_nginx(here, server)
    follow_word_by_word(front)


@CONFIGURATIONS
def test_a_stream_outlives_a_silent_agent(
    here: Place, server: str, request: pytest.FixtureRequest
) -> None:
    full = request.config.getoption("--full", default=False)
    silence_s = 180 if full else 6
    front = start_server(here, **({} if full else {"KEEP_ALIVE_MS": "500"}))
    start_silent_agent(here, silence_s)
    start_nginx(here, server, "" if full else "proxy_read_timeout 2s;")
    reader = front.follow("Hello")
    until(lambda: reader.process.poll() is not None, "the stream ends", silence_s + 15)
    assert reader.process.returncode == 0
    assert len(re.findall("^:", reader.said(), re.MULTILINE)) >= 6
    assert "at last" in reader.said()
    assert "event: run_done" in reader.said()


def test_it_is_the_comments_that_keep_the_stream_open(here: Place) -> None:
    front = start_server(here, KEEP_ALIVE_MS="60000")
    start_silent_agent(here, 60)
    start_nginx(here, BARE, "proxy_read_timeout 2s;")
    reader = front.follow("Hello")
    until(lambda: reader.process.poll() is not None, "nginx cuts the stream")
    assert "event: run_done" not in reader.said()


FOREIGN = {
    "a page": '-H "Origin: https://evil.example"',
    "a page without a name": '-H "Origin: null"',
    "a rebound name": '-H "Host: rebound.example:8080"',
    "a proxy": '-H "X-Forwarded-For: 203.0.113.9"',
    "another proxy": '-H "Forwarded: for=203.0.113.9"',
    "an old proxy": '-H "Via: 1.1 cache"',
    "one more": '-H "X-Real-IP: 203.0.113.9"',
    "a program of old": "--http1.0",
}
"""What comes from elsewhere, as curl says it."""


def refused(here: Place, base: str, words: str) -> None:
    """Call from elsewhere: the answer is 403, names the command, and nothing was done."""
    for what in ("/v1/agents", f'/v1/keys {JSON} -d \'{{"name":"x","role":"admin"}}\''):
        said = here.run(f"curl -s -w ' %{{http_code}}' {words} {base}{what}")
        assert said.endswith(" 403"), (words, said)
        assert MAKE in said, (words, said)
        assert '"code":"forbidden"' in said


def test_a_server_without_keys_refuses_who_is_not_of_this_machine(here: Place) -> None:
    front = start_without_keys(here)
    base = "http://localhost:8080"
    assert here.json(f"curl -s {base}/v1/agents") == {"agents": []}
    for own in ("localhost:3000", "127.0.0.1", "[::1]:8080"):
        assert here.json(f'curl -s -H "Origin: http://{own}" {base}/v1/agents') == {"agents": []}
    for words in FOREIGN.values():
        refused(here, base, words)
    assert here.json(f"curl -s {base}/v1/keys") == {"keys": []}
    front.key = here.run(MAKE.replace("NAME", "alice")).strip()
    for words in FOREIGN.values():
        call = f"curl -s KEY {words} {base}/v1/agents"
        assert here.json(front.written(call)) == {"agents": []}, words
        assert here.json(call.replace("KEY", ""))["code"] == "unauthorized", words


@CONFIGURATIONS
def test_a_server_without_keys_refuses_what_a_proxy_passes_on(here: Place, server: str) -> None:
    front = start_without_keys(here)
    start_nginx(here, server)
    base = "http://localhost:8081"
    for words in ("", FOREIGN["a page"], '-H "Host: rebound.example:8081"', '-H "Host: localhost"'):
        refused(here, base, words)
    front.key = here.run(MAKE.replace("NAME", "alice")).strip()
    assert here.json(front.written(f"curl -s KEY {base}/v1/agents")) == {"agents": []}
    start_demo_agent(here)
    follow_word_by_word(front)


AGENTS = "http://localhost:8081/v1/agents"


@CONFIGURATIONS
def test_an_agent_comes_and_goes_with_its_own_key(here: Place, server: str) -> None:
    front = start_server(here)
    start_demo_agent(here)
    start_nginx(here, server)
    admin, made = front.key, MAKE.replace("admin NAME", "agent --agent demo demo")
    own, other = (
        here.run(words, ORCHESTRATOR_KEY=admin).strip()
        for words in (made, made.replace("demo", "else"))
    )

    def call(words: str, key: str = own) -> dict[str, Any]:
        """Return what nginx passes back for a call with a key."""
        said = here.json(f'curl -s -H "Authorization: Bearer {key}" {words}')
        assert isinstance(said, dict)
        return said

    beat = f'-X POST {AGENTS}/demo/heartbeat {JSON} -d \'{{"instance_id":"NAME"}}\''
    for name in ("one", "two"):
        registered = call(REGISTER.replace("curl -s KEY ", "").replace(
            '"agent_id"', f'"instance_id":"{name}","agent_id"'))  # fmt: skip
        assert registered["ok"] is True
        assert call(beat.replace("NAME", name)) == {"ok": True}
    assert call(beat, other)["code"] == "forbidden"
    assert call(beat, "ok_live_wrong")["code"] == "unauthorized"
    assert call(f"-X POST '{AGENTS}/demo:drain?instance_id=one'") == {"ok": True}
    shown = call(f"{AGENTS}/demo", admin)["instances"]
    assert [one["status"] for one in shown] == ["draining", "healthy"]
    assert call(f"-X DELETE '{AGENTS}/demo?instance_id=two'") == {"ok": True}
    asked = INVOKE.replace("curl -s KEY ", "").replace("TEXT", "hi")
    assert call(asked, admin)["code"] == "agent_draining"
    assert call(f"-X DELETE '{AGENTS}/demo?instance_id=one'") == {"ok": True}
    assert call(beat)["code"] == "agent_not_found"
    assert call(AGENTS, admin) == {"agents": []}
