"""Commands lead to legal histories only, and to exactly one end."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from orchestrator.core import events as ev
from orchestrator.core.decide import (
    Accept,
    Begin,
    Cancel,
    Command,
    Complete,
    Fail,
    Pause,
    Repeat,
    Resume,
    decide,
    evolve,
)
from orchestrator.core.errors import Conflict, RunEnded
from orchestrator.core.records import HEAD, Run
from orchestrator.core.states import ENDED, RunState

NEW = Run(
    run_id="run_1", tenant="t", session_id="s", agent_id="a", message_id="m", created_at=1,
    deadline_at=9,
)  # fmt: skip
ACCEPT = Accept(message_id="m", role="user", content="hello")
BEGIN = Begin(endpoint="http://a")
COMMANDS: list[Command] = [
    BEGIN,
    Repeat(code="agent_eof", message="x", delay_ms=5),
    Complete(message_id="m2", final_message="hi", usage={}),
    Fail(code="agent_eof", message="x"),
    Cancel(reason="enough"),
    Pause(state=RunState.PAUSED_WAITING_TOOL),
    Pause(state=RunState.PAUSED_WAITING_APPROVAL),
    Resume(),
]


def _apply(run: Run, command: Command) -> tuple[Run, list[str]]:
    payloads = decide(run, command)
    for payload in payloads:
        run = evolve(run, payload, 5)
    return run, [payload.type for payload in payloads]


def test_a_good_run_has_the_contracts_order() -> None:
    run, types = _apply(NEW, ACCEPT)
    for command in (BEGIN, COMMANDS[2]):
        run, more = _apply(run, command)
        types += more
    assert types == [
        "run_started",
        "user_input",
        "agent_invoke_started",
        "agent_invoke_done",
        "run_done",
    ]
    assert (run.status, run.final_message, run.ended_at) == (RunState.DONE, "hi", 5)


@given(st.lists(st.sampled_from(COMMANDS), max_size=30))
def test_any_sequence_of_commands_ends_at_most_once_and_nothing_follows(
    commands: list[Command],
) -> None:
    run, types = _apply(NEW, ACCEPT)
    for command in commands:
        try:
            run, more = _apply(run, command)
        except Conflict:
            continue
        types += more
    ends = [name for name in types if name in ev.TERMINAL]
    assert len(ends) == (run.status in ENDED)
    if ends:
        assert types[-1] == ends[0]
        assert run.ended_at == 5
        assert run.owner is None


@pytest.mark.parametrize("end", [COMMANDS[2], COMMANDS[3]])
def test_an_ended_run_refuses_every_command_and_says_how_it_ended(end: Command) -> None:
    run, _ = _apply(replace(NEW, status=RunState.RUNNING), end)
    for command in COMMANDS[:5]:
        with pytest.raises(RunEnded) as caught:
            decide(run, command)
        assert caught.value.details["status"] == run.status


def test_cancelling_a_cancelled_run_changes_nothing() -> None:
    run, _ = _apply(NEW, Cancel(reason="first"))
    assert decide(run, Cancel(reason="second")) == ()


def test_a_repeat_voids_what_the_lost_attempt_said_and_nothing_before_it() -> None:
    run = replace(NEW, status=RunState.RUNNING, attempt=2, attempt_seq=40)
    (payload,) = decide(run, COMMANDS[1])
    assert isinstance(payload, ev.AgentInvokeRetrying)
    assert (payload.attempt, payload.discard_from_seq) == (3, 41)


def test_an_attempt_is_numbered_and_its_place_in_the_log_left_to_the_store() -> None:
    run, _ = _apply(replace(NEW, attempt=1, status=RunState.RUNNING), BEGIN)
    assert (run.attempt, run.attempt_seq) == (2, HEAD)


def test_a_queued_run_can_be_cancelled_but_not_completed() -> None:
    assert _apply(NEW, Cancel(reason="x"))[0].status is RunState.CANCELLED
    with pytest.raises(Conflict):
        decide(NEW, COMMANDS[2])
