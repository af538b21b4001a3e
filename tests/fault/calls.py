"""Invocations of a scripted agent, and what they cost this process."""

import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import TypeAlias

import pytest

from orchestrator.clients.agents import agent_clients
from orchestrator.clients.http import HTTPClient
from orchestrator.clients.streaming import StreamingClient
from orchestrator.core.errors import AgentFailure
from orchestrator.core.frames import Delta, Done, Frame, singly
from orchestrator.ports import AgentCall
from orchestrator.testing.fake_agent import (
    FakeAgent,
    calling,
    event,
)
from orchestrator.testing.open_egress import OpenEgress
from orchestrator.world import RealWorld

MIB = 1 << 20
CHUNKED = (("Transfer-Encoding", "chunked"),)
HI = event("delta", text="hi")
BYE = event("done", usage={"tokens": 1})
SAID: list[Frame] = [Delta("hi"), Done(usage={"tokens": 1})]


class Names:
    """The real world with a phone book of the test's own."""

    def __init__(self, **book: list[str]) -> None:
        real = RealWorld()
        self.now, self.monotonic, self.noise = real.now, real.monotonic, real.noise
        self.sleep = real.sleep
        self._book = book

    def boot(self) -> str:
        return ""

    async def resolve(self, host: str, port: int) -> list[tuple[int, str]]:
        """Return the addresses of a name of the book."""
        if host not in self._book:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        families = (socket.AF_INET, socket.AF_INET6)
        return [(int(families[":" in address]), address) for address in self._book[host]]


Client: TypeAlias = HTTPClient | StreamingClient
DRIVERS: dict[str, type[Client]] = {"own": StreamingClient, "aiohttp": HTTPClient}


class Chosen:
    """Which client a test is run with; the fixture `driver` runs it with both."""

    name = "own"


def client(egress: OpenEgress | None = None, world: Names | RealWorld | None = None) -> Client:
    """Return an HTTP client that may dial whatever the test does not forbid."""
    return DRIVERS[Chosen.name](world or RealWorld(), egress or OpenEgress())


async def frames_of(http: Client, call: AgentCall, protocol: str = "native") -> list[Frame]:
    """Return every frame of one invocation."""
    frames: list[Frame] = []
    async with agent_clients(http)[protocol].open(call) as stream:
        async for batch in stream:
            frames += singly(batch)
    return frames


def opened(
    http: Client, agent: FakeAgent
) -> AbstractAsyncContextManager[AsyncIterator[Sequence[Frame]]]:
    """Return the open stream of one invocation."""
    return agent_clients(http)["native"].open(calling(agent.url))


async def failure_of(http: Client, call: AgentCall) -> AgentFailure:
    """Return how an invocation fails."""
    with pytest.raises(AgentFailure) as caught:
        await frames_of(http, call)
    return caught.value


def resident() -> int:
    """Return the bytes of memory this process holds now."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * 4096


def descriptors() -> int:
    """Return how many files and sockets this process holds open."""
    return len(list(Path("/proc/self/fd").iterdir()))
