"""Whoever leaves, and however slow: the socket closes at once and memory stays bounded."""

import asyncio
from collections.abc import Sequence

import pytest

from orchestrator.core.frames import Delta, singly
from orchestrator.testing.fake_agent import (
    FakeAgent,
    Peer,
    answering_json,
    calling,
    head,
)

from .calls import (
    BYE,
    HI,
    MIB,
    SAID,
    client,
    descriptors,
    failure_of,
    frames_of,
    opened,
    resident,
)

pytestmark = pytest.mark.usefixtures("driver")


async def test_leaving_closes_the_connection_at_once() -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(head() + HI)
        await peer.hung_up()

    async with FakeAgent(script) as agent, client() as http:
        async with opened(http, agent) as stream:
            assert await anext(stream) == [Delta("hi")]
            assert agent.peers[0].closed_at is None
        async with asyncio.timeout(1):
            await agent.peers[0].hung_up()


async def test_done_closes_the_connection_though_the_agent_goes_on() -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(head() + HI + BYE)
        await peer.hung_up()

    async with FakeAgent(script) as agent, client() as http:
        assert await frames_of(http, calling(agent.url)) == SAID
        async with asyncio.timeout(1):
            await agent.peers[0].hung_up()


@pytest.mark.parametrize(
    "sent", [[], [b"HTTP/1.1 200 OK\r\nX: "], [head()], [head() + HI], [head(500)]]
)
async def test_cancelling_closes_the_connection_at_once(sent: Sequence[bytes]) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(*sent)
        await peer.hung_up()

    async with FakeAgent(script) as agent, client() as http:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await frames_of(http, calling(agent.url))
        async with asyncio.timeout(1):
            await agent.peers[0].hung_up()
    assert len(agent.requests) == 1


async def test_cancelling_does_not_wait_for_an_agent_that_does_not_read() -> None:
    deaf = asyncio.Event()

    async def script(peer: Peer) -> None:
        peer.transport.pause_reading()
        await deaf.wait()
        peer.transport.resume_reading()
        await peer.hung_up()

    size = 32 * MIB
    async with FakeAgent(script) as agent, client() as http:
        before = descriptors()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await frames_of(http, calling(agent.url, content="x" * size))
        async with asyncio.timeout(1):
            while descriptors() > before + 1:  # the agent's own end of the connection
                await asyncio.sleep(0.01)
        deaf.set()
        async with asyncio.timeout(2):
            await agent.peers[0].hung_up()
        assert 0 < agent.peers[0].unread < size, "the rest of the request was given up"


async def test_a_large_request_arrives_whole() -> None:
    async with FakeAgent(answering_json("hi")) as agent, client() as http:
        for _ in range(2):
            await frames_of(http, calling(agent.url, content="x" * 8 * MIB), "json")
    assert agent.connections == 1
    assert len(agent.requests[1].json()["input_message"]["content"]) == 8 * MIB


async def test_closing_the_client_closes_what_is_idle() -> None:
    async with FakeAgent(answering_json("hi")) as agent:
        async with client() as http:
            await frames_of(http, calling(agent.url), "json")
            assert agent.peers[0].closed_at is None
        async with asyncio.timeout(1):
            await agent.peers[0].hung_up()


async def test_a_gigabyte_without_a_newline_costs_little() -> None:
    piece = b"x" * (256 * 1024)

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(head(), *[piece] * 4096)

    before = resident()
    async with FakeAgent(script) as agent, client() as http:
        failure = await failure_of(http, calling(agent.url))
        grown = resident() - before
    assert failure.code == "agent_protocol"
    assert MIB < agent.peers[0].sent < 64 * MIB, "given up long before the gigabyte"
    assert grown < 32 * MIB


async def test_a_slow_reader_stops_a_fast_agent() -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(head(), *[HI * 4096] * 100_000)

    before = resident()
    async with FakeAgent(script) as agent, client() as http, opened(http, agent) as stream:
        await anext(stream)
        async with asyncio.timeout(10):
            while not agent.peers[0].stuck:
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.2)
        assert agent.peers[0].stuck, "the agent has to wait"
        assert resident() - before < 32 * MIB
        frames = 0
        while frames < 300_000:
            frames += len(list(singly(await anext(stream))))
        assert resident() - before < 32 * MIB


async def test_endless_interim_answers_can_be_cancelled() -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        while True:
            await peer.send(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" * 100)

    before = resident()
    async with FakeAgent(script) as agent, client() as http:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                await frames_of(http, calling(agent.url))
        async with asyncio.timeout(1):
            await agent.peers[0].hung_up()
        assert resident() - before < 32 * MIB
    assert agent.peers[0].sent > 10_000
