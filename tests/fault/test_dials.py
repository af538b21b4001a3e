"""What is dialled, what is not, and what it means when nobody answers."""

import pytest

from orchestrator.core.secret import Secret
from orchestrator.testing.fake_agent import (
    FakeAgent,
    Peer,
    answering,
    calling,
    head,
)
from orchestrator.testing.open_egress import OpenEgress

from .calls import BYE, HI, SAID, Names, client, failure_of, frames_of

pytestmark = pytest.mark.usefixtures("driver")


async def test_nobody_listens() -> None:
    async with FakeAgent(answering()) as agent:
        endpoint = agent.url
    async with client() as http:
        failure = await failure_of(http, calling(endpoint))
    assert (failure.code, failure.retryable) == ("agent_unavailable", True)
    assert f"no connection to {endpoint}" in failure.message


async def test_the_name_leads_nowhere() -> None:
    for world in (Names(), Names(agent=[])):
        async with client(world=world) as http:
            failure = await failure_of(http, calling("http://agent:80"))
        assert (failure.code, failure.retryable) == ("agent_unavailable", True)
        assert "no connection to http://agent" in failure.message


async def test_no_tls_where_tls_was_asked_for() -> None:
    async def script(peer: Peer) -> None:
        await peer.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await peer.hung_up()

    async with FakeAgent(script) as agent, client() as http:
        failure = await failure_of(http, calling(agent.url.replace("http", "https")))
        assert (failure.code, failure.retryable) == ("agent_unavailable", True)
    assert agent.connections == 1


async def test_forbidden_addresses_are_not_dialled() -> None:
    egress = OpenEgress(forbidden=["127.0.0.1"])
    world = Names(agent=["127.0.0.1"])
    async with FakeAgent(answering(head(), BYE)) as agent, client(egress, world) as http:
        for host in ("127.0.0.1", "agent"):
            failure = await failure_of(http, calling(f"http://{host}:{agent.port}"))
            assert (failure.code, failure.retryable) == ("agent_unavailable", False)
            assert f"{host} leads to 127.0.0.1, which this test forbids" in failure.message
        for host in ("2130706433", "127.1", "0x7f.1"):
            failure = await failure_of(http, calling(f"http://{host}:{agent.port}"))
            assert failure.code == "agent_unavailable"
    assert agent.connections == 0


async def test_of_several_addresses_each_is_judged_and_each_allowed_one_tried() -> None:
    egress = OpenEgress(forbidden=["127.0.0.2"])
    world = Names(agent=["127.0.0.2", "::1", "127.0.0.3", "127.0.0.1"])
    async with FakeAgent(answering(head(), HI, BYE)) as agent, client(egress, world) as http:
        assert await frames_of(http, calling(f"http://agent:{agent.port}")) == SAID
    addresses = ("127.0.0.2", "::1", "127.0.0.3", "127.0.0.1")
    assert egress.judged == [("agent", address) for address in addresses]


async def test_every_dial_is_judged_again() -> None:
    egress = OpenEgress()
    async with FakeAgent(answering(head(), BYE)) as agent:
        world = Names(agent=["127.0.0.1"])
        async with client(egress, world) as http:
            call = calling(f"http://agent:{agent.port}")
            await frames_of(http, call)
            egress.forbidden = frozenset(["127.0.0.1"])
            assert (await failure_of(http, call)).code == "agent_unavailable"
    assert agent.connections == 1


async def test_the_environments_proxy_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    async with FakeAgent(answering(head(), HI, BYE)) as agent, FakeAgent(answering()) as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        monkeypatch.setenv("http_proxy", proxy.url)
        async with client() as http:
            assert await frames_of(http, calling(agent.url)) == SAID
    assert proxy.connections == 0


async def test_a_credential_that_cannot_be_a_header_is_refused() -> None:
    async with FakeAgent(answering(head(), BYE)) as agent, client() as http:
        failure = await failure_of(http, calling(agent.url, credential=Secret("a\r\nX-Evil: b")))
        assert (failure.code, failure.retryable) == ("agent_unavailable", False)
    assert agent.requests == []
