"""The small calls: a probe of an agent's health, a push to the ingress, what Retry-After means."""

from typing import Any

import pytest

from orchestrator.clients.http import HTTPClient
from orchestrator.clients.probe import HTTPProbe
from orchestrator.clients.push import IngressPush
from orchestrator.clients.refusal import retry_after_ms
from orchestrator.core.errors import Unavailable
from orchestrator.ports import ProbeAnswer, PushAnswer
from orchestrator.testing.fake_agent import (
    FakeAgent,
    Peer,
    Script,
    answering,
    answering_json,
    head,
)
from orchestrator.testing.open_egress import OpenEgress
from orchestrator.world import RealWorld


def client() -> HTTPClient:
    """Return an HTTP client that may dial whatever it likes."""
    return HTTPClient(RealWorld(), OpenEgress())


async def probed(script: Script, credential: str | None = None) -> tuple[ProbeAnswer, FakeAgent]:
    """Return what a probe makes of a scripted agent."""
    async with FakeAgent(script) as agent, client() as http:
        answer = await HTTPProbe(http).probe(agent.url + "/", credential)
    return answer, agent


@pytest.mark.parametrize(
    ("said", "answer"),
    [
        ({"status": "healthy"}, ProbeAnswer("healthy")),
        (
            {"status": "OK", "version": "1.2", "capabilities": ["chat", 7, "tools"]},
            ProbeAnswer("healthy", "1.2", ("chat", "tools")),
        ),
        ({"status": "degraded", "version": 3}, ProbeAnswer("unhealthy")),
        (["words"], ProbeAnswer("healthy")),
        ({"capabilities": "x" * 100_000}, ProbeAnswer("healthy")),
    ],
)
async def test_a_probe_reads_what_a_200_says(said: Any, answer: ProbeAnswer) -> None:
    found, agent = await probed(answering_json(said), "token")
    assert found == answer
    (request,) = agent.requests
    assert (request.method, request.path) == ("GET", "/health")
    assert request.headers["authorization"] == "Bearer token"


@pytest.mark.parametrize(
    ("script", "status"),
    [
        (answering_json({}, 404), "unknown"),
        (answering_json({}, 405), "unknown"),
        (answering_json({}, 501), "unknown"),
        (answering_json({}, 500), "unhealthy"),
        (answering_json({}, 302), "unhealthy"),
        (answering(head(200, "text/plain") + b"fine"), "healthy"),
        (answering(b"garbage\r\n\r\n"), "unhealthy"),
        (answering(), "unhealthy"),
    ],
)
async def test_a_probe_never_raises_for_a_sick_agent(script: Script, status: str) -> None:
    found, agent = await probed(script)
    assert found.status == status
    assert len(agent.requests) == 1


async def test_an_agent_that_is_not_there_is_unhealthy() -> None:
    async with FakeAgent(answering()) as agent:
        endpoint = agent.url
    async with client() as http:
        assert (await HTTPProbe(http).probe(endpoint, None)).status == "unhealthy"


async def test_a_push_is_the_contracts() -> None:
    async with FakeAgent(answering_json({"ok": True})) as ingress, client() as http:
        push = IngressPush(http, ingress.url + "/", key="k")
        assert await push.push("default", 's"1', [b'{"seq":1}']) == PushAnswer()
        assert await push.push("default", 's"1', [b'{"seq":2}', b'{"seq":3}']) == PushAnswer()
    first, second = ingress.requests
    assert (first.method, first.path) == ("POST", "/internal/send")
    assert first.headers["authorization"] == "Bearer k"
    assert first.json() == {"session_id": 's"1', "event": {"seq": 1}}
    assert second.json() == {"session_id": 's"1', "events": [{"seq": 2}, {"seq": 3}]}
    assert ingress.connections == 1, "connections are kept alive"


async def test_a_push_tells_what_the_ingress_wants() -> None:
    wishes = [("X-Batch", "1"), ("X-Ingress", "tail"), ("Content-Length", "0")]
    script = answering(head(headers=wishes))
    async with FakeAgent(script) as ingress, client() as http:
        answer = await IngressPush(http, ingress.url).push("default", "s", [b"{}"])
    assert answer == PushAnswer(batch=True, tails=True)


async def _hang_up_when_asked_twice(peer: Peer) -> None:
    await peer.request()
    await peer.send(head(headers=[("Content-Length", "0")]))
    await peer.request()
    peer.reset()


@pytest.mark.parametrize("script", [answering_json({}, 503), answering_json({}, 307), answering()])
async def test_a_push_that_was_not_taken_is_unavailable(script: Script) -> None:
    async with FakeAgent(script) as ingress, client() as http:
        with pytest.raises(Unavailable, match="ingress"):
            await IngressPush(http, ingress.url).push("default", "s", [b"{}"])
    assert len(ingress.requests) == 1


async def test_a_push_that_is_refused_names_the_key() -> None:
    async with FakeAgent(answering_json({}, 401)) as ingress, client() as http:
        with pytest.raises(Unavailable, match="INGRESS_KEY"):
            await IngressPush(http, ingress.url).push("default", "s", [b"{}"])


async def test_a_push_is_never_sent_twice_by_itself() -> None:
    async with FakeAgent(_hang_up_when_asked_twice) as ingress, client() as http:
        push = IngressPush(http, ingress.url)
        await push.push("default", "s", [b"{}"])
        with pytest.raises(Unavailable, match="hung up"):
            await push.push("default", "s", [b"{}"])
    assert (ingress.connections, len(ingress.requests)) == (1, 2)


NOON = "Tue, 24 Nov 2026 12:00:00 GMT"


@pytest.mark.parametrize(
    ("value", "date", "wait"),
    [
        ("7", "", 7000),
        (" 0 ", NOON, 0),
        ("Tue, 24 Nov 2026 12:00:30 GMT", NOON, 30_000),
        ("Tue, 24 Nov 2026 11:00:00 GMT", NOON, 0),
        ("Tue, 24 Nov 2026 12:00:30 GMT", "", None),
        ("Tue, 24 Nov 2026 12:00:30 -0000", NOON, None),
        ("soon", NOON, None),
        ("-1", NOON, None),
        ("²", NOON, None),
        ("", NOON, None),
    ],
)
def test_retry_after_is_seconds_or_a_date(value: str, date: str, wait: int | None) -> None:
    assert retry_after_ms(value, date) == wait
