"""What the commands read of a server's answers; another shape means that it is another program."""

from typing import Any

import msgspec


class Problem(msgspec.Struct):
    """How a run failed."""

    code: str


class Run(msgspec.Struct):
    """A run, as it is listed."""

    run_id: str
    session_id: str
    agent_id: str
    status: str
    created_at: int
    ended_at: int | None = None
    error: Problem | None = None


class Runs(msgspec.Struct):
    """A page of runs."""

    runs: list[Run]
    has_more: bool
    next_cursor: str | None = None


class Tree(msgspec.Struct):
    """A run and the runs below it."""

    run: Run
    children: list["Tree"]


class Session(msgspec.Struct):
    """A session."""

    session_id: str
    created_at: int
    updated_at: int
    user_id: str | None = None


class Sessions(msgspec.Struct):
    """A page of sessions."""

    sessions: list[Session]
    has_more: bool
    next_cursor: str | None = None


class Message(msgspec.Struct):
    """A line of a transcript."""

    message_id: str
    role: str
    content: str | list[dict[str, Any]]
    created_at: str


class Messages(msgspec.Struct):
    """A page of a transcript."""

    messages: list[Message]
    has_more: bool


class Changed(msgspec.Struct):
    """A run after a command."""

    run_id: str
    status: str


class Agent(msgspec.Struct):
    """An agent, as it is listed."""

    agent_id: str
    name: str
    status: str
    capabilities: list[str]
    last_heartbeat_at: int | None = None


class Agents(msgspec.Struct):
    """The registered agents."""

    agents: list[Agent]


class Instance(msgspec.Struct):
    """One of an agent's instances."""

    instance_id: str
    endpoint: str
    status: str
    in_flight: int
    last_heartbeat_at: int | None = None


class AgentDetail(msgspec.Struct):
    """One agent."""

    agent_id: str
    endpoint: str
    protocol: str = "native"
    has_auth: bool = False
    instances: list[Instance] = []


class Health(msgspec.Struct):
    """Whether a server is well."""

    status: str
    version: str
    problems: list[str] = []


class Event(msgspec.Struct):
    """An event of a run's log."""

    run_id: str
    seq: int
    ts: int
    type: str
    payload: dict[str, Any]


class Page(msgspec.Struct):
    """A page of a run's log, each event byte for byte."""

    events: list[msgspec.Raw]
    has_more: bool
    next_cursor: str
    trimmed: bool = False


class Key(msgspec.Struct):
    """A key without its secret."""

    key_id: str
    tenant: str
    name: str
    role: str


class Keys(msgspec.Struct):
    """Keys."""

    keys: list[Key]


class MadeKey(msgspec.Struct):
    """A new key."""

    key: str
    info: Key


class AuditEntry(msgspec.Struct):
    """What somebody did."""

    seq: int
    at: int
    actor: str
    action: str
    target: str
    hash: str


class Audit(msgspec.Struct):
    """Entries of the audit log."""

    entries: list[AuditEntry]
    has_more: bool
    next_cursor: str | None = None


class Verified(msgspec.Struct):
    """What a walk along the chain found."""

    ok: bool
    tenant: str
    entries: int
    head: str
    broken_at: int | None = None
    tenants: list[str] = []


class Resealed(msgspec.Struct):
    """How many secrets were encrypted anew, and how many cannot be."""

    changed: int
    unreadable: int
