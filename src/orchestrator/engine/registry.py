"""The agents that may be invoked: who they are, where they live, whether they are well."""

import re

import msgspec
from msgspec.structs import replace

from orchestrator.core import values
from orchestrator.core.errors import AgentNotFound, InvalidRequest
from orchestrator.core.ops import Delete, Op, Patch, Put, Refused
from orchestrator.core.records import Agent, Retry, Timeouts
from orchestrator.engine.ledger import Ledger
from orchestrator.engine.limits import TENANT
from orchestrator.engine.transcript import credential_context
from orchestrator.ports import Egress, SecretBox, Where

HEARTBEAT_S = 30
"""How often an agent that sends heartbeats should send one."""
UNHEALTHY_AFTER_MS = 90_000
"""The silence after which an instance that has ever sent a heartbeat counts as unhealthy."""
PROTOCOLS = ("native", "openai", "json")
ON_LOST = ("fail", "retry")
_ENDPOINT_MAX = 2048
_ATTEMPTS_MAX = 100
_TOKEN = re.compile(r"[!-~]+")


class Registration(msgspec.Struct, frozen=True, kw_only=True):
    """What an agent says of itself, or its operator for it."""

    tenant: str = TENANT
    agent_id: str
    name: str
    endpoint: str
    capabilities: list[str] = []
    auth_token: str | None = None
    instance_id: str | None = None
    version: str | None = None
    protocol: str = "native"
    timeouts: Timeouts = Timeouts()
    retry: Retry = Retry()
    on_lost: str = "fail"
    max_concurrency: int | None = None


class Registry:
    """The agents of a tenant."""

    def __init__(self, ledger: Ledger, egress: Egress, box: SecretBox) -> None:
        self._ledger = ledger
        self._store = ledger.store
        self._egress = egress
        self._box = box

    async def register(self, wanted: Registration) -> Agent:
        """Add or update an agent; its `created_at` and last heartbeat are kept.

        Raises InvalidRequest for a malformed field and EgressRefused for an address that must
        not be dialled.
        """
        self._check(wanted)
        now = self._ledger.world.now()
        context = credential_context(wanted.tenant, wanted.agent_id)
        token = wanted.auth_token
        agent = Agent(
            tenant=wanted.tenant,
            agent_id=wanted.agent_id,
            name=wanted.name,
            endpoint=wanted.endpoint.rstrip("/"),
            protocol=wanted.protocol,
            capabilities=wanted.capabilities,
            auth=self._box.seal(token, context) if token else None,
            version=wanted.version,
            instance_id=wanted.instance_id,
            timeouts=wanted.timeouts,
            retry=wanted.retry,
            on_lost=wanted.on_lost,
            max_concurrency=wanted.max_concurrency,
            created_at=now,
            updated_at=now,
        )
        await self._store.commit(Op(writes=(Put(agent, keep=("created_at", "last_heartbeat")),)))
        return await self.get(wanted.agent_id, wanted.tenant)

    def _check(self, wanted: Registration) -> None:
        values.name(wanted.agent_id, "agent_id")
        _check_endpoint(wanted.endpoint)
        self._egress.check(wanted.endpoint, operator=True)
        if wanted.protocol not in PROTOCOLS:
            raise InvalidRequest(f"protocol must be one of {', '.join(PROTOCOLS)}")
        if wanted.on_lost not in ON_LOST:
            raise InvalidRequest(f"on_lost must be one of {', '.join(ON_LOST)}")
        values.positive(wanted.max_concurrency, "max_concurrency")
        if not 1 <= wanted.retry.max_attempts <= _ATTEMPTS_MAX:
            raise InvalidRequest(f"retry.max_attempts must be 1 to {_ATTEMPTS_MAX}")
        _check_times(wanted)
        if wanted.auth_token and not _TOKEN.fullmatch(wanted.auth_token):
            raise InvalidRequest(
                "auth.token must be printable ASCII without spaces, so that it can be sent as a "
                "header"
            )

    async def get(self, agent_id: str, tenant: str = TENANT) -> Agent:
        """Return an agent with its present status; raises AgentNotFound."""
        agent = await self._store.get(Agent, tenant, agent_id)
        if agent is None:
            raise AgentNotFound(f"agent {agent_id} not found")
        return self._judged(agent)

    async def list(
        self,
        tenant: str = TENANT,
        *,
        capability: str | None = None,
        status: str | None = None,
    ) -> "list[Agent]":
        """Return the agents, by name; `status` is compared in any case."""
        where: list[Where] = [("tenant", "=", tenant)]
        if capability is not None:
            where.append(("capabilities", "has", capability))
        found = await self._store.find(Agent, *where, order="agent_id", limit=10_000)
        judged = [self._judged(agent) for agent in found]
        return [a for a in judged if status is None or a.status == status.lower()]

    async def heartbeat(self, agent_id: str, tenant: str = TENANT) -> Agent:
        """Note that an agent lives."""
        return await self._change(agent_id, tenant, last_heartbeat=self._ledger.world.now())

    async def drain(self, agent_id: str, tenant: str = TENANT) -> Agent:
        """Mark an agent as leaving; a later registration marks it as back."""
        return await self._change(agent_id, tenant, draining=True)

    async def remove(self, agent_id: str, tenant: str = TENANT) -> None:
        """Forget an agent; its runs and their logs stay."""
        op = Op(writes=(Delete(Agent, (tenant, agent_id), required=True),))
        if isinstance((await self._store.commit(op))[0], Refused):
            raise AgentNotFound(f"agent {agent_id} not found")

    async def _change(self, agent_id: str, tenant: str, **changes: object) -> Agent:
        op = Op(writes=(Patch(Agent, (tenant, agent_id), changes, required=True),))
        if isinstance((await self._store.commit(op))[0], Refused):
            raise AgentNotFound(f"agent {agent_id} not found")
        return await self.get(agent_id, tenant)

    def _judged(self, agent: Agent) -> Agent:
        return replace(agent, status=health(agent, self._ledger.world.now()))


def health(agent: Agent, now: int) -> str:
    """Return `draining`, `healthy`, `unhealthy`; `unknown` without any heartbeat ever."""
    if agent.draining:
        return "draining"
    if agent.last_heartbeat is None:
        return "unknown"
    return "healthy" if now - agent.last_heartbeat <= UNHEALTHY_AFTER_MS else "unhealthy"


def _check_endpoint(endpoint: str) -> None:
    if len(endpoint) > _ENDPOINT_MAX:
        raise InvalidRequest(f"endpoint may have {_ENDPOINT_MAX} characters")
    if "?" in endpoint or "#" in endpoint:
        raise InvalidRequest(
            "endpoint must have no query and no fragment: the path of an invocation is put behind "
            "it; send a secret as `auth`"
        )


def _check_times(wanted: Registration) -> None:
    times = (
        ("timeouts.invoke_ms", wanted.timeouts.invoke_ms),
        ("timeouts.first_byte_ms", wanted.timeouts.first_byte_ms),
        ("timeouts.idle_ms", wanted.timeouts.idle_ms),
        ("retry.backoff_ms", wanted.retry.backoff_ms),
        ("retry.max_backoff_ms", wanted.retry.max_backoff_ms),
    )
    for field, value in times:
        values.positive(value, field)
