"""What the engine needs from outside: the store, the bus, the clients, the guards, the world.

`app.py` chooses the drivers; the contract suites in `testing/` say what each must keep to.
"""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import Any, Literal, Protocol, TypeAlias

import msgspec

from orchestrator.core.batch import EMPTY, Batch
from orchestrator.core.errors import OrchestratorError
from orchestrator.core.events import Content
from orchestrator.core.frames import Frame
from orchestrator.core.ops import Op, Outcome
from orchestrator.core.records import R, Run, Timer
from orchestrator.core.secret import Secret

# ---------------------------------------------------------------- store

Where: TypeAlias = tuple[str, Literal["=", "!=", "<", "<=", ">", ">=", "in", "is", "has"], Any]
"""A condition on a column: `in` takes a sequence, `is` None, `has` looks into a JSON list."""


Done: TypeAlias = Callable[[Outcome | OrchestratorError], None]


class Claimed(msgspec.Struct, frozen=True):
    """A run that is ours from now on; `lost_by` is the owner who did not live to end it."""

    run: Run
    lost_by: str | None = None


class Trimmed(msgspec.Struct, frozen=True):
    """What one round of retention removed."""

    runs: int = 0
    deltas: int = 0


class Store(Protocol):
    """The one system of record. A method returns only when what it changed is on disk.

    Every method raises Unavailable (or StorageFull) for what may pass, StoreFailure for what
    will not; after StoreFailure the process must stop.

    What `get`, `find` and `count` return is on disk, too, for somebody may be shown it. With
    `deciding` it may be a moment ahead of the disk: enough for a decision whose own commit comes
    after it, and not to be shown to anybody before that.

    `in_order` says that what is asked for later happens later: a claim that is asked for behind a
    commit, without waiting for it, finds what that commit wrote.
    """

    in_order: bool

    def now(self) -> int:
        """Return the store's time in milliseconds UTC, by which leases and deadlines are judged."""
        ...

    async def commit(self, *ops: Op) -> list[Outcome]:
        """Commit ops in one transaction, in order; a failed guard refuses only its own op."""
        ...

    def append(self, op: Op, done: "Done") -> None:
        """Commit an op of the delta class after all that was asked for before.

        `done` is called with what became of it, or with the error, as soon as it may be shown; it
        is short and raises nothing. Nobody needs to be woken for this, and it happens a lot.
        """
        ...

    async def read(self, run_id: str, after: int, limit: int = 1000) -> Batch:
        """Return events of a run with `seq > after`, in order: `limit` of them, or all there are.

        Where they are large it may be fewer; none says that there are no more to be shown now.
        """
        ...

    async def get(self, kind: type[R], *key: Any, deciding: bool = False) -> R | None:
        """Return the record of that key."""
        ...

    async def find(
        self,
        kind: type[R],
        *where: Where,
        order: str = "",
        limit: int = 100,
        deciding: bool = False,
    ) -> list[R]:
        """Return records that meet every condition, ordered by a column (`-column` descending)."""
        ...

    async def count(self, kind: type[R], *where: Where) -> int:
        """Return how many records meet every condition."""
        ...

    async def claim(self, owner: str, limit: int, run_ids: Sequence[str] = ()) -> list[Claimed]:
        """Take up to `limit` runs that may run now, each with `epoch + 1`; `run_ids` narrows it.

        These are CREATED runs whose turn has come (a child and a parallel run at once; another one
        when no earlier root run of its session that is not parallel is CREATED or RUNNING) and
        RUNNING runs, as long as they have no owner or one without a live lease. `lost_by` is set
        for a RUNNING run with a dead owner. Oldest first. An owner without a live lease of its own
        gets nothing, so nobody is ever given what is his already.
        """
        ...

    async def renew(self, owner: str, ttl_ms: int) -> None:
        """Say that `owner` lives for another `ttl_ms`; 0 gives the lease up, and all it owned."""
        ...

    async def due(self, limit: int = 100) -> list[Timer]:
        """Return timers whose time has come, earliest first."""
        ...

    async def trim(self, runs_before: int, deltas_before: int, limit: int = 100) -> Trimmed:
        """Remove up to `limit` runs ended before `runs_before`, deltas of others; 0 = none."""
        ...

    async def backup(self, path: str) -> None:
        """Write a consistent copy of the database to a new file while it is in use."""
        ...

    async def probe(self) -> None:
        """Prove that a commit reaches the disk now; raise what a commit would raise."""
        ...

    def stats(self) -> dict[str, float]:
        """Return the store's own counters and gauges for `/metrics`."""
        ...

    async def close(self) -> None:
        """Finish what is in flight, mark a clean stop and let go of everything."""
        ...


# ---------------------------------------------------------------- bus


class Hint(msgspec.Struct, frozen=True):
    """Word that a run's log has grown to `head`; `events` are its new events, where they travel."""

    run_id: str
    head: int
    events: Batch = EMPTY


class Mailbox(Protocol):
    """What one subscriber has not yet taken; bounded, and when it overflows only hints remain."""

    async def take(self) -> list[Hint]:
        """Wait until something has come, then return all of it."""
        ...


Hear: TypeAlias = Callable[[Hint], bool]


class Bus(Protocol):
    """How a sleeper is woken. Losing every message costs latency, never data.

    `certain` says that no hint of anybody who writes to the store is ever lost on its way here, so
    that nobody has to look for what he was not told.
    """

    certain: bool

    def publish(self, subject: str, hint: Hint) -> None:
        """Tell the subscribers of `subject`; never blocks, never fails."""
        ...

    def deliver(self, subject: str, hint: Hint) -> None:
        """Tell the subscribers in this process only, as one who has looked for himself."""
        ...

    def subjects(self) -> list[str]:
        """Return what somebody in this process listens to."""
        ...

    def stats(self) -> dict[str, float]:
        """Return the bus's own counters for `/metrics`."""
        ...

    def subscribe(
        self, subject: str, hear: "Hear | None" = None
    ) -> AbstractContextManager[Mailbox]:
        """Open a mailbox for `subject` (`run:<id>`, `session:<tenant>/<id>`, `runs`, `ends`).

        While its owner waits for the mailbox, `hear` may be given a hint directly; when it returns
        True the hint is dealt with and the owner sleeps on.
        """
        ...


# ---------------------------------------------------------------- clients


class AgentCall(msgspec.Struct, frozen=True, kw_only=True):
    """One invocation of an agent, as the client of its protocol needs it."""

    endpoint: str
    operator: bool = True
    """Whether an operator vouches for the endpoint, which may then be a private address."""
    agent_id: str
    session_id: str
    run_id: str
    attempt: int
    role: str
    content: Content
    messages: Sequence[dict[str, Any]] = ()
    context: dict[str, Any] = {}
    resume: dict[str, Any] | None = None
    credential: Secret | None = None
    traceparent: str
    tracestate: str | None = None
    base_url: str
    run_token: Secret | None = None


class AgentClient(Protocol):
    """One agent protocol."""

    def open(self, call: AgentCall) -> AbstractAsyncContextManager[AsyncIterator[Sequence[Frame]]]:
        """Invoke the agent; the context hands out batches of frames, one per wake-up.

        An empty batch is a sign of life (a comment). Entering returns when the answer's headers
        are there and right; leaving closes the connection at once. Both, and the iteration, raise
        AgentFailure with a code of CONTRACT §4.
        """
        ...


class ProbeAnswer(msgspec.Struct, frozen=True):
    """What an agent's `GET /health` said: `status` is healthy, unhealthy or unknown."""

    status: str
    version: str | None = None
    capabilities: tuple[str, ...] = ()


class AgentProbe(Protocol):
    """Asks an agent how it is."""

    async def probe(
        self, endpoint: str, credential: str | None, *, operator: bool = True
    ) -> ProbeAnswer:
        """Ask `GET {endpoint}/health`; 404, 405, 501 mean unknown. A sick agent never raises."""
        ...


class PushAnswer(msgspec.Struct, frozen=True):
    """What the ingress said: `batch` = lists are welcome, `tails` = it reads the log itself."""

    batch: bool = False
    tails: bool = False


class PushClient(Protocol):
    """Hands live events to the ingress."""

    async def push(self, tenant: str, session_id: str, events: Sequence[bytes]) -> PushAnswer:
        """Deliver events (JSON objects); raises Unavailable when they were not taken."""
        ...


# ---------------------------------------------------------------- guards and world


class SecretBox(Protocol):
    """Keeps credentials unreadable at rest, bound to the place they belong to."""

    def seal(self, secret: str, context: str) -> bytes:
        """Return `secret` encrypted for `context`."""
        ...

    def unseal(self, sealed: bytes, context: str) -> str:
        """Return the secret; raises ValueError if another key or another place sealed it."""
        ...

    def is_current(self, sealed: bytes, context: str) -> bool:
        """Return whether it is sealed with the key that seals now."""
        ...


class Signer(Protocol):
    """Signs tokens with the secret that the box seals with, for a purpose of their own."""

    def sign(self, message: bytes) -> bytes:
        """Return the signature of `message`, 32 bytes."""
        ...

    def is_signed(self, message: bytes, signature: bytes) -> bool:
        """Return whether one of our keys made the signature; takes the same time either way."""
        ...


class Person(msgspec.Struct, frozen=True):
    """Somebody whom an identity provider vouches for; `role` is one of ours, times are ms UTC."""

    subject: str
    tenant: str
    role: str
    expires_at: int


class Identity(Protocol):
    """Knows the people of an identity provider."""

    async def verify(self, token: str) -> Person:
        """Return whom a token names; raises Unauthorized, Forbidden or Unavailable."""
        ...


class Egress(Protocol):
    """Judges what may be dialled."""

    def check(self, url: str, *, operator: bool) -> None:
        """Raise EgressRefused for a URL whose form or literal address is forbidden.

        `operator` URLs (agents, tools, the ingress) may be private; others are public only.
        """
        ...

    def judge(self, host: str, address: str, *, operator: bool) -> None:
        """Raise EgressRefused for a resolved address that `host` must not lead to."""
        ...


class World(Protocol):
    """Time, randomness and names, so that tests can have their own."""

    def now(self) -> int:
        """Return milliseconds UTC of this machine's clock."""
        ...

    def monotonic(self) -> float:
        """Return seconds of a clock that never jumps."""
        ...

    def boot(self) -> str:
        """Return a name for this run of the machine; after a restart it has another one."""
        ...

    def noise(self, size: int) -> bytes:
        """Return random bytes."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        ...

    async def resolve(self, host: str, port: int) -> list[tuple[int, str]]:
        """Return the (address family, address) pairs of a name, in the order to try them."""
        ...
