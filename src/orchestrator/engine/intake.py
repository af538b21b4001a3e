"""Takes an invocation: checks it, makes it a run, and answers the same for the same key."""

from collections.abc import Callable
from hashlib import sha256
from typing import Any

import msgspec

from orchestrator.core import ids, values
from orchestrator.core.access import TENANT
from orchestrator.core.decide import Accept, Cancel, Record
from orchestrator.core.errors import (
    AgentDraining,
    AgentNotFound,
    Conflict,
    Draining,
    IdempotencyKeyReused,
    InvalidRequest,
    QueueFull,
    RunNotActive,
    RunNotFound,
    Unsupported,
)
from orchestrator.core.events import AgentCalledChild, Content
from orchestrator.core.jsontext import canonical
from orchestrator.core.ops import Refused
from orchestrator.core.project import accept
from orchestrator.core.records import Agent, IdempotencyKey, Invocation, Run
from orchestrator.core.states import HOLDS_SESSION, OPEN
from orchestrator.core.trace import of_run
from orchestrator.engine.ledger import Ledger
from orchestrator.engine.limits import DEPTH_MAX, EngineSettings
from orchestrator.engine.tokens import scopes_of

_BUSY_KINDS = ("enqueue", "reject", "interrupt", "parallel")
REQUEST_ID_MAX = 256
RERUN_OF = "rerun_of"
"""The label of a repeated run; it has a place of its own beside the caller's labels."""


class Invoke(msgspec.Struct, frozen=True, kw_only=True):
    """A message for an agent. Without `session_id` a new session begins.

    `request_id` makes it idempotent within its session, for a child run within its parent; without
    either within the tenant, so that the repeat finds the session of the first. `rerun_of` is the
    run of which this is a repetition.
    """

    tenant: str = TENANT
    agent_id: str
    session_id: str | None = None
    role: str = "user"
    content: Content
    request_id: str | None = None
    context: dict[str, Any] | None = None
    labels: dict[str, str] = {}
    timeout_ms: int | None = None
    on_busy: str = "enqueue"
    parent_run_id: str | None = None
    traceparent: str | None = None
    tracestate: str | None = None
    rerun_of: str | None = None


class Accepted(msgspec.Struct, frozen=True):
    """The run of an invocation; `repeated` when the key had led to it before."""

    run: Run
    repeated: bool = False


class Intake:
    """Everything between a request to invoke and a durable run."""

    def __init__(
        self, ledger: Ledger, settings: EngineSettings, wake: Callable[[str], None]
    ) -> None:
        self._ledger = ledger
        self._settings = settings
        self._wake = wake
        self.draining = False

    async def take(self, request: Invoke) -> Accepted:
        """Return the run that answers `request`, durable.

        Raises InvalidRequest, AgentNotFound (no session is left behind), IdempotencyKeyReused,
        QueueFull, Draining, Unavailable.
        """
        self._check(request)
        parent = await self._parent(request)
        key = _key(request)
        known = await self._known(request, key)
        if known is not None:
            return known
        await self._admit(request)
        session_id = parent.session_id if parent else request.session_id or self._session()
        return await self._create(request, session_id, parent, key)

    def _check(self, request: Invoke) -> None:
        values.name(request.agent_id, "agent_id")
        values.role(request.role, "input_message.role")
        values.labels(request.labels)
        values.positive(request.timeout_ms, "timeout_ms")
        if request.session_id is not None:
            values.session_id(request.session_id)
        if request.on_busy not in _BUSY_KINDS:
            raise InvalidRequest(f"on_busy must be one of {', '.join(_BUSY_KINDS)}")
        if request.on_busy != "enqueue":
            raise Unsupported(
                f"on_busy {request.on_busy!r} is not offered by this version; use 'enqueue'"
            )
        if request.request_id is not None and not 0 < len(request.request_id) <= REQUEST_ID_MAX:
            raise InvalidRequest(f"request_id must be 1 to {REQUEST_ID_MAX} characters")

    async def _parent(self, request: Invoke) -> Run | None:
        if request.parent_run_id is None:
            return None
        parent = await self._ledger.load(request.parent_run_id, deciding=True)
        if parent.tenant != request.tenant:
            raise RunNotFound(f"run {parent.run_id} not found")
        if parent.status not in OPEN or parent.attempt == 0:
            raise RunNotActive(
                f"run {parent.run_id} is {parent.status}; only a run whose agent is at work can "
                "call other agents"
            )
        if parent.depth + 1 >= DEPTH_MAX:
            raise InvalidRequest(f"a tree of runs may be {DEPTH_MAX} deep, and this one is")
        return parent

    def _session(self) -> str:
        return self._ledger.mint("sess", "")

    async def _known(self, request: Invoke, key: IdempotencyKey | None) -> Accepted | None:
        if key is None:
            return None
        found = await self._ledger.store.get(
            IdempotencyKey, key.tenant, key.scope, key.key, deciding=True
        )
        return await self._repeat(request, key, found) if found is not None else None

    async def _repeat(
        self, request: Invoke, key: IdempotencyKey, found: IdempotencyKey
    ) -> Accepted:
        if found.digest != key.digest:
            raise IdempotencyKeyReused(
                f"request_id {request.request_id!r} was used before with another agent, message "
                "or context; use a new one",
                run_id=found.ref,
            )
        return Accepted(await self._ledger.load(found.ref), repeated=True)

    async def _admit(self, request: Invoke) -> None:
        store = self._ledger.store
        agent = await store.get(Agent, request.tenant, request.agent_id, deciding=True)
        if agent is None:
            raise AgentNotFound(f"agent {request.agent_id} not found")
        if self.draining:
            raise Draining("the server is shutting down; send this to another one or try again")
        if agent.draining:
            raise AgentDraining(f"agent {agent.agent_id} is draining; register it again to go on")
        if self._ledger.open_runs >= self._settings.max_open_runs:
            raise QueueFull(
                f"{self._settings.max_open_runs} runs are open (MAX_OPEN_RUNS); try again later",
                retry_after=1,
            )

    async def _create(
        self,
        request: Invoke,
        session_id: str,
        parent: Run | None,
        key: IdempotencyKey | None,
    ) -> Accepted:
        run = self._run(request, session_id, parent)
        queued = parent is None and await self._busy(run)
        if key is not None:
            key = msgspec.structs.replace(
                key, ref=run.run_id, run_id=run.run_id, created_at=run.created_at
            )
        command = Accept(
            message_id=run.message_id,
            role=request.role,
            content=request.content,
            queued=queued,
        )
        asked = await self._asked(parent)
        traceparent, tracestate = _trace(request, parent, asked)
        invocation = Invocation(
            run_id=run.run_id,
            role=request.role,
            content=request.content,
            context=request.context,
            traceparent=traceparent,
            timeout_ms=request.timeout_ms,
            tracestate=tracestate,
            scopes=await self._scopes(parent, asked),
        )
        op = accept(
            run,
            command,
            self._ledger.event_ids(run),
            invocation,
            user_id=_user(request),
            key=key,
        )
        in_order = self._ledger.store.in_order
        if in_order:
            self._wake(run.run_id)  # the claim is made right behind this commit
        outcome = await self._ledger.create(run, op)
        if not in_order:
            self._wake(run.run_id)
        if isinstance(outcome, Refused):
            return await self._lost_race(request, key, outcome)
        run = msgspec.structs.replace(
            run, key=outcome.key, head=outcome.head, version=outcome.version
        )
        if parent is not None:
            await self._tell_parent(parent, run)
        return Accepted(run)

    async def _asked(self, parent: Run | None) -> Invocation | None:
        if parent is None:
            return None
        return await self._ledger.store.get(Invocation, parent.run_id, deciding=True)

    async def _scopes(self, parent: Run | None, asked: Invocation | None) -> list[str] | None:
        """Return what the run's tokens may do at most: never more than those of the run above."""
        if parent is None or asked is None:
            return None
        key = (parent.tenant, parent.agent_id)
        agent = await self._ledger.store.get(Agent, *key, deciding=True)
        return scopes_of(parent, agent, asked)

    async def _lost_race(
        self, request: Invoke, key: IdempotencyKey | None, outcome: Refused
    ) -> Accepted:
        if key is None or not isinstance(outcome.record, IdempotencyKey):
            raise Conflict(f"the run could not be created ({outcome.why}); try again")
        return await self._repeat(request, key, outcome.record)

    async def _tell_parent(self, parent: Run, child: Run) -> None:
        called = AgentCalledChild(child_run_id=child.run_id, agent_id=child.agent_id)
        try:
            await self._ledger.execute(parent, Record(payload=called))
        except Conflict:
            # The parent ended between our look and now: its end must take the child along.
            await self._ledger.execute(child, Cancel(reason="parent run ended"))
            raise RunNotActive(f"run {parent.run_id} has just ended") from None

    def _run(self, request: Invoke, session_id: str, parent: Run | None) -> Run:
        now = self._ledger.world.now()
        shard = ids.shard_of(request.tenant, session_id)
        deadline = now + self._settings.run_max_ms
        return Run(
            run_id=self._ledger.mint("run", shard),
            tenant=request.tenant,
            session_id=session_id,
            agent_id=request.agent_id,
            request_id=request.request_id,
            labels=_labels(request),
            message_id=self._ledger.mint("msg", shard),
            parent_run_id=parent.run_id if parent else None,
            depth=parent.depth + 1 if parent else 0,
            created_at=now,
            deadline_at=min(deadline, parent.deadline_at) if parent else deadline,
        )

    async def _busy(self, run: Run) -> bool:
        ahead = await self._ledger.store.find(
            Run,
            ("tenant", "=", run.tenant),
            ("session_id", "=", run.session_id),
            ("status", "in", sorted(HOLDS_SESSION)),
            ("parent_run_id", "is", None),
            limit=1,
            deciding=True,
        )
        return bool(ahead)


def _trace(
    request: Invoke, parent: Run | None, asked: Invocation | None
) -> tuple[str | None, str | None]:
    """Return the trace context of a run; without one a child is below its parent's run."""
    if parent is None or asked is None or request.traceparent is not None:
        return request.traceparent, request.tracestate
    above = of_run(parent.run_id, asked.traceparent, asked.tracestate)
    return above.traceparent, above.state


def _labels(request: Invoke) -> dict[str, str]:
    again = {} if request.rerun_of is None else {RERUN_OF: request.rerun_of}
    return request.labels | again


def _key(request: Invoke) -> IdempotencyKey | None:
    if request.request_id is None:
        return None
    parent = request.parent_run_id
    body = {
        "agent_id": request.agent_id,
        "input_message": {"role": request.role, "content": request.content},
        "context": request.context,
    }
    return IdempotencyKey(
        tenant=request.tenant,
        scope=f"child:{parent}" if parent else f"invoke:{request.session_id or ''}",
        key=request.request_id,
        digest=sha256(canonical(body)).digest(),
        ref="",
        run_id="",
        created_at=0,
    )


def _user(request: Invoke) -> str | None:
    user = (request.context or {}).get("user_id")
    return user if isinstance(user, str) else None
