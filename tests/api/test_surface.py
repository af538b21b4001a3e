"""The API's own surface: agents, documents, refusals, limits."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from openapi_spec_validator import validate

from orchestrator.api import APISettings, create_app
from orchestrator.api.document import render
from orchestrator.api.routes import ROUTES
from orchestrator.core.events import CATALOGUE

from .conftest import Client, Database, answered_in_front, invocation, serving

ROOT = Path(__file__).parents[2]
AGENT = {"agent_id": "a", "name": "A", "endpoint": "http://localhost:1/"}


async def test_agents_are_registered_seen_changed_and_removed(api: Client) -> None:
    answer = await api.post("/v1/agents/register", AGENT | {"auth": {"token": "secret"}})
    assert answer.json["ok"] is True
    shown = (await api.get("/v1/agents/a")).json
    assert (shown["endpoint"], shown["status"]) == ("http://localhost:1", "unknown")
    assert "secret" not in str(shown)
    again = await api.post("/v1/agents/register", AGENT | {"name": "B", "capabilities": ["x"]})
    assert again.status == 200
    changed = (await api.get("/v1/agents/a")).json
    assert (changed["name"], changed["created_at"]) == ("B", shown["created_at"])
    assert (await api.post("/v1/agents/a/heartbeat")).json == {"ok": True}
    listed = (await api.get("/v1/agents?capability=x&status=HEALTHY")).json["agents"]
    assert [agent["agent_id"] for agent in listed] == ["a"]
    assert set(listed[0]) == {"agent_id", "name", "status", "last_heartbeat_at", "capabilities"}
    assert (await api.post("/v1/agents/a:drain")).status == 200
    refused = await api.post("/internal/invoke", invocation(agent_id="a"))
    assert (refused.status, refused.json["code"]) == (503, "agent_draining")
    assert refused.headers["retry-after"] == "1"
    assert (await api.call("DELETE", "/v1/agents/a")).status == 200
    assert (await api.get("/v1/agents/a")).json["code"] == "agent_not_found"


@answered_in_front
@pytest.mark.parametrize("field", ["agent_id", "name", "endpoint"])
async def test_registration_names_what_is_missing(api: Client, field: str) -> None:
    body = {name: value for name, value in AGENT.items() if name != field}
    answer = await api.post("/v1/agents/register", body)
    assert (answer.status, answer.json["error"]) == (400, f"{field} is required")


@pytest.mark.parametrize(
    "wrong",
    [
        {"agent_id": "a b"},
        {"protocol": "smoke"},
        {"on_lost": "cry"},
        {"timeouts": {"nap_ms": 5}},
        {"retry": {"max_attempts": 0}},
        {"max_concurrency": 0},
        {"auth": {"type": "basic", "token": "x"}},
    ],
)
async def test_a_registration_that_breaks_a_rule_is_refused(
    api: Client, wrong: dict[str, Any]
) -> None:
    assert (await api.post("/v1/agents/register", AGENT | wrong)).status == 400


@answered_in_front
@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": ""},
        {"Origin": "https://evil.example"},
        {"X_Forwarded_For": "10.0.0.1"},
        {"Forwarded": "for=10.0.0.1"},
        {"Via": "1.1 proxy"},
        {"X_Real_IP": "10.0.0.1"},
    ],
)
async def test_a_keyless_server_refuses_pages_and_proxies(
    api: Client, headers: dict[str, str]
) -> None:
    answer = await api.get("/v1/agents", **headers)
    if headers == {"Host": ""}:
        assert answer.status in (400, 403)
        return
    assert (answer.status, answer.json["code"]) == (403, "forbidden")
    assert "AUTH_MODE=off" in answer.json["error"]


@answered_in_front
async def test_auth_mode_off_lets_a_proxy_through(database: Database) -> None:
    async with serving(database, auth_mode="off") as api:
        assert (await api.get("/v1/agents", Host="x.example", Via="1.1 p")).status == 200
        async with api.open("GET", "/health", http="1.0") as (status, _, _):
            assert status == 200


@answered_in_front
async def test_http_1_0_is_refused_by_a_keyless_server(api: Client) -> None:
    async with api.open("GET", "/v1/agents", http="1.0") as (status, _, _):
        assert status == 403


async def test_unknown_paths_methods_and_sizes_have_a_code(api: Client) -> None:
    assert (await api.get("/nowhere")).json["code"] == "not_found"
    wrong = await api.call("DELETE", "/v1/runs")
    assert (wrong.status, wrong.json["code"]) == (405, "method_not_allowed")
    assert wrong.headers["allow"] == "GET, POST"
    large = await api.post("/internal/invoke", invocation("x" * (1 << 20)))
    assert (large.status, large.json["code"]) == (413, "too_large")
    deep = await api.post("/internal/invoke", b'{"context":' + b"[" * 100_000)
    assert deep.json["error"] == "invalid request body"


@answered_in_front
async def test_headers_are_bounded_in_size(api: Client) -> None:
    async with api.open("GET", "/health", X_Big="x" * 70_000) as (status, _, _):
        assert status == 431
    assert (await api.get("/health", X_Big="x" * 60_000)).status == 200


@answered_in_front
async def test_headers_are_bounded_in_time(api: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.api.protocol.HEADER_S", 0.1)
    host, port = api.netloc.split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"GET /health HTTP/1.1\r\nHost: x")
    async with asyncio.timeout(5):
        assert (await reader.readline()).startswith(b"HTTP/1.1 408")
    writer.close()


async def test_unpaired_surrogates_and_bad_utf8_are_mended(api: Client) -> None:
    raw = b'{"session_id":"s","agent_id":"demo","input_message":{"content":"a\\ud83d \xff"}}'
    run_id = (await api.post("/internal/invoke", raw)).json["run_id"]
    await api.rig.engine.runs.wait(run_id, 5)
    events = (await api.get(f"/v1/runs/{run_id}/events")).json["events"]
    assert events[1]["payload"]["content"] == "a\ufffd \ufffd"


async def test_the_server_tells_about_itself(api: Client) -> None:
    health = await api.get("/health")
    assert (health.status, health.json["status"]) == (200, "healthy")
    assert set(health.json) == {"status", "version"}
    assert (await api.get("/health/live")).status == 200
    assert (await api.get("/health/ready")).json["status"] == "ready"
    metrics = (await api.get("/metrics")).raw
    assert b"orchestrator_runs_open 0.0" in metrics
    page = (await api.get("/docs")).raw.decode()
    document = (await api.get("/openapi.json")).json
    validate(document)
    for route in ROUTES:
        assert route.path in page
        assert document["paths"][route.path][route.method.lower()]["x-permission"]
    assert answers(document, "/v1/runs", "post") == {
        "200": "RunAnswer", "201": "RunAnswer", "202": "RunIdAnswer", "default": "ProblemAnswer",
    }  # fmt: skip
    assert answers(document, "/health", "get")["503"] == "HealthAnswer"
    assert answers(document, "/v1/sessions/{session_id}/events", "get") == {
        "200": "", "default": "ProblemAnswer",
    }  # fmt: skip
    assert answers(document, "/v1/runs/{run_id}/events/stream", "get")["204"] == ""
    headers = {
        (path, parameter["name"])
        for path, methods in document["paths"].items()
        for operation in methods.values()
        for parameter in operation.get("parameters", [])
        if parameter["in"] == "header"
    }
    assert {
        ("/v1/runs", "Idempotency-Key"), ("/internal/invoke", "Idempotency-Key"),
        ("/v1/agents/{agent_id}:invoke", "Idempotency-Key"),
        ("/v1/runs/{run_id}/events", "Last-Event-ID"),
        ("/v1/sessions/{session_id}/events", "Last-Event-ID"),
    } <= headers  # fmt: skip
    assert document["components"]["schemas"]["MessageBody"]["required"] == ["content"]
    union = document["components"]["schemas"]["EventAnswer"]["discriminator"]["mapping"]
    assert set(union) == set(CATALOGUE)
    api.rig.engine.drain()
    assert (await api.get("/health/ready")).status == 503
    assert (await api.get("/health")).status == 200
    refused = await api.post("/internal/invoke", invocation())
    assert (refused.status, refused.json["code"]) == (503, "draining")


def answers(document: dict[str, Any], path: str, method: str) -> dict[str, str]:
    """Return the shape of each status of an operation, empty where it has no JSON."""
    found = document["paths"][path][method]["responses"]
    return {
        status: answer.get("content", {}).get("application/json", {}).get("schema", {})
        .get("$ref", "").rpartition("/")[2]
        for status, answer in found.items()
    }  # fmt: skip


def test_the_written_api_is_the_table() -> None:
    assert (ROOT / "API.md").read_text() == render(), (
        "run: python -m orchestrator.api.document > API.md"
    )


def test_operation_ids_are_unique_and_every_route_has_a_permission() -> None:
    names = [route.name for route in ROUTES]
    assert len(names) == len(set(names))
    nobody = ROUTES[0].__class__(
        method="GET", path="/x", handler=ROUTES[0].handler, permission="", name="x", summary="x"
    )
    with pytest.raises(ValueError, match="no permission"):
        create_app(None, APISettings(), (nobody,))  # type: ignore[arg-type]  # never called
