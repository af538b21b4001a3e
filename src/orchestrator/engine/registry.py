"""The agents that may be invoked: who they are, where they live, whether they are well."""

import re
from collections import Counter

import msgspec
from msgspec.structs import replace

from orchestrator.core import access, values
from orchestrator.core.access import TENANT, Caller
from orchestrator.core.errors import AgentNotFound, EgressRefused, Forbidden, InvalidRequest
from orchestrator.core.ops import Delete, Op, Outcome, Patch, Put, Refused
from orchestrator.core.records import Agent, Retry, Timeouts
from orchestrator.core.secret import Secret
from orchestrator.engine.audit import Audit
from orchestrator.engine.ledger import Ledger
from orchestrator.engine.transcript import credential_context
from orchestrator.ports import Egress, SecretBox, Where
from orchestrator.telemetry import get_logger

log = get_logger(__name__)

HEARTBEAT_S = 30
"""How often an agent that sends heartbeats should send one."""
UNHEALTHY_AFTER_MS = 90_000
"""The silence after which an instance that has ever sent a heartbeat counts as unhealthy."""
PROTOCOLS = ("native", "openai", "json")
ON_LOST = ("fail", "retry")
AGENTS_MAX = 10_000
"""Agents that one list shows."""
_ENDPOINT_MAX = 2048
_ATTEMPTS_MAX = 100
_TOKEN = re.compile(r"[!-~]+")
_LOCAL = access.local(TENANT)


class Registration(msgspec.Struct, frozen=True, kw_only=True):
    """What an agent says of itself, or its operator for it."""

    tenant: str = TENANT
    agent_id: str
    name: str
    endpoint: str
    capabilities: list[str] = []
    auth_token: Secret | None = None
    instance_id: str | None = None
    version: str | None = None
    protocol: str = "native"
    timeouts: Timeouts = Timeouts()
    retry: Retry = Retry()
    on_lost: str = "fail"
    max_concurrency: int | None = None
    scopes: list[str] | None = None


class Resealed(msgspec.Struct, frozen=True):
    """How many stored secrets were sealed anew, and how many no key of ours opens."""

    changed: int
    unreadable: int


class Registry:
    """The agents of a tenant."""

    def __init__(self, ledger: Ledger, egress: Egress, box: SecretBox, audit: Audit) -> None:
        self._ledger = ledger
        self._audit = audit
        self._store = ledger.store
        self._egress = egress
        self._box = box

    async def register(self, wanted: Registration, by: Caller = _LOCAL) -> Agent:
        """Add or update an agent for `by`; its `created_at` and last heartbeat are kept.

        Raises InvalidRequest for a malformed field and EgressRefused for an address that must
        not be dialled: a private one is an operator's to register.
        """
        self._check(wanted, by)
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
            auth=self._box.seal(token.reveal(), context) if token else None,
            version=wanted.version,
            instance_id=wanted.instance_id,
            timeouts=wanted.timeouts,
            retry=wanted.retry,
            on_lost=wanted.on_lost,
            max_concurrency=wanted.max_concurrency,
            operator=by.operates(TENANT),
            scopes=await self._scopes(wanted, by),
            created_at=now,
            updated_at=now,
        )
        put = Put(agent, keep=("created_at", "last_heartbeat"))
        await self._audit.carry_out(
            by, "agent.register", agent.agent_id, put,
            endpoint=agent.endpoint, has_auth=token is not None, protocol=agent.protocol,
            operator=agent.operator, scopes=agent.scopes,
        )  # fmt: skip
        try:
            return await self.get(wanted.agent_id, wanted.tenant)
        except AgentNotFound:  # somebody removed it behind us; it was registered all the same
            return self._judged(agent)

    async def _scopes(self, wanted: Registration, by: Caller) -> list[str] | None:
        """Return what the agent's tokens may do: an agent only narrows what its operator gave."""
        if "keys:write" in by.permissions:
            return wanted.scopes
        known = await self._store.get(Agent, wanted.tenant, wanted.agent_id, deciding=True)
        given = known.scopes if known is not None else None
        if given is None or wanted.scopes is None:
            return wanted.scopes if given is None else given
        return sorted(set(given) & set(wanted.scopes))

    def _check(self, wanted: Registration, by: Caller) -> None:
        values.name(wanted.agent_id, "agent_id")
        _check_owner(wanted.agent_id, by)
        _check_endpoint(wanted.endpoint)
        try:
            self._egress.check(wanted.endpoint, operator=by.operates(TENANT))
        except EgressRefused:
            self._audit.security("egress_refused", f"{by.name} for {wanted.agent_id}", by.tenant)
            raise
        if wanted.scopes is not None:
            access.scopes(wanted.scopes, access.RUN_SCOPES)
        if wanted.protocol not in PROTOCOLS:
            raise InvalidRequest(f"protocol must be one of {', '.join(PROTOCOLS)}")
        if wanted.on_lost not in ON_LOST:
            raise InvalidRequest(f"on_lost must be one of {', '.join(ON_LOST)}")
        values.positive(wanted.max_concurrency, "max_concurrency")
        if not 1 <= wanted.retry.max_attempts <= _ATTEMPTS_MAX:
            raise InvalidRequest(f"retry.max_attempts must be 1 to {_ATTEMPTS_MAX}")
        _check_times(wanted)
        if wanted.auth_token and not _TOKEN.fullmatch(wanted.auth_token.reveal()):
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
        found = await self._store.find(Agent, *where, order="agent_id", limit=AGENTS_MAX)
        judged = [self._judged(agent) for agent in found]
        return [a for a in judged if status is None or a.status == status.lower()]

    async def heartbeat(self, agent_id: str, by: Caller = _LOCAL) -> Agent:
        """Note that an agent lives; nobody reads that in an audit."""
        _check_owner(agent_id, by)
        patch = {"last_heartbeat": self._ledger.world.now()}
        lives = Patch(Agent, (by.tenant, agent_id), patch, required=True)
        return await self._found(agent_id, by, (await self._store.commit(Op(writes=(lives,))))[0])

    async def drain(self, agent_id: str, by: Caller = _LOCAL) -> Agent:
        """Mark an agent as leaving; a later registration marks it as back."""
        _check_owner(agent_id, by)
        leaves = Patch(Agent, (by.tenant, agent_id), {"draining": True}, required=True)
        outcome = await self._audit.carry_out(by, "agent.drain", agent_id, leaves)
        return await self._found(agent_id, by, outcome)

    async def remove(self, agent_id: str, by: Caller = _LOCAL) -> None:
        """Forget an agent; its runs and their logs stay."""
        _check_owner(agent_id, by)
        gone = Delete(Agent, (by.tenant, agent_id), required=True)
        if isinstance(await self._audit.carry_out(by, "agent.remove", agent_id, gone), Refused):
            raise AgentNotFound(f"agent {agent_id} not found")

    async def _found(self, agent_id: str, by: Caller, outcome: Outcome) -> Agent:
        if isinstance(outcome, Refused):
            raise AgentNotFound(f"agent {agent_id} not found")
        return await self.get(agent_id, by.tenant)

    async def reseal(self, by: Caller) -> Resealed:
        """Seal the stored credentials with the key that seals now: the tenant's, or everybody's.

        One that no key opens stays as it is; its agent cannot be called until it registers again.
        """
        where: list[Where] = [("auth", "!=", None)]
        if not by.root:
            where.append(("tenant", "=", by.tenant))
        done: Counter[str] = Counter()
        for agent in await self._store.find(Agent, *where, limit=AGENTS_MAX):
            done[await self._resealed(agent)] += 1
        resealed = Resealed(done["changed"], done["unreadable"])
        await self._audit.carry_out(
            by, "secrets.rotate", "agents", changed=done["changed"], unreadable=done["unreadable"]
        )
        return resealed

    async def _resealed(self, agent: Agent) -> str:
        context, sealed = credential_context(agent.tenant, agent.agent_id), agent.auth or b""
        if self._box.is_current(sealed, context):
            return "current"
        try:
            fresh = self._box.seal(self._box.unseal(sealed, context), context)
        except ValueError:
            log.warning("credential_unreadable", agent_id=agent.agent_id, tenant=agent.tenant)
            return "unreadable"
        key = (agent.tenant, agent.agent_id)
        await self._store.commit(Op(writes=(Patch(Agent, key, {"auth": fresh}, {"auth": sealed}),)))
        return "changed"

    def _judged(self, agent: Agent) -> Agent:
        return replace(agent, status=health(agent, self._ledger.world.now()))


def health(agent: Agent, now: int) -> str:
    """Return `draining`, `healthy`, `unhealthy`; `unknown` without any heartbeat ever."""
    if agent.draining:
        return "draining"
    if agent.last_heartbeat is None:
        return "unknown"
    return "healthy" if now - agent.last_heartbeat <= UNHEALTHY_AFTER_MS else "unhealthy"


def _check_owner(agent_id: str, by: Caller) -> None:
    if by.agent_id not in {None, agent_id}:
        raise Forbidden(f"this key is that of agent {by.agent_id} and changes no other")


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
