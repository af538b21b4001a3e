"""What must hold when a simulation is over, whatever happened in it."""

from collections.abc import Iterator
from typing import Any, Final

import msgspec

from orchestrator.core.batch import Batch
from orchestrator.core.events import DELTAS, TERMINAL, LogEvent, open_event
from orchestrator.core.live import live
from orchestrator.core.records import PENDING, IdempotencyKey, Message, Run, Timer
from orchestrator.core.states import ENDED, RunState
from orchestrator.testing.history import sealed, violations
from orchestrator.testing.simulator.agent import said
from orchestrator.testing.simulator.readers import SessionReader
from orchestrator.testing.simulator.stage import Call, Stage

_TELLING: Final = frozenset({"agent_invoke_started", "agent_stream_delta", "run_done"})
_CLOSED_S: Final = 1.0
"""How soon after the end of a run, a cancelled one's too, its agent's stream is closed."""


def judge(stage: Stage) -> None:
    """Add what is wrong to `stage.wrong`."""
    for run in stage.runs():
        for what in _run(stage, run):
            stage.wrong.append(f"{stage.name(run.run_id)}: {what}")
    stage.wrong += _promises(stage)
    stage.wrong += _readers(stage)
    stage.wrong += _closed(stage)
    stage.wrong += _transcripts(stage)
    stage.wrong += _pushes(stage)


# ------------------------------------------------------------ one run


def _run(stage: Stage, run: Run) -> Iterator[str]:
    log = stage.disk.tables.log(run.run_id)
    yield from violations(sealed(log), over=stage.plan.liveness)
    versions = sum(kind not in DELTAS for kind in log.types)
    if (run.head, run.version) != (len(log), versions):
        yield f"its row says head {run.head}, version {run.version}; its log {len(log)}, {versions}"
    ended = bool(log) and log[-1].type in TERMINAL
    if ended != (run.status in ENDED):
        yield f"its row says {run.status}, its log ends with {log[-1].type}"
    if run.error_code == "internal_error":
        yield f"the engine itself failed: {run.error_message}"
    yield from _attempts(stage, run, log)


def _attempts(stage: Stage, run: Run, log: Batch) -> Iterator[str]:
    """Each attempt's events are its own call's, in order and without a hole."""
    made = [call for call in stage.calls if call.run_id == run.run_id]
    calls = {call.attempt: call for call in made}
    if len(calls) != len(made) and run.run_id not in stage.cut_back:
        yield "one of its attempts was made twice"
    attempt, words = 0, list[str]()
    for event in log:
        if event.type == "agent_invoke_started":
            attempt, words = attempt + 1, []
        if event.type in _TELLING:
            yield from _told(calls.get(attempt), attempt, words, event)
    if run.attempt != attempt:
        yield f"its row counts {run.attempt} attempts, its log {attempt}"


def _told(call: Call | None, attempt: int, words: list[str], event: LogEvent) -> Iterator[str]:
    payload: dict[str, Any] = msgspec.json.decode(open_event(event.data).payload)
    if event.type == "agent_invoke_started" and payload["attempt"] != attempt:
        yield f"attempt {payload['attempt']} came where {attempt} was due"
    elif event.type == "agent_stream_delta":
        words.append(payload["text"])
        if call is None or words != call.words[: len(words)]:
            yield f"#{event.seq} holds {words[-1]!r}, which attempt {attempt} did not say then"
    elif event.type == "run_done":
        yield from _answer(call, payload.get("final_message"))


def _answer(call: Call | None, message: Any) -> Iterator[str]:
    if call is None or (said(call) or None) != (message or None):
        yield f"it is done with {message!r}, which its last attempt did not say"


# ------------------------------------------------------------ what people were told


def _promises(stage: Stage) -> Iterator[str]:
    runs = {run.run_id: run for run in stage.runs()}
    for run_id in stage.promises.runs:
        if run_id not in runs:
            yield f"{stage.name(run_id)} was acknowledged and is lost"
    yield from _seen_states(stage, runs)
    for (session_id, key), led_to in stage.promises.answers.items():
        if len(led_to) > 1:
            yield f"request id {key!r} of {session_id} led to {len(led_to)} runs"
    for row in stage.disk.tables.rows[IdempotencyKey].values():
        if row.ref not in runs:
            yield f"request id {row.key!r} leads to no run"


def _seen_states(stage: Stage, runs: dict[str, Run]) -> Iterator[str]:
    for run_id, states in stage.promises.ends.items():
        if run_id in runs and states != {runs[run_id].status}:
            yield f"{stage.name(run_id)} was seen {states} and is {runs[run_id].status}"


def _readers(stage: Stage) -> Iterator[str]:
    for reader in stage.readers:
        for run_id, seen in reader.shown().items():
            log = stage.disk.tables.log(run_id)
            for what in violations(sealed(log), sealed(seen), over=False):
                yield f"{reader.who}, {stage.name(run_id)}: {what}"


def _closed(stage: Stage) -> Iterator[str]:
    """When a run has ended, by cancel or otherwise, its agent is not listened to any more."""
    if stage.plan.replicas > 1:
        return  # a server hears of what the other one did with its next word
    now = stage.loop.time()
    for call in stage.calls:
        end = stage.over.get(call.run_id)
        if end is None or call.server.was_cut:
            continue
        if (call.closed or now) > end + _CLOSED_S:
            yield f"call {call.number} was still open a second after its run's end at {end:.3f} s"


# ------------------------------------------------------------ sessions


def _transcripts(stage: Stage) -> Iterator[str]:
    by_session: dict[str, list[Message]] = {}
    for message in stage.disk.tables.rows[Message].values():
        by_session.setdefault(message.session_id, []).append(message)
    runs = {run.run_id: run for run in stage.runs()}
    for session_id, messages in by_session.items():
        messages.sort(key=lambda message: message.pos)
        for what in _transcript(stage, messages, runs):
            yield f"session {session_id}: {what}"


def _transcript(stage: Stage, messages: list[Message], runs: dict[str, Run]) -> Iterator[str]:
    if len({message.pos for message in messages}) != len(messages):
        yield "two messages have one place"
    begun = [m for m in messages if m.pos < PENDING and _begun(runs, m)]
    in_turn = [m for m in begun if not runs[str(m.run_id)].parallel]
    order = [(runs[str(m.run_id)].key, m.role != "user") for m in in_turn]
    if order != sorted(order):
        yield f"its transcript is out of order: {order}"
    for call in stage.calls:
        if call.root and messages and call.session_id == messages[0].session_id:
            yield from _was_told(call, messages)
    for message in messages:
        run = runs.get(str(message.run_id))
        if run is None:
            yield f"a message belongs to {message.run_id}, which is not there"
        elif (message.pos > PENDING) != (run.status is RunState.CREATED):
            yield f"the message of a run that is {run.status} has place {message.pos}"


def _begun(runs: dict[str, Run], message: Message) -> bool:
    run = runs.get(str(message.run_id))
    return run is not None and run.attempt > 0


def _was_told(call: Call, messages: list[Message]) -> Iterator[str]:
    at = next((n for n, m in enumerate(messages) if m.run_id == call.run_id), None)
    before = [{"role": m.role, "content": m.content} for m in messages[:at]]
    if at is not None and call.messages != before:
        yield f"call {call.number} was told {call.messages} of {before}"


# ------------------------------------------------------------ the ingress


def _pushes(stage: Stage) -> Iterator[str]:
    for run_id, pushed in stage.pushed.items():
        log = stage.disk.tables.log(run_id)
        safe = stage.cut_back.get(run_id, len(log))
        truth = {event.seq: live(event) for event in log}
        newest = 0
        for seq, data in pushed:
            if seq > safe:
                break
            if data != truth[seq]:
                yield f"{stage.name(run_id)}: #{seq} was pushed and is something else in the log"
            newest = max(newest, seq)
        yield from _skipped(stage.name(run_id), pushed, truth, safe)


def _skipped(
    name: str, pushed: list[tuple[int, bytes]], truth: dict[int, bytes | None], safe: int
) -> Iterator[str]:
    """Each event comes after all that are before it in the log, the first time it comes."""
    known = set[int]()
    for seq, _ in pushed:
        if seq > safe:
            return
        missing = [n for n, data in truth.items() if n < seq and data and n not in known]
        if missing:
            yield f"{name}: #{seq} was pushed before {missing}"
            return
        known.add(seq)


# ------------------------------------------------------------ the calm


def waiting(stage: Stage) -> list[str]:
    """Return what is not yet as it must be when all is over."""
    found = [f"a timer is left: {timer}" for timer in stage.disk.tables.rows[Timer].values()]
    if stage.plan.replicas == 1:
        found += [f"{name} says {value}" for name, value in stage.gauges().items() if value]
    for run in stage.runs():
        log = stage.disk.tables.log(run.run_id)
        found += [
            f"the reader of session {reader.session_id} lacks events of {stage.name(run.run_id)}"
            for reader in stage.readers
            if isinstance(reader, SessionReader)
            and reader.session_id == run.session_id
            and len(reader.seen.get(run.run_id, ())) != len(log)
        ]
        if stage.plan.pushes and run.run_id not in stage.cut_back and stage.leases_hold:
            found += _not_pushed(stage, run, log)
    return found


def _not_pushed(stage: Stage, run: Run, log: Batch) -> list[str]:
    if stage.faults["clock_jump_forward"]:
        return []  # a jump over the minute in which the ingress is waited for ends the waiting
    known = {seq for seq, _ in stage.pushed.get(run.run_id, ())}
    lacking = [event.seq for event in log if live(event) and event.seq not in known]
    return [f"{stage.name(run.run_id)}: {lacking} were never pushed"] if lacking else []
