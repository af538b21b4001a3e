"""Small valid records and ops for driver contract suites, and what commits them."""

from typing import Any

from msgspec.structs import replace

from orchestrator.core import events as ev
from orchestrator.core.ops import ANYTIME, Committed, Guard, Insert, Op, Write
from orchestrator.core.records import NEXT, Agent, IdempotencyKey, Message, Run, Session
from orchestrator.core.states import RunState
from orchestrator.ports import Store

AT = 1_800_000_000_000


def run(number: int, session: str = "s1", **fields: Any) -> Run:
    """Return a CREATED run."""
    made = Run(
        run_id=f"run_{number:06d}aa", tenant="default", session_id=session, agent_id="demo",
        message_id=f"msg_{number}", created_at=AT + number, deadline_at=AT + 86_400_000,
    )  # fmt: skip
    return replace(made, **fields)


def deltas(count: int, first: int = 0) -> tuple[ev.Draft, ...]:
    """Return drafts of the delta class."""
    return tuple(
        ev.draft(f"evt_{n}", AT, ev.AgentStreamDelta(text=f"word {n}"))
        for n in range(first, first + count)
    )


def started() -> ev.Draft:
    """Return the draft of a state change."""
    return ev.draft("evt_s", AT, ev.RunStarted(session_id="s1", agent_id="demo"))


def accept(made: Run, *writes: Write) -> Op:
    """Return the op that accepts a run, its session with it."""
    session = Session(tenant=made.tenant, session_id=made.session_id, created_at=AT, updated_at=AT)
    return Op(
        run_id=made.run_id, create=made, events=(started(),),
        writes=(Insert(session, absent_ok=True), *writes),
    )  # fmt: skip


def append(made: Run, *drafts: ev.Draft, guard: Guard = ANYTIME, **changes: Any) -> Op:
    """Return the op that appends events to a run's log."""
    return Op(run_id=made.run_id, guard=guard, events=drafts, changes=changes)


def begin(made: Run) -> Op:
    """Return the op that makes a run RUNNING."""
    return append(made, started(), status=RunState.RUNNING)


def end(made: Run, at: int = AT) -> Op:
    """Return the op that ends a run."""
    return append(made, started(), status=RunState.DONE, ended_at=at)


def message(number: int, session: str = "s1", pos: int = NEXT, **fields: Any) -> Message:
    """Return a message; its position is the store's to give."""
    made = Message(
        message_id=f"msg_{number}", tenant="default", session_id=session, role="user",
        content=f"text {number}", pos=pos, created_at=AT + number,
    )  # fmt: skip
    return replace(made, **fields)


def key(name: str, made: Run, digest: bytes = b"d") -> IdempotencyKey:
    """Return an idempotency key that led to a run."""
    return IdempotencyKey(
        tenant="default", scope="s1", key=name, digest=digest, ref=made.run_id,
        run_id=made.run_id, created_at=AT,
    )  # fmt: skip


def agent(agent_id: str, **fields: Any) -> Agent:
    """Return a registered agent."""
    made = Agent(
        tenant="default", agent_id=agent_id, name=agent_id.title(), endpoint="http://agent",
        created_at=AT, updated_at=AT,
    )  # fmt: skip
    return replace(made, **fields)


async def committed(store: Store, *ops: Op) -> list[Committed]:
    """Commit ops of which none may be refused."""
    outcomes = await store.commit(*ops)
    done = [outcome for outcome in outcomes if isinstance(outcome, Committed)]
    if len(done) < len(outcomes):
        raise AssertionError(f"not all of it was committed: {outcomes}")
    return done


async def stored(store: Store, made: Run) -> Run:
    """Return a run as it is stored."""
    found = await store.get(Run, made.run_id)
    if found is None:
        raise AssertionError(f"{made.run_id} is not stored")
    return found
