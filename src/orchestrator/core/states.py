"""The three state machines, as tables: state → (event type, value of its deciding field) → state.

Everything that must agree with them reads them: `evolve`, the CHECKs of the databases, the
diagrams in the docs, the property tests. `None` is the state before the first event; an event
without a deciding field has the value `None`. One event may pass several states at once.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Final, Generic, NamedTuple, TypeAlias, TypeVar


class RunState(StrEnum):
    """Where a run stands."""

    CREATED = "CREATED"
    RUNNING = "RUNNING"
    PAUSED_WAITING_TOOL = "PAUSED_WAITING_TOOL"
    PAUSED_WAITING_APPROVAL = "PAUSED_WAITING_APPROVAL"
    DONE = "DONE"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"


class ToolCallState(StrEnum):
    """Where a tool call stands."""

    CREATED = "CREATED"
    POLICY_CHECKED = "POLICY_CHECKED"
    BLOCKED = "BLOCKED"
    WAITING_APPROVAL = "WAITING_APPROVAL"
    APPROVED = "APPROVED"
    REJECTED = "REJECTED"
    DISPATCHED = "DISPATCHED"
    RUNNING = "RUNNING"
    WAITING_CLIENT = "WAITING_CLIENT"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    TIMEOUT = "TIMEOUT"
    CANCELLED = "CANCELLED"


class ApprovalState(StrEnum):
    """Where an approval stands."""

    PENDING = "PENDING"
    APPROVED = "APPROVED"
    REJECTED = "REJECTED"
    EXPIRED = "EXPIRED"
    CANCELLED = "CANCELLED"


S = TypeVar("S", bound=StrEnum)
Trigger: TypeAlias = tuple[str, str | None]
Path: TypeAlias = tuple[S, ...]


class Machine(NamedTuple, Generic[S]):
    """A state machine: its name, its table and, per event type, the payload field that decides."""

    name: str
    table: Mapping[S | None, Mapping[Trigger, Path[S]]]
    deciding: Mapping[str, str]

    def step(self, state: S | None, event: str, value: str | None = None) -> S | None:
        """Return the state after `event`, or None when the table has no such edge."""
        path = self.table.get(state, {}).get((event, value))
        return path[-1] if path else None

    def terminal(self) -> frozenset[S]:
        """Return the states nothing leads out of."""
        reached = {s for edges in self.table.values() for path in edges.values() for s in path}
        return frozenset(s for s in reached if not self.table.get(s))

    def edges(self) -> list[tuple[S | None, Trigger, S]]:
        """Return every single edge, the passed-through states included, for diagrams and tests."""
        found = []
        for start, row in self.table.items():
            for trigger, path in row.items():
                for before, after in zip((start, *path), path, strict=False):
                    found.append((before, trigger, after))
        return found


def _run_table() -> dict[RunState | None, dict[Trigger, Path[RunState]]]:
    s = RunState
    ends: dict[Trigger, Path[RunState]] = {
        ("run_failed", None): (s.FAILED,),
        ("run_cancelled", None): (s.CANCELLED,),
    }
    pauses: dict[Trigger, Path[RunState]] = {
        ("run_paused", s.PAUSED_WAITING_TOOL): (s.PAUSED_WAITING_TOOL,),
        ("run_paused", s.PAUSED_WAITING_APPROVAL): (s.PAUSED_WAITING_APPROVAL,),
    }

    def staying(state: RunState) -> dict[Trigger, Path[RunState]]:
        return {(event, None): (state,) for event in STREAMED}

    def paused(state: RunState, other: RunState) -> dict[Trigger, Path[RunState]]:
        return {
            ("run_resumed", s.RUNNING): (s.RUNNING,),
            ("run_paused", other): (other,),
            ("agent_invoke_done", None): (state,),
            ("run_done", None): (s.DONE,),
            **staying(state),
            **ends,
        }

    return {
        None: {("run_started", None): (s.CREATED,)},
        s.CREATED: {
            ("user_input", None): (s.CREATED,),
            ("agent_invoke_started", None): (s.RUNNING,),
            **ends,
        },
        s.RUNNING: {
            ("agent_invoke_started", None): (s.RUNNING,),
            ("agent_invoke_retrying", None): (s.RUNNING,),
            ("agent_invoke_done", None): (s.RUNNING,),
            ("run_done", None): (s.DONE,),
            **staying(s.RUNNING),
            **pauses,
            **ends,
        },
        s.PAUSED_WAITING_TOOL: paused(s.PAUSED_WAITING_TOOL, s.PAUSED_WAITING_APPROVAL),
        s.PAUSED_WAITING_APPROVAL: paused(s.PAUSED_WAITING_APPROVAL, s.PAUSED_WAITING_TOOL),
    }


def _tool_call_table() -> dict[ToolCallState | None, dict[Trigger, Path[ToolCallState]]]:
    s = ToolCallState
    cancelled: dict[Trigger, Path[ToolCallState]] = {("tool_result", s.CANCELLED): (s.CANCELLED,)}
    executing: dict[Trigger, Path[ToolCallState]] = {
        ("tool_result", s.SUCCEEDED): (s.SUCCEEDED,),
        ("tool_result", s.FAILED): (s.FAILED,),
        ("tool_result", s.TIMEOUT): (s.TIMEOUT,),
        ("tool_dispatched", s.DISPATCHED): (s.DISPATCHED,),
        **cancelled,
    }
    return {
        None: {("tool_call_created", None): (s.CREATED,)},
        s.CREATED: {
            ("policy_decision", "allow"): (s.POLICY_CHECKED,),
            ("policy_decision", "require_approval"): (
                s.POLICY_CHECKED,
                s.WAITING_APPROVAL,
            ),
            ("policy_decision", "block"): (s.POLICY_CHECKED, s.BLOCKED),
            **cancelled,
        },
        s.POLICY_CHECKED: {
            ("tool_dispatched", s.DISPATCHED): (s.DISPATCHED,),
            ("tool_dispatched", s.RUNNING): (s.DISPATCHED, s.RUNNING),
            **cancelled,
        },
        s.WAITING_APPROVAL: {
            ("approval_decision", "APPROVED"): (s.APPROVED,),
            ("approval_decision", "REJECTED"): (s.REJECTED,),
            ("approval_decision", "EXPIRED"): (s.TIMEOUT,),
            ("approval_decision", "CANCELLED"): (s.CANCELLED,),
            **cancelled,
        },
        s.APPROVED: {
            ("tool_dispatched", s.DISPATCHED): (s.DISPATCHED,),
            ("tool_dispatched", s.RUNNING): (s.DISPATCHED, s.RUNNING),
            **cancelled,
        },
        s.DISPATCHED: {
            ("tool_dispatched", s.RUNNING): (s.RUNNING,),
            ("tool_request", s.WAITING_CLIENT): (s.WAITING_CLIENT,),
            ("tool_result", s.FAILED): (s.FAILED,),
            ("tool_result", s.TIMEOUT): (s.TIMEOUT,),
            **cancelled,
        },
        s.RUNNING: executing,
        s.WAITING_CLIENT: executing,
    }


def _approval_table() -> dict[ApprovalState | None, dict[Trigger, Path[ApprovalState]]]:
    s = ApprovalState
    return {
        None: {("approval_required", None): (s.PENDING,)},
        s.PENDING: {
            ("approval_decision", end): (end,)
            for end in (s.APPROVED, s.REJECTED, s.EXPIRED, s.CANCELLED)
        },
    }


STREAMED: Final = (
    "agent_stream_delta",
    "agent_state",
    "agent_event",
    "agent_called_child",
    "llm_call_started",
    "llm_call_done",
    "tool_call_created",
    "policy_decision",
    "tool_dispatched",
    "tool_request",
    "tool_result",
    "approval_required",
    "approval_decision",
)
"""Events that are legal while a run is RUNNING or PAUSED and leave its state alone."""

RUN: Final = Machine("run", _run_table(), {"run_paused": "state", "run_resumed": "state"})
TOOL_CALL: Final = Machine(
    "tool_call",
    _tool_call_table(),
    {
        "policy_decision": "decision",
        "tool_dispatched": "state",
        "tool_request": "state",
        "tool_result": "state",
        "approval_decision": "decision",
    },
)
APPROVAL: Final = Machine("approval", _approval_table(), {"approval_decision": "decision"})

OPEN: Final = frozenset(s for s in RunState if RUN.table.get(s))
ENDED: Final = RUN.terminal()
PAUSED: Final = frozenset({RunState.PAUSED_WAITING_TOOL, RunState.PAUSED_WAITING_APPROVAL})
HOLDS_SESSION: Final = OPEN - PAUSED
"""States in which a root run keeps later runs of its session waiting."""
