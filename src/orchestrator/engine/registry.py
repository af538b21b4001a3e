"""The agents that may be invoked: who they are and where their instances live."""

import re
from collections import Counter
from collections.abc import Sequence

import msgspec
from msgspec.structs import replace

from orchestrator.core import access, values, wellness
from orchestrator.core.access import TENANT, Caller
from orchestrator.core.errors import (
    AgentNotFound,
    EgressRefused,
    Forbidden,
    InvalidRequest,
)
from orchestrator.core.ops import Committed, Delete, Op, Patch, Put, Write
from orchestrator.core.records import Agent, Instance, Retry, Timeouts
from orchestrator.core.secret import Secret
from orchestrator.core.wellness import DEFAULT
from orchestrator.engine.audit import Audit
from orchestrator.engine.heartbeats import Heartbeats, unknown
from orchestrator.engine.instances import AGENTS_MAX, Instances, Seen
from orchestrator.engine.ledger import Ledger
from orchestrator.engine.limits import INSTANCES_MAX
from orchestrator.engine.transcript import credential_context
from orchestrator.ports import Egress, SecretBox, Where
from orchestrator.telemetry import get_logger

log = get_logger(__name__)

PROTOCOLS = ("native", "openai", "json")
ON_LOST = ("fail", "retry")
_ENDPOINT_MAX = 2048
_INSTANCE_MAX = 256
_ATTEMPTS_MAX = 100
_TOKEN = re.compile(r"[!-~]+")
_LOCAL = access.local(TENANT)
_KEPT = ("endpoint", "version", "operator", "max_concurrency", "last_heartbeat", "created_at",
         "updated_at")  # fmt: skip


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


class Found(msgspec.Struct, frozen=True):
    """An agent with its present status, and its instances as this server sees them."""

    agent: Agent
    instances: list[Seen]


class Registry:
    """The agents of a tenant."""

    def __init__(
        self,
        ledger: Ledger,
        egress: Egress,
        box: SecretBox,
        audit: Audit,
        instances: Instances,
        heartbeats: Heartbeats,
    ) -> None:
        self._instances = instances
        self._heartbeats = heartbeats
        self._ledger = ledger
        self._audit = audit
        self._store = ledger.store
        self._egress = egress
        self._box = box

    async def register(self, wanted: Registration, by: Caller = _LOCAL) -> Agent:
        """Add or update an agent and one of its instances for `by`.

        `created_at` and the last heartbeat are kept. Raises InvalidRequest for a malformed field
        and EgressRefused for an address that must not be dialled: a private one is an operator's
        to register.
        """
        self._check(wanted, by)
        known = await self._store.get(Agent, wanted.tenant, wanted.agent_id, deciding=True)
        if known is None:
            await self._instances.bury((wanted.tenant, wanted.agent_id))
        name = wanted.instance_id or DEFAULT
        same = await self._counted(known, name)
        agent = self._agent(wanted, by, name, _scopes(wanted, by, known))
        keep = ("created_at", "last_heartbeat")
        await self._audit.carry_out(
            by, "agent.register", agent.agent_id,
            Put(agent, keep if same else keep[:1]), Put(wellness.of_agent(agent, name), keep),
            endpoint=agent.endpoint, has_auth=agent.auth is not None, protocol=agent.protocol,
            operator=agent.operator, scopes=agent.scopes, instance_id=wanted.instance_id,
        )  # fmt: skip
        await self._instances.changed(wanted.tenant, wanted.agent_id)
        try:
            return await self.get(wanted.agent_id, wanted.tenant)
        except AgentNotFound:  # somebody removed it behind us; it was registered all the same
            return agent

    async def _counted(self, known: Agent | None, name: str) -> bool:
        """Return whether the agent's row is that of this instance; refuses one too many."""
        if known is None:
            return True
        names = [one.instance_id for one in await self._instances.rows_of(known)]
        if name not in names and len(names) >= INSTANCES_MAX:
            raise InvalidRequest(
                f"agent {known.agent_id} has {INSTANCES_MAX} instances, which is the most; remove "
                "some"
            )
        return (known.instance_id or DEFAULT) == name

    def _agent(
        self, wanted: Registration, by: Caller, name: str, scopes: list[str] | None
    ) -> Agent:
        now = self._ledger.world.now()
        context = credential_context(wanted.tenant, wanted.agent_id)
        token = wanted.auth_token
        return Agent(
            tenant=wanted.tenant,
            agent_id=wanted.agent_id,
            name=wanted.name,
            endpoint=wanted.endpoint.rstrip("/"),
            protocol=wanted.protocol,
            capabilities=wanted.capabilities,
            auth=self._box.seal(token.reveal(), context) if token else None,
            version=wanted.version,
            instance_id=name,
            timeouts=wanted.timeouts,
            retry=wanted.retry,
            on_lost=wanted.on_lost,
            max_concurrency=wanted.max_concurrency,
            operator=by.operates(TENANT),
            scopes=scopes,
            created_at=now,
            updated_at=now,
        )

    def _check(self, wanted: Registration, by: Caller) -> None:
        values.name(wanted.agent_id, "agent_id")
        instance_id = wanted.instance_id or ""
        if len(instance_id) > _INSTANCE_MAX or not instance_id.isprintable():
            raise InvalidRequest(
                f"instance_id may have at most {_INSTANCE_MAX} characters, all of them printable"
            )
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
        return (await self.look(agent_id, tenant)).agent

    async def look(self, agent_id: str, tenant: str = TENANT) -> Found:
        """Return an agent and its instances; raises AgentNotFound."""
        agent = await self._known(agent_id, tenant)
        instances = await self._instances.seen(agent)
        return Found(_judged(agent, instances), instances)

    async def _known(self, agent_id: str, tenant: str) -> Agent:
        agent = await self._store.get(Agent, tenant, agent_id)
        if agent is None:
            raise AgentNotFound(f"agent {agent_id} not found")
        return agent

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
        seen = await self._instances.seen_of_all(tenant, found)
        judged = [_judged(agent, seen[agent.agent_id]) for agent in found]
        return [a for a in judged if status is None or a.status == status.lower()]

    async def heartbeat(
        self, agent_id: str, by: Caller = _LOCAL, instance_id: str | None = None
    ) -> None:
        """Note that an instance lives, for a moment only in memory; nobody audits that.

        Raises AgentNotFound, NotFound for an instance that is not registered, and Forbidden.
        """
        _check_owner(agent_id, by)
        await self._heartbeats.hear(by.tenant, agent_id, instance_id)

    def beat(self, agent_id: str, by: Caller, instance_id: str | None = None) -> bool:
        """Do as `heartbeat` where nobody need be asked; False when `heartbeat` has to say more."""
        if by.agent_id not in {None, agent_id}:
            return False
        return self._heartbeats.take(by.tenant, agent_id, instance_id)

    async def drain(
        self, agent_id: str, by: Caller = _LOCAL, instance_id: str | None = None
    ) -> None:
        """Mark an instance as leaving, or all of them; a later registration brings it back."""
        _check_owner(agent_id, by)
        while not await self._drained(agent_id, by, instance_id):
            continue  # it was changed in this very moment: look again

    async def _drained(self, agent_id: str, by: Caller, instance_id: str | None) -> bool:
        agent = await self._known(agent_id, by.tenant)
        instances = await self._instances.rows_of(agent)
        leaving = _named(instances, agent_id, instance_id)
        own = agent.instance_id or DEFAULT
        writes: list[Write] = [_same_own(agent)]
        writes += [_leaving(one, own=one.instance_id == own) for one in leaving]
        if all(one.draining or one in leaving for one in instances):
            writes.append(Patch(Agent, (by.tenant, agent_id), {"draining": True}))
        return await self._carry_out(by, "agent.drain", agent_id, writes, instance_id)

    async def remove(
        self, agent_id: str, by: Caller = _LOCAL, instance_id: str | None = None
    ) -> None:
        """Forget an instance; with the last one, or without an id, the agent. Its runs stay."""
        _check_owner(agent_id, by)
        while not await self._removed(agent_id, by, instance_id):
            continue  # the same

    async def _removed(self, agent_id: str, by: Caller, instance_id: str | None) -> bool:
        agent = await self._known(agent_id, by.tenant)
        instances = await self._instances.rows_of(agent)
        leaving = _named(instances, agent_id, instance_id)
        if len(leaving) == len(instances):
            key = (by.tenant, agent_id)
            writes: list[Write] = [Delete(Agent, key, required=True), Delete(Instance, key)]
            if instance_id is not None:  # and nobody has registered another one meanwhile
                writes.insert(0, _same_own(agent))
        else:
            writes = removal(agent, instances, leaving)
        return await self._carry_out(by, "agent.remove", agent_id, writes, instance_id)

    async def _carry_out(
        self, by: Caller, action: str, agent_id: str, writes: Sequence[Write], instance: str | None
    ) -> bool:
        """Return whether it was done; False when what it was decided on does not hold any more."""
        outcome = await self._audit.carry_out(by, action, agent_id, *writes, instance_id=instance)
        await self._instances.changed(by.tenant, agent_id)
        return isinstance(outcome, Committed)

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


def removal(agent: Agent, instances: Sequence[Instance], gone: Sequence[Instance]) -> list[Write]:
    """Return what forgets some of an agent's instances: its own row names one that stays.

    It is refused when that one does not stay, so that two who remove the last two leave no agent.
    """
    writes: list[Write] = [
        Delete(Instance, (one.tenant, one.agent_id, one.instance_id)) for one in gone
    ]
    if all(one.instance_id != (agent.instance_id or DEFAULT) for one in gone):
        return [_same_own(agent), *writes]
    own = max((one for one in instances if one not in gone), key=lambda one: one.updated_at)
    fields = ("instance_id", "endpoint", "version", "operator", "max_concurrency",
              "last_heartbeat", "updated_at")  # fmt: skip
    changes = {field: getattr(own, field) for field in fields}
    since = {"created_at": own.created_at}
    key = (own.tenant, own.agent_id, own.instance_id)
    stays = Patch(Instance, key, since, where=since, required=True)
    return [replace(_same_own(agent), changes=changes), stays, *writes]


def _same_own(agent: Agent) -> Patch:
    """Return what refuses the op when another instance has become the agent's own meanwhile."""
    same = {"instance_id": agent.instance_id, "updated_at": agent.updated_at}
    return Patch(Agent, (agent.tenant, agent.agent_id), same, where=same, required=True)


def _named(
    instances: Sequence[Instance], agent_id: str, instance_id: str | None
) -> Sequence[Instance]:
    if instance_id is None:
        return instances
    found = [one for one in instances if one.instance_id == instance_id]
    if not found:
        raise unknown(agent_id, instance_id)
    return found


def _leaving(instance: Instance, *, own: bool) -> Write:
    """Return what marks an instance as leaving; the agent's own may have no row of its own yet."""
    if own:
        return Put(replace(instance, draining=True), _KEPT)
    key = (instance.tenant, instance.agent_id, instance.instance_id)
    return Patch(Instance, key, {"draining": True}, required=True)


def _judged(agent: Agent, instances: Sequence[Seen]) -> Agent:
    heard = [one.instance.last_heartbeat for one in instances]
    return replace(
        agent,
        status=wellness.best(one.status for one in instances),
        last_heartbeat=max((at for at in heard if at is not None), default=None),
    )


def _scopes(wanted: Registration, by: Caller, known: Agent | None) -> list[str] | None:
    """Return what the agent's tokens may do: an agent only narrows what its operator gave."""
    if "keys:write" in by.permissions:
        return wanted.scopes
    given = known.scopes if known is not None else None
    if given is None or wanted.scopes is None:
        return wanted.scopes if given is None else given
    return sorted(set(given) & set(wanted.scopes))


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
