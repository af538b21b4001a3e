"""The state tables say exactly what the contract says."""

import pytest

from orchestrator.core.events import CATALOGUE, TERMINAL
from orchestrator.core.states import (
    APPROVAL,
    ENDED,
    OPEN,
    PAUSED,
    RUN,
    TOOL_CALL,
    Machine,
)

RUN_EDGES = """
∅ → CREATED
CREATED → RUNNING FAILED CANCELLED
RUNNING → PAUSED_WAITING_TOOL PAUSED_WAITING_APPROVAL DONE FAILED CANCELLED
PAUSED_WAITING_TOOL → RUNNING DONE FAILED CANCELLED PAUSED_WAITING_APPROVAL
PAUSED_WAITING_APPROVAL → RUNNING DONE FAILED CANCELLED PAUSED_WAITING_TOOL
"""
TOOL_CALL_EDGES = """
∅ → CREATED
CREATED → POLICY_CHECKED CANCELLED
POLICY_CHECKED → BLOCKED WAITING_APPROVAL DISPATCHED CANCELLED
WAITING_APPROVAL → APPROVED REJECTED TIMEOUT CANCELLED
APPROVED → DISPATCHED CANCELLED
DISPATCHED → RUNNING WAITING_CLIENT FAILED TIMEOUT CANCELLED
RUNNING → SUCCEEDED FAILED TIMEOUT DISPATCHED CANCELLED
WAITING_CLIENT → SUCCEEDED FAILED TIMEOUT DISPATCHED CANCELLED
"""
APPROVAL_EDGES = """
∅ → PENDING
PENDING → APPROVED REJECTED EXPIRED CANCELLED
"""


def _parsed(text: str) -> set[tuple[str, str]]:
    pairs = set()
    for line in text.strip().splitlines():
        start, ends = line.split(" → ")
        pairs |= {(start, end) for end in ends.split()}
    return pairs


@pytest.mark.parametrize(
    ("machine", "text"),
    [(RUN, RUN_EDGES), (TOOL_CALL, TOOL_CALL_EDGES), (APPROVAL, APPROVAL_EDGES)],
    ids=lambda value: getattr(value, "name", ""),
)
def test_every_edge_is_the_contracts_and_none_is_missing(machine: Machine, text: str) -> None:
    moves = {(str(a or "∅"), str(b)) for a, _, b in machine.edges() if a != b}
    assert moves == _parsed(text)


@pytest.mark.parametrize("machine", [RUN, TOOL_CALL, APPROVAL], ids=lambda m: m.name)
def test_every_trigger_is_an_event_of_the_catalogue(machine: Machine) -> None:
    for _, (event, value), _ in machine.edges():
        assert event in CATALOGUE
        field = machine.deciding.get(event)
        assert (field is None) == (value is None)
        if field is not None:
            assert field in CATALOGUE[event].__struct_fields__


def test_nothing_leaves_a_terminal_state_and_only_terminal_events_enter_one() -> None:
    entering = {event for a, (event, _), b in RUN.edges() if b in ENDED and a not in ENDED}
    assert entering == TERMINAL
    assert {b for _, _, b in RUN.edges()} == ENDED | OPEN
    assert PAUSED < OPEN
