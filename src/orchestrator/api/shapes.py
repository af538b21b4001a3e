"""The wire types of requests and answers; every field is a name of the contract.

What a caller must send is checked in the handlers, in the contract's order and with its sentences;
so request fields are optional here and the route table says which are required.
"""

from typing import Any, Final

import msgspec

from orchestrator.core.events import Content
from orchestrator.core.records import Retry, Timeouts


class Body(msgspec.Struct, frozen=True, kw_only=True):
    """A request body; unknown fields are ignored, so that newer clients work."""


class Answer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An answer; fields that are absent here are absent on the wire."""


class MessageBody(Body, frozen=True, kw_only=True):
    """A message: its role and its content, text or a list of parts."""

    role: str = "user"
    content: Any = None


class InvokeBody(Body, frozen=True, kw_only=True):
    """An invocation of an agent."""

    session_id: str | None = None
    agent_id: str | None = None
    input_message: MessageBody | None = None
    request_id: str | None = None
    context: dict[str, Any] | None = None
    on_busy: str = "enqueue"
    timeout_ms: int | None = None
    labels: dict[str, str] | None = None


class StartRunBody(InvokeBody, frozen=True, kw_only=True):
    """An invocation whose caller may wait for it or read it."""

    stream: bool = False
    wait: bool = False
    on_disconnect: str = "keep"


class CallAgentBody(Body, frozen=True, kw_only=True):
    """An invocation by another agent's run."""

    input_message: MessageBody | None = None
    parent_run_id: str | None = None
    session_id: str | None = None
    context: dict[str, Any] | None = None
    idempotency_key: str | None = None
    on_disconnect: str = "cancel"
    timeout_ms: int | None = None


class CancelBody(Body, frozen=True, kw_only=True):
    """Why a run is cancelled."""

    reason: str | None = None


class PostMessageBody(Body, frozen=True, kw_only=True):
    """A line for a transcript."""

    role: str | None = None
    content: Any = None
    run_id: str | None = None
    metadata: dict[str, Any] | None = None


class AuthBody(Body, frozen=True, kw_only=True):
    """How we prove to an agent who we are."""

    type: str = "bearer"
    token: str | None = None


class RegisterBody(Body, frozen=True, kw_only=True):
    """An agent and how it wants to be treated."""

    agent_id: str | None = None
    name: str | None = None
    endpoint: str | None = None
    capabilities: list[str] | None = None
    auth: AuthBody | None = None
    instance_id: str | None = None
    version: str | None = None
    protocol: str = "native"
    timeouts: Timeouts | None = None
    retry: Retry | None = None
    on_lost: str = "fail"
    max_concurrency: int | None = None
    scopes: list[str] | None = None


class SessionTokenBody(Body, frozen=True, kw_only=True):
    """What a token is for: `scopes` of read, invoke, tool_result, decide; the first two unasked."""

    scopes: list[str] | None = None
    ttl_s: int = 3600
    user_id: str | None = None


class CreateKeyBody(Body, frozen=True, kw_only=True):
    """A key to be made; `limits` holds rates such as `600/m` by route, `*` for all together."""

    name: str | None = None
    role: str | None = None
    tenant: str | None = None
    person: str | None = None
    agent_id: str | None = None
    environment: str = "live"
    expires_in_s: int | None = None
    limits: dict[str, str] | None = None


class RotateKeyBody(Body, frozen=True, kw_only=True):
    """How long the old key goes on beside the new one."""

    overlap_s: int = 3600


class InstanceBody(Body, frozen=True, kw_only=True):
    """Which instance of an agent is meant; `?instance_id=` says the same."""

    instance_id: str | None = None


class InvokeAnswer(Answer, frozen=True, kw_only=True):
    """The durable run of an invocation."""

    run_id: str
    session_id: str
    agent_id: str


class RunError(Answer, frozen=True, kw_only=True):
    """How a run failed."""

    code: str
    message: str


class RunAnswer(Answer, frozen=True, kw_only=True):
    """A run as last committed; times are milliseconds UTC."""

    run_id: str
    session_id: str
    agent_id: str
    status: str
    attempt: int
    last_seq: int
    created_at: int
    deadline_at: int
    labels: dict[str, str]
    started_at: int | None = None
    ended_at: int | None = None
    parent_run_id: str | None = None
    request_id: str | None = None
    final_message: Content | None = None
    usage: dict[str, Any] | None = None
    error: RunError | None = None
    trimmed: bool = False
    parallel: bool = False
    generation: int = 0


class RunsAnswer(Answer, frozen=True, kw_only=True):
    """A page of runs, newest first."""

    runs: list[RunAnswer]
    has_more: bool
    next_cursor: str | None = None


class TreeAnswer(Answer, frozen=True, kw_only=True):
    """A run and the runs below it; with `has_more` some that it called are not among them."""

    run: RunAnswer
    children: list["TreeAnswer"]
    has_more: bool = False


class RunIdAnswer(Answer, frozen=True, kw_only=True):
    """A run that goes on."""

    run_id: str


class CancelAnswer(Answer, frozen=True, kw_only=True):
    """A run that is cancelled."""

    run_id: str
    status: str
    message: str


class EventAnswer(Answer, frozen=True, kw_only=True):
    """An event of the log; the catalogue in docs/events.md has the payload of each type."""

    event_id: str
    run_id: str
    seq: int
    ts: int
    type: str
    payload: dict[str, Any]


class LogResetAnswer(Answer, frozen=True, kw_only=True):
    """What the reader saw after this seq is void: a loss of power took it."""

    after_seq: int


class EventsAnswer(Answer, frozen=True, kw_only=True):
    """A page of a run's log; `log_reset` comes before its events."""

    events: list[EventAnswer]
    has_more: bool
    next_cursor: str
    trimmed: bool = False
    log_reset: LogResetAnswer | None = None


class MessageAnswer(Answer, frozen=True, kw_only=True):
    """A line of a transcript; `created_at` is RFC 3339."""

    message_id: str
    session_id: str
    run_id: str | None
    role: str
    content: Content
    created_at: str
    metadata: dict[str, Any] | None = None


class MessagesAnswer(Answer, frozen=True, kw_only=True):
    """The newest messages before a cursor, oldest first."""

    messages: list[MessageAnswer]
    has_more: bool


class PostedAnswer(Answer, frozen=True, kw_only=True):
    """A message that is in the transcript now."""

    message_id: str
    created_at: str


class SessionAnswer(Answer, frozen=True, kw_only=True):
    """A session; times are milliseconds UTC. `cursor` is where its stream is now, in no list."""

    session_id: str
    user_id: str | None
    created_at: int
    updated_at: int
    cursor: str | None = None


class SessionsAnswer(Answer, frozen=True, kw_only=True):
    """A page of sessions, newest first."""

    sessions: list[SessionAnswer]
    has_more: bool
    next_cursor: str | None = None


class RegisteredAnswer(Answer, frozen=True, kw_only=True):
    """An agent is registered."""

    ok: bool
    registered_at: int


class AgentAnswer(Answer, frozen=True, kw_only=True):
    """An agent in a list; `last_heartbeat_at` is milliseconds UTC."""

    agent_id: str
    name: str
    status: str
    last_heartbeat_at: int | None
    capabilities: list[str]


class AgentsAnswer(Answer, frozen=True, kw_only=True):
    """The registered agents, by name."""

    agents: list[AgentAnswer]


class InstanceAnswer(Answer, frozen=True, kw_only=True):
    """One endpoint of an agent; `in_flight` and what follows is as the answering server sees it.

    `ejected_until` is milliseconds UTC, `last_error` that of the latest call if it failed.
    """

    instance_id: str
    endpoint: str
    status: str
    last_heartbeat_at: int | None
    in_flight: int
    version: str | None = None
    max_concurrency: int | None = None
    ejected_until: int | None = None
    last_error: str | None = None


class AgentDetailAnswer(Answer, frozen=True, kw_only=True):
    """An agent; `last_heartbeat` and `created_at` are RFC 3339. Credentials never come back."""

    agent_id: str
    name: str
    status: str
    endpoint: str
    protocol: str
    capabilities: list[str]
    last_heartbeat: str | None
    last_heartbeat_at: int | None
    created_at: str
    on_lost: str
    timeouts: Timeouts
    retry: Retry
    instances: list[InstanceAnswer]
    version: str | None = None
    max_concurrency: int | None = None
    has_auth: bool = False
    scopes: list[str] | None = None


class OkAnswer(Answer, frozen=True, kw_only=True):
    """It is done."""

    ok: bool


class SessionTokenAnswer(Answer, frozen=True, kw_only=True):
    """A session's token, which is kept nowhere."""

    token: str
    session_id: str
    scopes: list[str]
    expires_at: int
    user_id: str | None = None


class KeyAnswer(Answer, frozen=True, kw_only=True):
    """A key without its secret."""

    key_id: str
    tenant: str
    name: str
    role: str
    created_at: int
    created_by: str
    person: str | None = None
    agent_id: str | None = None
    limits: dict[str, str] = {}
    expires_at: int | None = None
    revoked_at: int | None = None
    rotated_to: str | None = None
    last_used_at: int | None = None


class KeysAnswer(Answer, frozen=True, kw_only=True):
    """Keys, oldest first."""

    keys: list[KeyAnswer]


class MadeKeyAnswer(Answer, frozen=True, kw_only=True):
    """A new key: its text, which no other answer has, and what is known of it."""

    key: str
    info: KeyAnswer


class ResealedAnswer(Answer, frozen=True, kw_only=True):
    """How many stored secrets were encrypted anew, and how many no key of ours opens."""

    changed: int
    unreadable: int


class AuditEntryAnswer(Answer, frozen=True, kw_only=True):
    """What somebody did; `hash` covers the entry and the one before it."""

    seq: int
    at: int
    tenant: str
    actor: str
    action: str
    target: str
    hash: str
    detail: dict[str, Any] = {}


class AuditAnswer(Answer, frozen=True, kw_only=True):
    """Entries of the audit log, oldest first."""

    entries: list[AuditEntryAnswer]
    has_more: bool
    next_cursor: str | None = None


class VerifiedAnswer(Answer, frozen=True, kw_only=True):
    """Whether a tenant's chain holds; `head` is the hash of its last good entry.

    `tenants` are those that `ADMIN_KEY` may ask for, too.
    """

    ok: bool
    tenant: str
    entries: int
    head: str
    broken_at: int | None = None
    tenants: list[str] = []


class HealthAnswer(Answer, frozen=True, kw_only=True):
    """Whether the server is well; `problems` says what is wrong."""

    status: str
    version: str
    draining: bool = False
    problems: list[str] = []


class ProblemAnswer(Answer, frozen=True, kw_only=True):
    """What went wrong: a sentence, a stable code, and what a program can use."""

    error: str
    code: str
    retryable: bool = False
    details: dict[str, Any] = {}


REQUIRED: Final[dict[type[Body], tuple[str, ...]]] = {
    MessageBody: ("content",),
    AuthBody: ("token",),
}
"""Fields that must be there within a body; those of the body itself stand in the route table."""
