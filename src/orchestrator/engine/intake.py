"""Takes an invocation: checks it, makes it a run, and answers the same for the same key."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import msgspec

from orchestrator.core import ids, values
from orchestrator.core.access import TENANT
from orchestrator.core.decide import Accept
from orchestrator.core.errors import (
    AgentDraining,
    AgentNotFound,
    Conflict,
    Draining,
    IdempotencyKeyReused,
    InvalidRequest,
    QueueFull,
    SessionBusy,
)
from orchestrator.core.events import Content
from orchestrator.core.jsontext import canonical
from orchestrator.core.ops import Refused
from orchestrator.core.project import CHILDREN, accept
from orchestrator.core.records import Agent, IdempotencyKey, Invocation, Run
from orchestrator.core.states import HOLDS_SESSION, OPEN, RunState
from orchestrator.core.trace import of_run
from orchestrator.engine.family import Family
from orchestrator.engine.ledger import Ledger
from orchestrator.engine.limits import (
    CHILDREN_MAX,
    SESSION_PARALLEL_MAX,
    SESSION_QUEUE_MAX,
    EngineSettings,
)
from orchestrator.ports import Where

REQUEST_ID_MAX = 256
INTERRUPTED = "interrupted"
"""The reason of runs that a later message of their session ended."""
_AT_ONCE = 500
RERUN_OF = "rerun_of"
"""The label of a repeated run; it has a place of its own beside the caller's labels."""


class Invoke(msgspec.Struct, frozen=True, kw_only=True):
    """A message for an agent. Without `session_id` a new session begins.

    `request_id` makes it idempotent within its session, for a child run within its parent; without
    either within the tenant, so that the repeat finds the session of the first. `on_busy` says what
    becomes of it while the session has a run: `enqueue`, `reject`, `interrupt` or `parallel`; a
    child never waits. `rerun_of` is the run of which this is a repetition.
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


@dataclass(slots=True)
class _Coming:
    """Runs on their way into one session: a look at the store does not find those sent before."""

    arrived: int = 0
    sent: int = 0


class Intake:
    """Everything between a request to invoke and a durable run."""

    def __init__(
        self,
        ledger: Ledger,
        settings: EngineSettings,
        wake: Callable[[str], None],
        has_room: Callable[[Agent], None],
    ) -> None:
        self._ledger = ledger
        self._settings = settings
        self._wake = wake
        self._has_room = has_room
        self._family = Family(ledger)
        self._coming: dict[tuple[str, str], _Coming] = {}
        self.draining = False

    async def take(self, request: Invoke) -> Accepted:
        """Return the run that answers `request`, durable.

        Raises InvalidRequest, AgentNotFound (no session is left behind), IdempotencyKeyReused,
        SessionBusy, QueueFull, Draining, Unavailable; for a child also RunNotFound, RunNotActive,
        AgentCycle.
        """
        self._check(request)
        above = request.parent_run_id
        parent = await self._family.parent(request.tenant, above) if above else None
        key = _key(request)
        accepted = await self._known(request, key)
        if accepted is None:
            await self._admit(request)
            if parent is not None:
                await self._family.refuse_cycle(parent, request.agent_id)
            session_id = parent.session_id if parent else request.session_id or self._session()
            accepted = await self._create(request, session_id, parent, key)
        if request.on_busy == "interrupt" and accepted.run.status is RunState.CREATED:
            await self._interrupt(accepted.run)
        return accepted

    def _check(self, request: Invoke) -> None:
        values.name(request.agent_id, "agent_id")
        values.role(request.role, "input_message.role")
        values.labels(request.labels)
        values.positive(request.timeout_ms, "timeout_ms")
        if request.session_id is not None:
            values.session_id(request.session_id)
        if request.on_busy not in values.BUSY_KINDS:
            raise InvalidRequest(f"on_busy must be one of {', '.join(values.BUSY_KINDS)}")
        if request.request_id is not None and not 0 < len(request.request_id) <= REQUEST_ID_MAX:
            raise InvalidRequest(f"request_id must be 1 to {REQUEST_ID_MAX} characters")

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
        self._has_room(agent)
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
        if key is not None:
            key = msgspec.structs.replace(
                key, ref=run.run_id, run_id=run.run_id, created_at=run.created_at
            )
        invocation = await self._invocation(request, run, parent)
        with self._arriving(run) as coming:
            in_turn = parent is None and not run.parallel
            busy = in_turn and await self._busy(run)
            # Nothing is awaited from here to the commit: who is sent first goes first.
            command = Accept(
                message_id=run.message_id,
                role=request.role,
                content=request.content,
                queued=in_turn and (busy or coming.sent > 0),
            )
            coming.sent += in_turn
            op = accept(
                run,
                command,
                self._ledger.event_ids(run),
                invocation,
                user_id=_user(request),
                key=key,
                timer=self._family.telling(parent, run) if parent is not None else None,
                room=_room(request),
            )
            in_order = self._ledger.store.in_order
            if in_order:
                self._wake(run.run_id)  # the claim is made right behind this commit
            outcome = await self._ledger.create(run, op)
            if not in_order:
                self._wake(run.run_id)
        if isinstance(outcome, Refused):
            return await self._lost_race(request, run, key, outcome)
        run = msgspec.structs.replace(
            run, key=outcome.key, head=outcome.head, version=outcome.version
        )
        if parent is not None:
            await self._family.tell(parent, run)
        return Accepted(run)

    async def _invocation(self, request: Invoke, run: Run, parent: Run | None) -> Invocation:
        """Return what the run is asked."""
        asked = await self._family.asked(parent)
        traceparent, tracestate = _trace(request, parent, asked)
        return Invocation(
            run_id=run.run_id,
            role=request.role,
            content=request.content,
            context=request.context,
            traceparent=traceparent,
            timeout_ms=request.timeout_ms,
            tracestate=tracestate,
            scopes=await self._family.scopes(parent, asked),
        )

    @contextmanager
    def _arriving(self, run: Run) -> Iterator["_Coming"]:
        """Note that a run is on its way into its session, with all that are so now."""
        session = (run.tenant, run.session_id)
        coming = self._coming.setdefault(session, _Coming())
        coming.arrived += 1
        try:
            yield coming
        finally:
            coming.arrived -= 1
            if not coming.arrived:
                del self._coming[session]

    async def _lost_race(
        self, request: Invoke, run: Run, key: IdempotencyKey | None, outcome: Refused
    ) -> Accepted:
        if isinstance(outcome.record, Run) and outcome.why == "full":
            # What is in the way may be the run of this very key, accepted a moment ago.
            known = await self._known(request, key)
            if known is None:
                raise _no_room(request, run, outcome.record)
            return known
        if key is None or not isinstance(outcome.record, IdempotencyKey):
            raise Conflict(f"the run could not be created ({outcome.why}); try again")
        return await self._repeat(request, key, outcome.record)

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
            parallel=parent is None and request.on_busy == "parallel",
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
            ("parallel", "=", False),
            limit=1,
            deciding=True,
        )
        return bool(ahead)

    async def _interrupt(self, run: Run) -> None:
        """End every open root run of the session that was accepted before `run`.

        All at once, which is one commit as a rule, so that none begins when the one before it ends.
        """
        earlier: tuple[Where, ...] = (
            ("tenant", "=", run.tenant),
            ("session_id", "=", run.session_id),
            ("status", "in", sorted(OPEN)),
            ("parent_run_id", "is", None),
            ("key", "<", run.key),
        )
        find = self._ledger.store.find
        while found := await find(Run, *earlier, order="key", limit=_AT_ONCE, deciding=True):
            await self._ledger.end_all(found, INTERRUPTED)


def _room(request: Invoke) -> int | None:
    """Return how many runs may be in the way of the new one."""
    if request.parent_run_id is not None:
        return CHILDREN_MAX - 1
    rooms = {"reject": 0, "enqueue": SESSION_QUEUE_MAX, "parallel": SESSION_PARALLEL_MAX - 1}
    return rooms.get(request.on_busy)


def _no_room(request: Invoke, run: Run, oldest: Run) -> Conflict | QueueFull:
    """Return why there was no room for `run`; `oldest` is the first that was one too many."""
    if run.parent_run_id is not None:
        return QueueFull(
            f"run {run.parent_run_id} has {CHILDREN_MAX} open children, as many as it may; wait "
            "for one of them to end",
            retry_after=1,
        )
    if request.on_busy == "reject":
        return SessionBusy(
            f"session {run.session_id} is busy with run {oldest.run_id}; wait for its end, or send "
            "this with another on_busy",
            run_id=oldest.run_id,
        )
    if run.parallel:
        return QueueFull(
            f"{SESSION_PARALLEL_MAX} parallel runs of session {run.session_id} are open, as many "
            "as may be; wait for one of them to end",
            retry_after=1,
        )
    return QueueFull(
        f"{SESSION_QUEUE_MAX} runs of session {run.session_id} wait for their turn, as many as "
        "may; try again later",
        retry_after=1,
    )


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
        scope=f"{CHILDREN}{parent}" if parent else f"invoke:{request.session_id or ''}",
        key=request.request_id,
        digest=sha256(canonical(body)).digest(),
        ref="",
        run_id="",
        created_at=0,
    )


def _user(request: Invoke) -> str | None:
    user = (request.context or {}).get("user_id")
    return user if isinstance(user, str) else None
