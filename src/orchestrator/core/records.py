"""The records a store keeps, one struct per table; field names are the column names.

`TABLE` names the table, `KEY` the columns that identify a record for callers. `Run.key` is an
integer given by the store at insertion: runs of one store sort by it in order of acceptance.
Times are milliseconds UTC.
"""

from typing import Any, ClassVar, Final, TypeVar

import msgspec

from orchestrator.core.events import Content
from orchestrator.core.states import RunState


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """One row of a table."""

    TABLE: ClassVar[str]
    KEY: ClassVar[tuple[str, ...]]


R = TypeVar("R", bound=Record)


class Session(Record, frozen=True, kw_only=True):
    """A conversation; `pos` is the last position given to one of its messages."""

    TABLE = "sessions"
    KEY: ClassVar[tuple[str, ...]] = ("tenant", "session_id")
    tenant: str
    session_id: str
    user_id: str | None = None
    pos: int = 0
    created_at: int
    updated_at: int


class Message(Record, frozen=True, kw_only=True):
    """A line of a transcript. A message whose run is still CREATED has a `pos` above `PENDING`."""

    TABLE = "messages"
    KEY: ClassVar[tuple[str, ...]] = ("message_id",)
    message_id: str
    tenant: str
    session_id: str
    run_id: str | None = None
    role: str
    content: Content
    metadata: dict[str, Any] | None = None
    pos: int
    created_at: int


PENDING: Final = 1 << 60
"""Positions above this are those of messages that wait for their run's turn."""
NEXT: Final = -1
"""Given as a message's `pos`: the store assigns the session's next position in the commit."""
WAITING: Final = -2
"""Given as a message's `pos`: the store assigns `PENDING` plus the order of acceptance."""
HEAD: Final = -1
"""Given as `Run.attempt_seq`: the store assigns the seq of the commit's last event."""


class Run(Record, frozen=True, kw_only=True):
    """One run of an agent, as last committed.

    `version` counts the events that are not of the delta class, `head` is the last seq, `epoch`
    counts owners, `attempt` invocations; `attempt_seq` is the seq of the latest
    `agent_invoke_started`, and `attempting` says that this attempt is not over. `forks` has the
    head at each unclean stop of the host that the run lived through: readers may have seen more
    than was left, so each begins a generation of the log. A `parallel` run neither waits for its
    session nor holds it.
    """

    TABLE = "runs"
    KEY: ClassVar[tuple[str, ...]] = ("run_id",)
    key: int = 0
    run_id: str
    tenant: str
    session_id: str
    agent_id: str
    status: RunState = RunState.CREATED
    version: int = 0
    head: int = 0
    epoch: int = 0
    owner: str | None = None
    attempt: int = 0
    attempt_seq: int = 0
    attempting: bool = False
    forks: list[int] = []
    parent_run_id: str | None = None
    depth: int = 0
    request_id: str | None = None
    labels: dict[str, str] = {}
    parallel: bool = False
    message_id: str
    trimmed: bool = False
    error_code: str | None = None
    error_message: str | None = None
    final_message: Content | None = None
    usage: dict[str, Any] | None = None
    created_at: int
    started_at: int | None = None
    ended_at: int | None = None
    deadline_at: int


class Invocation(Record, frozen=True, kw_only=True):
    """What a run was asked: kept beside the run so that lists of runs stay light."""

    TABLE = "invocations"
    KEY: ClassVar[tuple[str, ...]] = ("run_id",)
    run_id: str
    role: str
    content: Content
    context: dict[str, Any] | None = None
    traceparent: str | None = None
    timeout_ms: int | None = None
    tracestate: str | None = None
    scopes: list[str] | None = None
    """What the tokens of this run may do at most; None is whatever its agent may."""


class Timeouts(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """An agent's own clocks in milliseconds; None takes the server's setting."""

    invoke_ms: int | None = None
    first_byte_ms: int | None = None
    idle_ms: int | None = None


class Retry(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """How often a failed invocation is repeated, and how long it waits before that.

    The delay doubles from `backoff_ms` up to `max_backoff_ms`. `codes` limits retries to those
    failure codes; empty means every failure that another attempt could mend.
    """

    max_attempts: int = 1
    backoff_ms: int = 500
    max_backoff_ms: int = 30_000
    codes: tuple[str, ...] = ()


class Agent(Record, frozen=True, kw_only=True, weakref=True):
    """A registered agent. `auth` is sealed by the secret box and never served.

    `operator` says that an operator vouches for the endpoint, which may then be private. `scopes`
    are the permissions that the tokens of its runs have at most.
    """

    TABLE = "agents"
    KEY: ClassVar[tuple[str, ...]] = ("tenant", "agent_id")
    tenant: str
    agent_id: str
    name: str
    endpoint: str
    protocol: str = "native"
    capabilities: list[str] = []
    status: str = "unknown"
    auth: bytes | None = None
    version: str | None = None
    instance_id: str | None = None
    timeouts: Timeouts = Timeouts()
    retry: Retry = Retry()
    on_lost: str = "fail"
    max_concurrency: int | None = None
    draining: bool = False
    operator: bool = True
    scopes: list[str] | None = None
    last_heartbeat: int | None = None
    created_at: int
    updated_at: int


class Instance(Record, frozen=True, kw_only=True):
    """One endpoint of an agent; `last_heartbeat` is None for one that never sent any."""

    TABLE = "instances"
    KEY: ClassVar[tuple[str, ...]] = ("tenant", "agent_id", "instance_id")
    tenant: str
    agent_id: str
    instance_id: str
    endpoint: str
    version: str | None = None
    operator: bool = True
    max_concurrency: int | None = None
    draining: bool = False
    last_heartbeat: int | None = None
    created_at: int
    updated_at: int


class IdempotencyKey(Record, frozen=True, kw_only=True):
    """A caller's key: `digest` is the hash of what it came with, `ref` what it led to."""

    TABLE = "idempotency_keys"
    KEY: ClassVar[tuple[str, ...]] = ("tenant", "scope", "key")
    tenant: str
    scope: str
    key: str
    digest: bytes
    ref: str
    run_id: str
    created_at: int


class Timer(Record, frozen=True, kw_only=True):
    """A deadline of a run, fired by whoever deletes it first."""

    TABLE = "timers"
    KEY: ClassVar[tuple[str, ...]] = ("run_id", "kind")
    run_id: str
    kind: str
    due_at: int


class Lease(Record, frozen=True, kw_only=True):
    """A replica's claim to be alive until `expires_at`."""

    TABLE = "leases"
    KEY: ClassVar[tuple[str, ...]] = ("owner",)
    owner: str
    expires_at: int


class Cursor(Record, frozen=True, kw_only=True):
    """How far a follower has come in a run's log."""

    TABLE = "cursors"
    KEY: ClassVar[tuple[str, ...]] = ("follower", "run_id")
    follower: str
    run_id: str
    seq: int
    updated_at: int


class Key(Record, frozen=True, kw_only=True):
    """A caller's key: `digest` is the hash of its secret, which itself is kept nowhere.

    `person` makes it a personal one. `agent_id` limits what an agent's key may change to that
    agent. `limits` holds rates such as `600/m` by route, `*` for all of them together.
    """

    TABLE = "keys"
    KEY: ClassVar[tuple[str, ...]] = ("key_id",)
    key_id: str
    tenant: str
    name: str
    role: str
    digest: bytes
    person: str | None = None
    agent_id: str | None = None
    environment: str = "live"
    limits: dict[str, str] = {}
    created_at: int
    created_by: str
    expires_at: int | None = None
    revoked_at: int | None = None
    rotated_to: str | None = None
    last_used_at: int | None = None


class AuditEntry(Record, frozen=True, kw_only=True):
    """What somebody did: `hash` is over this entry and the one before it of the same tenant.

    Given with `seq` NEXT; the store assigns it, and the hash, in the commit. `detail` is JSON, kept
    as text so that the hash covers each of its bytes.
    """

    TABLE = "audit"
    KEY: ClassVar[tuple[str, ...]] = ("tenant", "seq")
    tenant: str
    seq: int
    at: int
    actor: str
    action: str
    target: str
    detail: str = "{}"
    hash: bytes = b""


class Blob(Record, frozen=True, kw_only=True):
    """Bytes kept under a name, outside the rows that lists read."""

    TABLE = "blobs"
    KEY: ClassVar[tuple[str, ...]] = ("name",)
    name: str
    data: bytes
    created_at: int


RECORDS: Final[tuple[type[Record], ...]] = tuple(Record.__subclasses__())
