"""What a decision means for the rows around the log: one command in, one op out.

The run's own row, its session, its messages, its timers and its idempotency key change in the
same op as the events, so that no reader ever finds one without the other.
"""

from collections.abc import Callable
from typing import Final

from orchestrator.core import events as ev
from orchestrator.core.decide import (
    Accept,
    Cancel,
    Command,
    Complete,
    Record,
    decide,
    evolve,
    unmoved,
)
from orchestrator.core.ops import Delete, Guard, Insert, Op, Patch, Write
from orchestrator.core.records import (
    NEXT,
    WAITING,
    IdempotencyKey,
    Invocation,
    Message,
    Run,
    Session,
    Timer,
)
from orchestrator.core.states import ENDED, RunState

RUN_MAX: Final = "run_max"
"""The timer that ends a run which has lived too long."""
CHILDREN: Final = "child:"
"""The scope of the idempotency keys of a run's children is this and the run's id."""

_FIXED: Final = frozenset({"key", "head", "version", "epoch"})


def project(
    run: Run,
    command: Command,
    ts: int,
    mint: Callable[[], str],
    epoch: int | None = None,
) -> tuple[Op | None, Run]:
    """Return the op that carries out `command`, and the run after it; no op if nothing changes.

    `mint` gives event ids. `epoch` guards the op with the ownership of the caller; so does the
    version that the decision was made on, or, for what changes nothing, the states that allow it.
    """
    payloads = decide(run, command)
    if not payloads:
        return None, run
    after = run
    for payload in payloads:
        after = evolve(after, payload, ts)
    op = Op(
        run_id=run.run_id,
        guard=_guard(run, command, epoch),
        events=tuple(ev.draft(mint(), ts, payload) for payload in payloads),
        changes=_changes(run, after),
        writes=_rows(run, after, command, ts),
    )
    return op, after


def accept(
    run: Run,
    command: Accept,
    mint: Callable[[], str],
    invocation: Invocation,
    *,
    user_id: str | None = None,
    key: IdempotencyKey | None = None,
    timer: Timer | None = None,
    room: int | None = None,
) -> Op:
    """Return the op that creates `run`; the session comes into being with its first run.

    `timer` is stored with it, `room` guards it.
    """
    ts = run.created_at
    writes: list[Write] = [
        Insert(invocation),
        Insert(Timer(run_id=run.run_id, kind=RUN_MAX, due_at=run.deadline_at)),
    ]
    if key is not None:
        writes.insert(0, Insert(key))
    if timer is not None:
        writes.append(Insert(timer))
    if run.parent_run_id is None:
        writes += [
            Insert(_session(run, user_id), absent_ok=True),
            Insert(_question(run, command)),
        ]
    return Op(
        run_id=run.run_id,
        create=run,
        room=room,
        events=tuple(ev.draft(mint(), ts, payload) for payload in decide(run, command)),
        writes=tuple(writes),
    )


def _session(run: Run, user_id: str | None) -> Session:
    return Session(
        tenant=run.tenant,
        session_id=run.session_id,
        user_id=user_id,
        created_at=run.created_at,
        updated_at=run.created_at,
    )


def _question(run: Run, command: Accept) -> Message:
    return Message(
        message_id=command.message_id,
        tenant=run.tenant,
        session_id=run.session_id,
        run_id=run.run_id,
        role=command.role,
        content=command.content,
        pos=WAITING,
        created_at=run.created_at,
    )


def _answer(run: Run, command: Complete, ts: int) -> Message:
    return Message(
        message_id=command.message_id,
        tenant=run.tenant,
        session_id=run.session_id,
        run_id=run.run_id,
        role="assistant",
        content=command.final_message,
        pos=NEXT,
        created_at=ts,
    )


def _guard(run: Run, command: Command, epoch: int | None) -> Guard:
    if isinstance(command, Record):  # many may be written at once, and none is wrong by another
        return Guard(epoch=epoch, states=unmoved(command.payload))
    return Guard(version=run.version, epoch=epoch)


def _changes(before: Run, after: Run) -> dict[str, object]:
    fields = (f for f in before.__struct_fields__ if f not in _FIXED)
    return {f: getattr(after, f) for f in fields if getattr(after, f) != getattr(before, f)}


def _rows(before: Run, after: Run, command: Command, ts: int) -> tuple[Write, ...]:
    writes: list[Write] = []
    if before.parent_run_id is None:
        if before.status is RunState.CREATED and after.status is not RunState.CREATED:
            writes.append(Patch(Message, (before.message_id,), {"pos": NEXT}))
        if isinstance(command, Complete) and command.final_message:
            writes.append(Insert(_answer(before, command, ts)))
        writes.append(Patch(Session, (before.tenant, before.session_id), {"updated_at": ts}))
    if after.status in ENDED:
        writes.append(Delete(Timer, (before.run_id,)))
    writes += _beside(before, command)
    return tuple(writes)


def _beside(run: Run, command: Command) -> list[Write]:
    match command:
        case Cancel(forgets=True) if run.parent_run_id is not None and run.request_id is not None:
            key = (run.tenant, f"{CHILDREN}{run.parent_run_id}", run.request_id)
            return [Delete(IdempotencyKey, key)]
        case Record(fires=timer) if timer is not None:
            return [Delete(Timer, timer, required=True)]
        case _:
            return []
