"""Everything that the platform's first document shows works as it is written there.

The tables below are our own list of it: commands, variables, endpoints, events, tables, files.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

from ..processes import ROOT, until
from ..stores import Kept
from .place import Place, place

REGISTER = """curl -X POST http://localhost:8080/v1/agents/register \\
  -H "Content-Type: application/json" \\
  -d '{
    "agent_id": "demo_agent",
    "name": "Demo Agent",
    "endpoint": "http://localhost:8000"
  }'"""
INVOKE = """curl -X POST http://localhost:8080/internal/invoke \\
  -H "Content-Type: application/json" \\
  -d '{
    "session_id": "sess_001",
    "agent_id": "demo_agent",
    "input_message": {
      "role": "user",
      "content": "Hello, how are you?"
    }
  }'"""
EVENTS = "curl http://localhost:8080/v1/runs/run_abc123/events"
MESSAGES = "curl http://localhost:8080/v1/sessions/sess_001/messages"
HEALTH = "curl http://localhost:8080/health"

SAMPLE = (
    'event: delta\ndata: {"text": "Hello", "run_id": "run_001"}\n\n'
    'event: delta\ndata: {"text": " world!", "run_id": "run_001"}\n\n'
    'event: done\ndata: {"final_message": "Hello world!", "usage": {"tokens": 10}}'
)
"""The agent protocol's sample, which ends without a newline."""

ENDPOINTS = (
    ("POST", "/internal/invoke"),
    ("GET", "/v1/runs/:run_id/events"),
    ("GET", "/v1/sessions/:session_id/messages"),
    ("POST", "/v1/agents/register"),
    ("GET", "/v1/agents"),
    ("GET", "/health"),
)
GOOD_RUN = (
    "run_started",
    "user_input",
    "agent_invoke_started",
    "agent_stream_delta",
    "agent_invoke_done",
    "run_done",
)
TABLES = ("sessions", "messages", "runs", "events", "agents")
GONE = (
    "Go 1.21+",
    "cd orchestrator",
    "go mod tidy",
    "go build -o orchestrator .",
    "go test ./...",
    'CGO_ENABLED=1 go build -ldflags="-s -w" -o orchestrator .',
    "main.go",
    "domain/models.go",
    "store/store.go",
    "store/sqlite.go",
    "api/handler.go",
    "agentclient/client.go",
    "config/config.go",
)
"""What has no place here any more; the "Go → here" page says what took it."""
ROADMAP = ("M0", "M1", "proxy", "tools", "client tools", "approvals")


class Story(NamedTuple):
    """What the document's commands answered, in its order, against one server."""

    place: Place
    health: Any
    registered: Any
    invoked: Any
    events: list[dict[str, Any]]
    messages: Any


def replayed(here: Place, run_id: str) -> list[dict[str, Any]]:
    """Return the run's log once it has ended, read with the document's own command."""
    command = EVENTS.replace("run_abc123", run_id)

    def ended() -> list[dict[str, Any]]:
        events: list[dict[str, Any]] = here.json(command)["events"]
        last = events[-1]["type"]
        return events if last in {"run_done", "run_failed", "run_cancelled"} else []

    found: list[dict[str, Any]] = until(ended, f"run {run_id} ends")
    return found


def invoke(here: Place, content: str, agent: str = "demo_agent") -> list[dict[str, Any]]:
    """Invoke an agent with a message of the test's own; return the log of the ended run."""
    command = INVOKE.replace("Hello, how are you?", content).replace("demo_agent", agent)
    return replayed(here, here.json(command)["run_id"])


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory, kept_together: Kept) -> Iterator[Story]:
    """Run the document's commands against `./orchestrator` with at most a database configured."""
    with place(tmp_path_factory.mktemp("seed"), kept_together) as here:
        here.start(f"python3 {ROOT}/tests/e2e/ingress.py 8090", "ingress")
        here.start("python3 examples/demo_agent.py --port 8000", "agent")
        here.up("http://localhost:8000/health")
        server = here.start("./orchestrator", "server")
        here.up("http://localhost:8080/health")
        health, registered, invoked = (
            here.json(HEALTH),
            here.json(REGISTER),
            here.json(INVOKE),
        )
        events = replayed(here, invoked["run_id"])
        yield Story(here, health, registered, invoked, events, here.json(MESSAGES))
        assert server.stop() == 0, server.said()


def test_the_server_says_that_it_is_well(story: Story) -> None:
    assert story.health["status"] == "healthy"
    assert story.health["version"]


def test_an_agent_is_registered(story: Story) -> None:
    assert story.registered["ok"] is True
    assert isinstance(story.registered["registered_at"], int)


def test_an_invocation_answers_with_its_ids(story: Story) -> None:
    run_id = story.invoked["run_id"]
    expected = {"run_id": run_id, "session_id": "sess_001", "agent_id": "demo_agent"}
    assert story.invoked == expected
    assert run_id.startswith("run_")


def test_the_replay_has_every_event_in_order(story: Story) -> None:
    types = [event["type"] for event in story.events]
    assert tuple(dict.fromkeys(types)) == GOOD_RUN
    assert [event["seq"] for event in story.events] == list(range(1, len(types) + 1))
    assert all(event["run_id"] == story.invoked["run_id"] for event in story.events)
    fields = {"event_id", "run_id", "seq", "ts", "type", "payload"}
    assert all(set(event) == fields for event in story.events)


def test_the_messages_are_the_conversation(story: Story) -> None:
    asked, answered = story.messages["messages"][:2]
    assert (asked["role"], asked["content"]) == ("user", "Hello, how are you?")
    assert answered["role"] == "assistant"
    deltas = [e["payload"]["text"] for e in story.events if e["type"] == "agent_stream_delta"]
    assert answered["content"] == "".join(deltas).strip()
    assert story.messages["has_more"] is False


def test_a_failing_run_says_so(story: Story) -> None:
    last = invoke(story.place, "fail")[-1]
    assert last["type"] == "run_failed"
    assert last["payload"]["code"] == "demo_failure"


@pytest.mark.parametrize(("method", "path"), ENDPOINTS)
def test_every_endpoint_is_there(story: Story, method: str, path: str) -> None:
    run, session = story.invoked["run_id"], story.invoked["session_id"]
    url = f"http://localhost:8080{path}".replace(":run_id", run).replace(":session_id", session)
    status = story.place.run(f"curl -s -o answer.json -w '%{{http_code}}' -X {method} {url} -d ''")
    # Without a body a POST is refused by its own rule, which a missing route could not do.
    assert status == ("200" if method == "GET" else "400")


def test_the_agents_are_listed(story: Story) -> None:
    [agent] = [
        found
        for found in story.place.json("curl http://localhost:8080/v1/agents")["agents"]
        if found["agent_id"] == "demo_agent"
    ]
    assert agent["name"] == "Demo Agent"


def test_live_events_are_pushed_to_the_ingress(story: Story) -> None:
    log = story.place.folder / "ingress.log"
    run_id = story.invoked["run_id"]

    def pushed() -> list[str]:
        mine = [line for line in log.read_text().splitlines() if run_id in line]
        return mine if mine and '"type":"done"' in mine[-1].replace(" ", "") else []

    lines = until(pushed, "the ingress is told of the run's end")
    assert '"delta"' in lines[1]
    assert all('"session_id":"sess_001"' in line.replace(" ", "") for line in lines)


def test_the_tables_can_be_read_with_sql(story: Story) -> None:
    ask, file = story.place.kept.ask, story.place.folder / "orchestrator.db"
    for table in TABLES:
        assert ask(file, f"SELECT count(*) FROM {table}")[0][0] > 0  # noqa: S608  # our own list
    mine = f"WHERE run_id = '{story.invoked['run_id']}' ORDER BY seq"
    rows = ask(file, f"SELECT seq, type, payload, event_id, ts FROM events {mine}")  # noqa: S608  # the server's
    assert [row[1] for row in rows] == [event["type"] for event in story.events]


def test_the_agent_protocol_sample_word_for_word(story: Story) -> None:
    here = story.place
    (here.folder / "sample").write_text(SAMPLE)
    here.start(f"python3 {ROOT}/tests/e2e/sample_agent.py 9000 < sample", "sample")
    here.run(REGISTER.replace("demo_agent", "sample_agent").replace("8000", "9000"))
    here.up("-X POST http://localhost:9000/invoke -d ''")
    events = invoke(here, "Hello", agent="sample_agent")
    types = [event["type"] for event in events]
    assert types == [*GOOD_RUN[:4], "agent_stream_delta", *GOOD_RUN[4:]]
    assert events[-1]["payload"]["final_message"] == "Hello world!"
    assert events[-1]["payload"]["usage"] == {"tokens": 10}


@pytest.fixture
def configured(tmp_path_factory: pytest.TempPathFactory, kept: Kept) -> Iterator[Place]:
    """Hand out a place in which nothing runs yet but the demo agent."""
    with place(tmp_path_factory.mktemp("configured"), kept) as here:
        here.start("python3 examples/demo_agent.py --port 8000", "agent")
        here.up("http://localhost:8000/health")
        yield here


@pytest.mark.only_sqlite("the document's example names a file")
def test_the_example_of_configuration(configured: Place) -> None:
    command = 'HTTP_PORT=9000 DATABASE_URL="file:data.db" ./orchestrator'
    server = configured.start(command, "server")
    assert "healthy" in configured.up("http://localhost:9000/health")
    configured.run(REGISTER.replace("8080", "9000"))
    assert server.stop() == 0, server.said()
    assert (configured.folder / "data.db").exists()
    assert not (configured.folder / "orchestrator.db").exists()


def test_the_other_variables(configured: Place) -> None:
    env = {"AGENT_TIMEOUT_MS": "300", "LOG_LEVEL": "debug", "INGRESS_URL": "off"}
    server = configured.start("./orchestrator", "server", **env)
    configured.up("http://localhost:8080/health")
    configured.run(REGISTER)
    last = invoke(configured, "hang")[-1]
    assert last["payload"]["code"] == "agent_timeout"
    assert server.stop() == 0, server.said()


@pytest.mark.only_sqlite("it is refused before a database is opened")
@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("HTTP_PORT", "eighty"),
        ("DATABASE_URL", "mysql://elsewhere/db"),
        ("INGRESS_URL", "nowhere"),
        ("AGENT_TIMEOUT_MS", "soon"),
        ("LOG_LEVEL", "loud"),
    ],
)
def test_a_malformed_variable_is_named(configured: Place, variable: str, value: str) -> None:
    server = configured.start("./orchestrator", "refused", **{variable: value})
    code = until(lambda: server.process.poll() is not None and server.process, "it refuses")
    assert code.returncode != 0
    assert variable in server.said()
    assert "Traceback" not in server.said()
    assert not list(configured.folder.glob("*.db"))


@pytest.mark.parametrize("thing", [*GONE, *ROADMAP])
def test_what_is_gone_has_its_row(thing: str) -> None:
    assert thing in (ROOT / "docs" / "from-go.md").read_text()


def test_what_the_document_refers_to_is_there() -> None:
    assert "## Agent protocol" in (ROOT / "API.md").read_text()
    assert "internal use only" in (ROOT / "LICENSE").read_text().lower()
