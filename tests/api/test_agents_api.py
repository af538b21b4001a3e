"""Instances over HTTP: registered, seen, drained, removed, and heard of in every way."""

import asyncio
from typing import Any
from urllib.parse import urlsplit

import msgspec
import pytest

from orchestrator.api.beats import Beats
from orchestrator.core.access import Caller

from ..engine.rig import until
from .conftest import Client, Database
from .keyed import ADMIN, bearer, keyed, made_key

AGENT = {"agent_id": "a", "name": "A", "endpoint": "http://127.0.0.1:1"}
BEAT = "/v1/agents/a/heartbeat"


async def register(api: Client, *names: str, headers: Any = None, **fields: Any) -> None:
    """Register instances of the agent."""
    for name in names:
        body = AGENT | {"instance_id": name} | fields
        assert (await api.post("/v1/agents/register", body, **(headers or {}))).status == 200


async def instances(api: Client, **headers: str) -> dict[str, Any]:
    """Return the agent's instances as they are shown."""
    shown = (await api.get("/v1/agents/a", **headers)).json["instances"]
    return {one["instance_id"]: one for one in shown}


async def kept(api: Client, *requests: bytes) -> list[tuple[int, Any]]:
    """Send requests on one connection, one after the other, and return what each is answered."""
    parts = urlsplit(api.url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    answers = []
    try:
        for data in requests:
            writer.write(data)
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            length = int(head.split("content-length:")[1].split("\r\n")[0])
            body = await reader.readexactly(length)
            answers.append((int(head.split()[1]), msgspec.json.decode(body)))
    finally:
        writer.close()
    return answers


def beat(api: Client, body: bytes = b"", /, *, path: str = BEAT, **headers: Any) -> bytes:
    """Return a heartbeat as an agent sends it that keeps its connection."""
    sent = {"Host": api.netloc, "Content-Length": str(len(body))} | headers
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in sent.items())
    return f"POST {path} HTTP/1.1\r\n{lines}\r\n".encode() + body


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Note which heartbeats went the short ways."""
    seen: list[str] = []
    before = Beats._is_taken

    def is_taken(self: Beats, caller: Caller, agent_id: str, body: bytes) -> bool:
        good = before(self, caller, agent_id, body)
        if good:
            seen.append(agent_id)
        return good

    monkeypatch.setattr(Beats, "_is_taken", is_taken)
    return seen


async def test_instances_are_shown_one_by_one(api: Client) -> None:
    await register(api, "x", "y", version="1.0", max_concurrency=2)
    shown = await instances(api)
    assert shown["x"] == {
        "instance_id": "x", "endpoint": "http://127.0.0.1:1", "status": "unknown",
        "last_heartbeat_at": None, "in_flight": 0, "version": "1.0", "max_concurrency": 2,
    }  # fmt: skip
    assert (await api.post(BEAT, {"instance_id": "y"})).status == 200
    shown = await instances(api)
    assert [shown[name]["status"] for name in ("x", "y")] == ["unknown", "healthy"]
    agent = (await api.get("/v1/agents/a")).json
    assert agent["status"] == "healthy"
    assert agent["last_heartbeat_at"] == shown["y"]["last_heartbeat_at"]
    for status in ("healthy", "Healthy", "HEALTHY"):
        found = (await api.get(f"/v1/agents?status={status}")).json["agents"]
        assert [one["agent_id"] for one in found] == ["a"], status
    refused = await api.get("/v1/agents?status=alive")
    assert refused.status == 400
    assert "healthy, unknown, degraded, unhealthy, draining" in refused.json["error"]


async def test_an_instance_is_named_in_the_body_or_the_query(api: Client) -> None:
    await register(api, "x", "y", "z")
    assert (await api.post("/v1/agents/a:drain", {"instance_id": "x"})).status == 200
    assert (await api.post("/v1/agents/a/drain?instance_id=y")).status == 200
    assert [one["status"] for one in (await instances(api)).values()] == [
        "draining", "draining", "unknown",
    ]  # fmt: skip
    both = await api.post("/v1/agents/a/drain?instance_id=y", {"instance_id": "x"})
    assert (both.status, both.json["code"]) == (400, "invalid_request")
    for path in ("/v1/agents/a/drain?instance_id=q", f"{BEAT}?instance_id=q", BEAT):
        answer = await api.post(path)
        assert (answer.status, answer.json["code"]) == (404, "not_found"), path
    assert (await api.call("DELETE", "/v1/agents/a?instance_id=q")).status == 404
    assert (await api.call("DELETE", "/v1/agents/a?instance_id=x")).status == 200
    assert (await api.call("DELETE", "/v1/agents/a", {"instance_id": "z"})).status == 200
    assert list(await instances(api)) == ["y"]
    await register(api, "y")
    assert (await instances(api))["y"]["status"] == "unknown"  # back from its drain
    assert (await api.call("DELETE", "/v1/agents/a")).status == 200
    assert (await api.get("/v1/agents/a")).status == 404


async def test_heartbeats_go_the_short_way_and_are_written(api: Client, taken: list[str]) -> None:
    await register(api, "x", "y")
    body = b'{"instance_id":"x"}'
    answers = await kept(
        api,
        beat(api, body),
        beat(api),  # of several instances: which?
        beat(api, b'{"instance_id":"q"}'),
        beat(api, b"{not json"),
        beat(api, b'{"instance_id":"y"}', Content_Type="application/json"),
        beat(api, path="/v1/agents/b/heartbeat"),
        f"GET {BEAT} HTTP/1.1\r\nHost: {api.netloc}\r\n\r\n".encode(),
        beat(api, b'{"instance_id":"x"}' + b" " * 2000),
        beat(api, path=f"{BEAT}?instance_id=x"),
        beat(api, body),
    )
    assert [status for status, _ in answers] == [200, 404, 404, 400, 200, 404, 405, 200, 200, 200]
    assert answers[0][1] == {"ok": True}
    assert taken == ["a", "a", "a"]
    assert {one["status"] for one in (await instances(api)).values()} == {"healthy"}


async def test_a_foreign_page_sends_no_heartbeat(api: Client, taken: list[str]) -> None:
    await register(api, "x")
    answers = await kept(
        api,
        beat(api, Origin="http://evil.example"),
        beat(api, Host="evil.example"),
        beat(api, X_Forwarded_For="1.2.3.4"),
        beat(api),
    )
    assert [status for status, _ in answers] == [403, 403, 403, 200]
    assert taken == ["a"]


async def test_a_heartbeat_shows_the_key_that_it_needs(
    database: Database, taken: list[str]
) -> None:
    async with keyed(database) as api:
        await register(api, "x", headers=bearer(ADMIN))
        mine = (await made_key(api, role="agent", agent_id="a"))["key"]
        other = (await made_key(api, role="agent", agent_id="b"))["key"]
        viewer = (await made_key(api, role="viewer"))["key"]
        abroad = (await made_key(api, role="agent", tenant="abroad"))["key"]
        made = await made_key(api, role="agent")
        limited = (await made_key(api, role="agent", limits={"heartbeat": "1/m"}))["key"]
        asked = [
            *(bearer(key) for key in (mine, mine, other, viewer, abroad, made["key"], ADMIN)),
            {"X_API_Key": mine}, {"X_API_Key": mine, **bearer(viewer)}, {}, bearer("ok_live_no"),
            bearer(limited), bearer(limited),
        ]  # fmt: skip
        answers = await kept(api, *(beat(api, b"", **headers) for headers in asked))
        assert [status for status, _ in answers] == [
            200, 200, 403, 403, 404, 200, 200, 200, 400, 401, 401, 200, 429,
        ]  # fmt: skip
        assert len(taken) == 5
        key_id = made["info"]["key_id"]
        assert (await api.post(f"/v1/keys/{key_id}:revoke", **bearer(ADMIN))).status == 200
        assert (await kept(api, beat(api, **bearer(made["key"]))))[0][0] == 401


async def test_requests_that_come_behind_each_other_are_answered_in_order(api: Client) -> None:
    await register(api, "x")
    parts = urlsplit(api.url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    get = f"GET /v1/agents/a HTTP/1.1\r\nHost: {api.netloc}\r\n\r\n".encode()
    writer.write(beat(api) + get + beat(api) + beat(api)[:-20])
    writer.write(beat(api)[-20:])
    said = []
    for _ in range(4):
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = int(head.split("content-length:")[1].split("\r\n")[0])
        said.append(msgspec.json.decode(await reader.readexactly(length)))
    assert [one.get("ok", "agent") for one in said] == [True, "agent", True, True]
    writer.close()


async def test_a_removed_agent_hears_of_it(api: Client) -> None:
    await register(api, "x")
    assert (await kept(api, beat(api)))[0][0] == 200
    assert (await api.call("DELETE", "/v1/agents/a")).status == 200
    assert (await kept(api, beat(api)))[0][0] == 404


async def test_metrics_tell_of_instances(api: Client) -> None:
    await register(api, "x")
    await until(lambda: api.rig.engine.stats()["instances_unknown"] >= 1)
    text = (await api.get("/metrics")).raw.decode()
    for name in ("retries", "ejections", "trials", "probes", "probes_failed", "queue_waits"):
        assert f"orchestrator_agent_{name}_total " in text
    for name in ("healthy", "unknown", "degraded", "unhealthy", "draining"):
        assert f"orchestrator_instances_{name} " in text
