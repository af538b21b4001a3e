"""Tells the platform that an agent is there, goes on living, and leaves."""

import asyncio
import logging
import os
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final, Protocol

from orchestrator_sdk.async_client import AsyncClient
from orchestrator_sdk.background import beside
from orchestrator_sdk.errors import AgentNotFound, NotFound, OrchestratorError
from orchestrator_sdk.secret import Secret
from orchestrator_sdk.transport import Timeouts

log = logging.getLogger("orchestrator_sdk")

HEARTBEAT_S: Final = 30.0
LEAVING_S: Final = 5.0
_FIRST_S: Final = 0.5


class Registrable(Protocol):
    """What the platform is told of an agent."""

    @property
    def id(self) -> str: ...
    @property
    def instance_id(self) -> str: ...
    def registration(self, endpoint: str) -> dict[str, Any]: ...


@asynccontextmanager
async def registered(
    agent: Registrable,
    endpoint: str,
    *,
    url: str | None = None,
    key: str | Secret | None = None,
    heartbeat_s: float = HEARTBEAT_S,
) -> AsyncIterator[None]:
    """Keep an agent registered at `endpoint` while the body runs, and drain it at the end.

    `url` and `key` are ORCHESTRATOR_URL and ORCHESTRATOR_KEY where they are not given; without a
    url nothing happens. A platform that is away or refuses is tried again, and the agent answers
    meanwhile.
    """
    url = url or environment("ORCHESTRATOR_URL")
    if url is None:
        yield
        return
    patient = Timeouts(give_up=0.0, answer=10.0)
    async with AsyncClient(url, key or environment("ORCHESTRATOR_KEY"), timeouts=patient) as client:
        presence = _Presence(client, agent, endpoint, heartbeat_s)
        async with beside(presence.stay()):
            try:
                yield
            finally:
                await presence.leave()


class _Presence:
    def __init__(
        self, client: AsyncClient, agent: Registrable, endpoint: str, heartbeat_s: float
    ) -> None:
        self._client = client
        self._agent = agent
        self._endpoint = endpoint
        self._heartbeat_s = heartbeat_s
        self._known = False

    async def stay(self) -> None:
        """Register, then send heartbeats for ever."""
        wait_s = min(_FIRST_S, self._heartbeat_s)
        while True:
            try:
                await self._show()
                wait_s = self._heartbeat_s
            except OrchestratorError as error:
                log.warning("the platform does not take agent %s: %s", self._agent.id, error)
                wait_s = min(2 * wait_s, self._heartbeat_s)
            await asyncio.sleep(wait_s * (0.8 + secrets.randbelow(200) / 1000))

    async def _show(self) -> None:
        if not self._known:
            await self._client.register(**self._agent.registration(self._endpoint))
            self._known = True
        try:
            await self._client.heartbeat(self._agent.id, self._agent.instance_id)
        except AgentNotFound:
            self._known = False  # the platform has forgotten us: the next round registers
            raise
        except NotFound as error:
            log.warning("another instance answers as agent %s now: %s", self._agent.id, error)

    async def leave(self) -> None:
        """Ask for no more runs; where nobody answers, the platform finds out by itself."""
        if not self._known:
            return
        try:
            async with asyncio.timeout(LEAVING_S):
                await self._client.drain(self._agent.id, self._agent.instance_id)
        except (OrchestratorError, TimeoutError) as error:
            log.info("agent %s leaves without a word: %s", self._agent.id, error)


def environment(name: str) -> str | None:
    """Return a variable; an empty one counts as unset."""
    return os.environ.get(name) or None  # noqa: TID251  # the one place where this library looks
