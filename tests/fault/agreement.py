"""Whether a store agrees with itself: every log is legal, and every row says what its log says."""

from typing import Any

import msgspec

from orchestrator.core.events import DELTAS, open_event
from orchestrator.core.records import (
    PENDING,
    IdempotencyKey,
    Invocation,
    Message,
    Run,
    Session,
    Timer,
)
from orchestrator.core.states import ENDED, RUN, RunState
from orchestrator.ports import Store
from orchestrator.testing.history import sealed, violations

ALL = 1_000_000


async def disagreements(store: Store) -> list[str]:
    """Return, in words, whatever of a store's rows does not follow from its logs."""
    found: list[str] = []
    runs = await store.find(Run, limit=ALL)
    messages = await store.find(Message, limit=ALL)
    timers = {timer.run_id for timer in await store.find(Timer, limit=ALL)}
    asked = {invocation.run_id for invocation in await store.find(Invocation, limit=ALL)}
    for run in runs:
        log = sealed(await store.read(run.run_id, 0, ALL))
        wrong = _of_run(run, log) + _of_messages(run, messages)
        if (run.run_id in timers) == (run.status in ENDED):
            wrong.append(f"{run.status} and its timer disagree")
        if run.run_id not in asked:
            wrong.append("its invocation is missing")
        found += [f"{run.run_id}: {what}" for what in wrong]
    known = {run.run_id for run in runs}
    for key in await store.find(IdempotencyKey, limit=ALL):
        if key.run_id not in known:
            found.append(f"key {key.key} leads to {key.run_id}, which is not there")
    sessions = await store.find(Session, limit=ALL)
    return found + _of_sessions(sessions, messages)


def _of_run(run: Run, log: list[bytes]) -> list[str]:
    if run.trimmed:  # its deltas are gone, and nobody numbers anew
        return []
    found = violations(log, over=run.status in ENDED)
    envelopes = [open_event(data) for data in log]
    state: RunState | None = None
    for envelope in envelopes:
        field = RUN.deciding.get(envelope.type)
        value = msgspec.json.decode(envelope.payload)[field] if field else None
        state = RUN.step(state, envelope.type, value)
    said = {
        "status": (run.status, state),
        "head": (run.head, len(log)),
        "version": (run.version, sum(e.type not in DELTAS for e in envelopes)),
        "attempt": (run.attempt, sum(e.type == "agent_invoke_started" for e in envelopes)),
    }
    return found + _differing(said)


def _differing(said: dict[str, tuple[Any, Any]]) -> list[str]:
    return [f"{what} is {row}, its log says {log}" for what, (row, log) in said.items()
            if row != log]  # fmt: skip


def _of_messages(run: Run, messages: list[Message]) -> list[str]:
    own = {message.message_id: message for message in messages if message.run_id == run.run_id}
    question = own.pop(run.message_id, None)
    if question is None:
        return ["its question is missing from the transcript"]
    begun = run.attempt > 0 or run.status is not RunState.CREATED
    if (question.pos < PENDING) != begun:
        return [f"{run.status}, and its question is at {question.pos}"]
    answers = [message for message in own.values() if message.role == "assistant"]
    wanted = 1 if run.status is RunState.DONE and run.final_message else 0
    return [] if len(answers) == wanted else [f"{run.status} with {len(answers)} answers"]


def _of_sessions(sessions: list[Session], messages: list[Message]) -> list[str]:
    found = []
    places = [(message.tenant, message.session_id, message.pos) for message in messages]
    if len(set(places)) != len(places):
        found.append("two messages of a session stand at one position")
    heads = {(session.tenant, session.session_id): session.pos for session in sessions}
    for tenant, session_id, pos in places:
        if pos < PENDING and pos > heads.get((tenant, session_id), -1):
            found.append(f"session {session_id} is behind a message at {pos}")
    return found
