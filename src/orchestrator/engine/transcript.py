"""What an agent is told of the conversation so far, and the request that carries it."""

from typing import Any

import msgspec

from orchestrator.core.errors import AgentFailure
from orchestrator.core.records import Agent, Invocation, Message, Run
from orchestrator.core.secret import Secret
from orchestrator.core.trace import SPAN_BYTES, Trace, of_run
from orchestrator.engine.limits import (
    TRANSCRIPT_BYTES,
    TRANSCRIPT_MESSAGES,
    EngineSettings,
)
from orchestrator.engine.tokens import Tokens
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


class Calls:
    """Builds the request of an invocation from what the store knows."""

    def __init__(
        self, store: Store, world: World, box: SecretBox, tokens: Tokens, settings: EngineSettings
    ) -> None:
        self._store = store
        self._world = world
        self._box = box
        self._tokens = tokens
        self._settings = settings

    def place(self, run: Run, invocation: Invocation) -> Trace:
        """Return the place in its run's trace of an attempt that is about to be made."""
        whole = of_run(run.run_id, invocation.traceparent, invocation.tracestate)
        return whole.below(self._world.noise(SPAN_BYTES))

    async def call(self, run: Run, agent: Agent, invocation: Invocation, place: Trace) -> AgentCall:
        """Return the request for the attempt of `run` that is told of at `place`.

        `agent` is the agent as it is at the instance that is called.
        """
        return AgentCall(
            endpoint=agent.endpoint,
            operator=agent.operator,
            agent_id=agent.agent_id,
            session_id=run.session_id,
            run_id=run.run_id,
            attempt=run.attempt,
            role=invocation.role,
            content=invocation.content,
            messages=await earlier_messages(self._store, run),
            context=invocation.context or {},
            credential=self.credential(agent),
            traceparent=place.traceparent,
            tracestate=place.state,
            base_url=self._settings.base_url,
            run_token=self._tokens.for_attempt(run, agent, invocation),
        )

    def credential(self, agent: Agent) -> Secret | None:
        """Return what the agent is shown, unsealed; raises AgentFailure where no key opens it."""
        if agent.auth is None:
            return None
        try:
            context = credential_context(agent.tenant, agent.agent_id)
            return Secret(self._box.unseal(agent.auth, context))
        except ValueError as error:
            raise AgentFailure(
                "agent_unavailable",
                f"the credential of agent {agent.agent_id} cannot be read with the present "
                "SECRET_KEY; register the agent again with its `auth`, or restore the key",
                retryable=False,
            ) from error


def credential_context(tenant: str, agent_id: str) -> str:
    """Return the place that an agent's sealed credential is bound to."""
    return f"agent:{tenant}/{agent_id}"
