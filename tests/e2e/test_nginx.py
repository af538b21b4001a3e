"""A real nginx in front, with nothing but `proxy_pass` and with the configuration that we ship."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ..processes import ROOT, Running, until
from .place import Place, place

PAGE = (ROOT / "docs" / "behind-nginx.md").read_text()
BARE = re.findall(r"^```nginx\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)[0]
SNIPPET = (ROOT / "deploy" / "nginx" / "orchestrator.conf").read_text()
CONFIGURATIONS = pytest.mark.parametrize("server", [BARE, SNIPPET], ids=["bare", "snippet"])

AROUND = """
{user}
daemon off;
master_process off;
error_log stderr warn;
pid nginx.pid;
events {{}}
http {{
    access_log off;
    client_body_temp_path temp-body;
    proxy_temp_path temp-proxy;
    fastcgi_temp_path temp-fastcgi;
    scgi_temp_path temp-scgi;
    uwsgi_temp_path temp-uwsgi;
    {timeout}
    {server}
}}
"""
ANSWER = 'event: done\ndata: {"final_message": "at last"}\n\n'
REGISTER = (
    'curl -s -X POST http://localhost:8081/v1/agents/register -H "Content-Type: application/json" '
    '-d \'{"agent_id":"demo","name":"Demo","endpoint":"http://localhost:8000"}\''
)
INVOKE = (
    'curl -s -X POST http://localhost:8081/internal/invoke -H "Content-Type: application/json" '
    '-d \'{"session_id":"s","agent_id":"demo","input_message":{"role":"user","content":"TEXT"}}\''
)
STREAM = "curl -sN http://localhost:8081/v1/runs/RUN/events/stream"


@pytest.fixture
def here(tmp_path: Path, program: Callable[[str], Path]) -> Iterator[Place]:
    """Hand out a place of its own, in which nginx can be started."""
    program("nginx")
    with place(tmp_path) as found:
        yield found


def start_nginx(here: Place, server: str, timeout: str = "") -> None:
    """Start nginx with one server block in front of port 8080."""
    user = "user root;" if here.prefix else ""  # the only user there is in a network of our own
    configuration = AROUND.format(user=user, server=server, timeout=timeout)
    (here.folder / "nginx.conf").write_text(here.here(configuration))
    here.start(f"nginx -p {here.folder} -c {here.folder}/nginx.conf", "nginx")
    here.up("http://localhost:8081/health")


def start_server(here: Place, **env: str) -> Running:
    """Start the server as the page about nginx says."""
    server = here.start("AUTH_MODE=off ./orchestrator", "server", INGRESS_URL="off", **env)
    here.up("http://localhost:8080/health")
    return server


def start_silent_agent(here: Place, silence_s: float) -> None:
    """Start an agent that answers well after a silence."""
    (here.folder / "answer").write_text(ANSWER)
    program = ROOT / "tests" / "e2e" / "sample_agent.py"
    here.start(f"python3 {program} 8000 {silence_s} < answer", "agent")
    here.up("http://localhost:8000/")  # it knows only POST, and says so


def follow(here: Place, content: str) -> Running:
    """Invoke the demo agent through nginx and follow the run, in the background, through nginx."""
    here.run(REGISTER)
    run_id = here.json(INVOKE.replace("TEXT", content))["run_id"]
    return here.start(STREAM.replace("RUN", run_id), "reader")


@CONFIGURATIONS
def test_words_pass_one_by_one(here: Place, server: str) -> None:
    start_server(here)
    here.start("python3 examples/demo_agent.py", "agent")
    here.up("http://localhost:8000/health")
    start_nginx(here, server)
    reader = follow(here, "slow 4")
    until(lambda: "event: agent_stream_delta" in reader.said(), "a first word")
    assert "event: run_done" not in reader.said()
    until(lambda: reader.process.poll() is not None, "the stream ends")
    assert reader.process.returncode == 0
    assert reader.said().count("event: agent_stream_delta") == 4
    assert reader.said().count("event: run_done") == 1


@CONFIGURATIONS
def test_a_stream_outlives_a_silent_agent(
    here: Place, server: str, request: pytest.FixtureRequest
) -> None:
    full = request.config.getoption("--full", default=False)
    silence_s = 180 if full else 6
    start_server(here, **({} if full else {"KEEP_ALIVE_MS": "500"}))
    start_silent_agent(here, silence_s)
    start_nginx(here, server, "" if full else "proxy_read_timeout 2s;")
    reader = follow(here, "Hello")
    until(lambda: reader.process.poll() is not None, "the stream ends", silence_s + 15)
    assert reader.process.returncode == 0
    assert len(re.findall("^:", reader.said(), re.MULTILINE)) >= 6
    assert "at last" in reader.said()
    assert "event: run_done" in reader.said()


def test_it_is_the_comments_that_keep_the_stream_open(here: Place) -> None:
    start_server(here, KEEP_ALIVE_MS="60000")
    start_silent_agent(here, 5)
    start_nginx(here, BARE, "proxy_read_timeout 2s;")
    reader = follow(here, "Hello")
    until(lambda: reader.process.poll() is not None, "nginx cuts the stream")
    assert "event: run_done" not in reader.said()


def test_a_server_without_keys_refuses_what_a_proxy_passes_on(here: Place) -> None:
    here.start("./orchestrator", "server", INGRESS_URL="off")
    here.up("http://localhost:8080/health")
    start_nginx(here, BARE)
    assert here.json("curl -s http://localhost:8081/v1/agents")["code"] == "forbidden"
    status = here.run("curl -s -o body -w '%{http_code}' http://localhost:8081/v1/agents")
    assert status == "403"
