"""The rules of a run: which command may lead to which events, and what an event makes of a run.

`decide(run, command) → events` says what would happen, `evolve(run, event, ts) → run` what it
makes of the run. Both are total and pure: ids and times are arguments, nothing is awaited.
"""

from typing import Any, TypeAlias

import msgspec
from msgspec.structs import replace

from orchestrator.core import events as ev
from orchestrator.core.errors import Conflict, RunEnded
from orchestrator.core.records import HEAD, Run
from orchestrator.core.states import ENDED, OPEN, PAUSED, RUN, RunState


class Accept(msgspec.Struct, frozen=True, kw_only=True):
    """Take a message for an agent: the run exists from here on."""

    message_id: str
    role: str
    content: ev.Content
    queued: bool = False


class Begin(msgspec.Struct, frozen=True, kw_only=True):
    """Begin one invocation of the agent."""

    endpoint: str
    instance_id: str | None = None


class Repeat(msgspec.Struct, frozen=True, kw_only=True):
    """Announce another attempt in place of one that was lost or failed."""

    code: str
    message: str
    delay_ms: int


class Complete(msgspec.Struct, frozen=True, kw_only=True):
    """End the run well; `message_id` is that of the agent's answer in the transcript."""

    message_id: str
    final_message: ev.Content
    usage: dict[str, Any]


class Fail(msgspec.Struct, frozen=True, kw_only=True):
    """End the run badly."""

    code: str
    message: str


class Cancel(msgspec.Struct, frozen=True, kw_only=True):
    """End the run because somebody asked for it.

    With `forgets` a child's idempotency key is free again: who calls with it begins a new child.
    """

    reason: str
    forgets: bool = False


class Pause(msgspec.Struct, frozen=True, kw_only=True):
    """Wait for a client or a human."""

    state: RunState


class Resume(msgspec.Struct, frozen=True, kw_only=True):
    """Go on: nothing is awaited any more."""


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """Write down something that happened in the run and leaves its state alone.

    With `fires`, only who deletes the timer of that run id and kind may do it.
    """

    payload: ev.Payload
    fires: tuple[str, str] | None = None


Command: TypeAlias = Accept | Begin | Repeat | Complete | Fail | Cancel | Pause | Resume | Record


def decide(run: Run, command: Command) -> tuple[ev.Payload, ...]:
    """Return the events that `command` leads to; none when it has nothing left to change.

    For `Accept`, `run` is the run as it would be created. Raises RunEnded after the terminal
    event and Conflict for a command that the state does not allow.
    """
    payloads = _proposed(run, command)
    _check(run, command, payloads)
    return payloads


def _proposed(run: Run, command: Command) -> tuple[ev.Payload, ...]:  # noqa: C901, PLR0911  # an arm each
    match command:
        case Accept():
            return _accepted(run, command)
        case Begin(endpoint=endpoint, instance_id=instance):
            return (_invoked(run, endpoint, instance),)
        case Repeat(code=code, message=message, delay_ms=delay):
            return (_repeated(run, code, message, delay),)
        case Complete(final_message=final, usage=usage):
            done = ev.AgentInvokeDone(final_message=final, usage=usage)
            return (done, ev.RunDone(final_message=final, usage=usage or None))
        case Fail(code=code, message=message):
            return (ev.RunFailed(code=code, message=message),)
        case Cancel(reason=reason):
            cancelled = run.status is RunState.CANCELLED
            return () if cancelled else (ev.RunCancelled(reason=reason),)
        case Pause(state=state):
            return () if run.status is state else (ev.RunPaused(state=state),)
        case Resume():
            return (ev.RunResumed(state=RunState.RUNNING),) if run.status in PAUSED else ()
        case Record(payload=payload):
            return (payload,)


def _accepted(run: Run, command: Accept) -> tuple[ev.Payload, ...]:
    started = ev.RunStarted(
        request_id=run.request_id,
        session_id=run.session_id,
        agent_id=run.agent_id,
        parent_run_id=run.parent_run_id,
    )
    message = ev.UserInput(
        message_id=command.message_id,
        role=command.role,
        content=command.content,
        queued=command.queued or None,
    )
    return (started, message)


def _invoked(run: Run, endpoint: str, instance_id: str | None) -> ev.Payload:
    return ev.AgentInvokeStarted(
        agent_id=run.agent_id,
        endpoint=endpoint,
        attempt=run.attempt + 1,
        instance_id=instance_id,
    )


def _repeated(run: Run, code: str, message: str, delay_ms: int) -> ev.Payload:
    return ev.AgentInvokeRetrying(
        attempt=run.attempt + 1,
        code=code,
        message=message,
        delay_ms=delay_ms,
        discard_from_seq=run.attempt_seq + 1,
    )


def _check(run: Run, command: Command, payloads: tuple[ev.Payload, ...]) -> None:
    state: RunState | None = None if isinstance(command, Accept) else run.status
    if payloads and state in ENDED:
        raise RunEnded(
            f"run {run.run_id} has already ended as {state}; start a new run instead",
            status=str(state),
        )
    for payload in payloads:
        after = _step(state, payload)
        if after is None:
            raise Conflict(
                f"run {run.run_id} is {state}: {payload.type} cannot happen now",
                status=str(state),
            )
        state = after


def _step(state: RunState | None, payload: ev.Payload) -> RunState | None:
    field = RUN.deciding.get(payload.type)
    return RUN.step(state, payload.type, getattr(payload, field) if field else None)


def unmoved(payload: ev.Payload) -> frozenset[RunState]:
    """Return the states in which an event is legal and changes nothing."""
    return frozenset(state for state in OPEN if _step(state, payload) is state)


def evolve(run: Run, payload: ev.Payload, ts: int) -> Run:
    """Return the run after an event; `head` and `version` are left to the store.

    Raises Conflict when the state machine has no such edge.
    """
    before = None if isinstance(payload, ev.RunStarted) else run.status
    status = _step(before, payload)
    if status is None:
        raise Conflict(f"{payload.type} cannot follow {before}", status=str(before))
    changes: dict[str, Any] = {"status": status}
    match payload:
        case ev.AgentInvokeStarted(attempt=attempt):
            changes |= {"attempt": attempt, "attempt_seq": HEAD, "attempting": True}
            changes["started_at"] = run.started_at or ts
        case ev.AgentInvokeRetrying():
            changes["attempting"] = False
        case ev.RunDone(final_message=final, usage=usage):
            changes |= {"final_message": final, "usage": usage}
        case ev.RunFailed(code=code, message=message):
            changes |= {"error_code": code, "error_message": message}
        case ev.RunCancelled(reason=reason):
            changes |= {"error_code": "cancelled", "error_message": reason}
        case _:
            pass
    if status in ENDED:
        changes |= {"ended_at": ts, "owner": None, "attempting": False}
    return replace(run, **changes)
