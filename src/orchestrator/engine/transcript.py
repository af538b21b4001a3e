"""What an agent is told of the conversation so far, and the request that carries it."""

from typing import Any

import msgspec

from orchestrator.core.errors import AgentFailure
from orchestrator.core.records import Agent, Invocation, Message, Run
from orchestrator.engine.limits import (
    TRANSCRIPT_BYTES,
    TRANSCRIPT_MESSAGES,
    EngineSettings,
)
from orchestrator.ports import AgentCall, SecretBox, Store, World


async def earlier_messages(store: Store, run: Run) -> list[dict[str, Any]]:
    """Return the newest messages of the session before this run's own, oldest first.

    At most 50 and 256 KiB; a child run is told nothing of the transcript.
    """
    if run.parent_run_id is not None:
        return []
    # Deciding, for all of this was committed before the attempt began, which is on the disk.
    own = await store.get(Message, run.message_id, deciding=True)
    if own is None:
        return []
    newest = await store.find(
        Message,
        ("tenant", "=", run.tenant),
        ("session_id", "=", run.session_id),
        ("pos", "<", own.pos),
        order="-pos",
        limit=TRANSCRIPT_MESSAGES,
        deciding=True,
    )
    return _fitting([{"role": m.role, "content": m.content} for m in newest])


def _fitting(newest_first: list[dict[str, Any]]) -> list[dict[str, Any]]:
    room, kept = TRANSCRIPT_BYTES, []
    for message in newest_first:
        room -= len(msgspec.json.encode(message))
        if room < 0:
            break
        kept.append(message)
    return kept[::-1]


class Caller:
    """Builds the request of an invocation from what the store knows."""

    def __init__(
        self, store: Store, world: World, box: SecretBox, settings: EngineSettings
    ) -> None:
        self._store = store
        self._world = world
        self._box = box
        self._settings = settings

    async def call(self, run: Run, agent: Agent, invocation: Invocation) -> AgentCall:
        """Return the request for the attempt that `run` is in."""
        return AgentCall(
            endpoint=agent.endpoint,
            agent_id=agent.agent_id,
            session_id=run.session_id,
            run_id=run.run_id,
            attempt=run.attempt,
            role=invocation.role,
            content=invocation.content,
            messages=await earlier_messages(self._store, run),
            context=invocation.context or {},
            credential=self._credential(agent),
            traceparent=self._traceparent(invocation.traceparent),
            base_url=self._settings.base_url,
        )

    def _credential(self, agent: Agent) -> str | None:
        if agent.auth is None:
            return None
        try:
            return self._box.unseal(agent.auth, credential_context(agent.tenant, agent.agent_id))
        except ValueError as error:
            raise AgentFailure(
                "agent_unavailable",
                f"the credential of agent {agent.agent_id} cannot be read with the present "
                "SECRET_KEY; register the agent again with its `auth`, or restore the key",
                retryable=False,
            ) from error

    def _traceparent(self, given: str | None) -> str:
        trace = given.split("-")[1] if given else self._world.noise(16).hex()
        flags = given.split("-")[3][:2] if given else "01"
        return f"00-{trace}-{self._world.noise(8).hex()}-{flags}"


def credential_context(tenant: str, agent_id: str) -> str:
    """Return the place that an agent's sealed credential is bound to."""
    return f"agent:{tenant}/{agent_id}"
