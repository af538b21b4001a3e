"""What the store machine asks about records: conditions, orders and limits, drawn from tables."""

from typing import Any, Final

import msgspec
from hypothesis import strategies as st

from orchestrator.core.records import (
    Agent,
    AuditEntry,
    Cursor,
    IdempotencyKey,
    Message,
    Record,
    Run,
    Session,
    Timer,
)
from orchestrator.core.states import OPEN, RunState
from orchestrator.ports import Where
from orchestrator.testing import records as r
from orchestrator.testing.store_machine_ops import numbers, run_of


class KeyOf(msgspec.Struct, frozen=True):
    """Stands in a condition for the key of a run, which is each store's own to give."""

    run: int


class Question(msgspec.Struct, frozen=True):
    """What `find` and `count` are asked."""

    kind: type[Record]
    where: tuple[Where, ...]
    order: str
    limit: int


_NAMES: Final = {"run_id": [run_of(n).run_id for n in range(3)]}
_CONDITIONS: Final[dict[type[Record], list[Where]]] = {
    Run: [
        ("status", "in", sorted(OPEN)),
        ("status", "in", []),
        ("status", "=", RunState.RUNNING),
        ("status", "!=", RunState.DONE),
        ("session_id", "=", "s1"),
        ("session_id", "=", "s'; DROP TABLE runs"),
        ("run_id", "in", _NAMES["run_id"]),
        ("ended_at", "=", None),
        ("ended_at", "!=", None),
        ("ended_at", "is", None),
        ("ended_at", "<", r.AT + 20_000),
        ("created_at", ">=", r.AT + 3),
        ("created_at", "<", r.AT + 5),
        ("parent_run_id", "=", None),
        ("parent_run_id", "!=", run_of(1).run_id),
        ("owner", "=", "o0"),
        ("owner", "!=", "o0"),
        ("epoch", ">", 0),
        ("epoch", "in", [0, 2]),
        ("head", ">", 2),
        ("head", "in", [1, 2, 3]),
        ("version", "<=", 2),
        ("trimmed", "=", True),
        ("attempting", "=", False),
    ],
    Message: [
        ("role", "=", "tool"),
        ("run_id", "=", None),
        ("run_id", "in", _NAMES["run_id"]),
        ("metadata", "!=", None),
        ("created_at", ">", r.AT + 4),
    ],
    Timer: [
        ("due_at", "<=", r.AT + 600_000),
        ("kind", "=", "a"),
        ("run_id", "in", _NAMES["run_id"]),
    ],
    Agent: [
        ("status", "=", "healthy"),
        ("version", "!=", "1"),
        ("version", ">=", "1"),
        ("version", "in", ["2", "3"]),
        ("capabilities", "has", "ü"),
        ("capabilities", "has", "z"),
        ("draining", "=", True),
    ],
    Session: [("session_id", "in", ["s0", "s2"]), ("pos", ">", 1), ("user_id", "=", None)],
    IdempotencyKey: [("key", "=", "k1"), ("ref", "!=", run_of(0).run_id)],
    Cursor: [("follower", "=", "f"), ("seq", ">=", 4)],
    AuditEntry: [("action", "=", "made"), ("seq", "<", 3), ("tenant", "=", "default")],
}
_ORDERS: Final[dict[type[Record], list[str]]] = {
    Run: ["key", "created_at", "run_id", "version", "status"],
    Message: ["created_at", "message_id", "role"],
    Timer: ["due_at", "run_id"],
    Agent: ["agent_id", "status", "created_at"],
    Session: ["session_id", "created_at", "pos"],
    IdempotencyKey: ["key", "run_id"],
    Cursor: ["seq", "follower"],
    AuditEntry: ["seq", "at"],
}
"""Columns that are never absent: where an absent value sorts is each database's own to say."""

_KINDS: Final[list[type[Record]]] = [Run, Run, *_CONDITIONS]


@st.composite
def _questions(draw: st.DrawFn) -> Question:
    kind = draw(st.sampled_from(_KINDS))
    where = draw(st.lists(st.sampled_from(_CONDITIONS[kind]), max_size=3))
    order = draw(st.sampled_from(["", *_ORDERS[kind]]))
    if kind is Run and draw(st.booleans()):
        how: Any = draw(st.sampled_from(["<", ">", "<=", ">=", "="]))
        where.append(("key", how, KeyOf(draw(numbers))))
    if kind is Message and draw(st.booleans()):
        # Only within a session do the places of messages that wait mean anything.
        session = draw(st.sampled_from(["s0", "s1", "s2"]))
        where += [("tenant", "=", "default"), ("session_id", "=", session)]
        order = "pos"
    if order and draw(st.booleans()):
        order = f"-{order}"
    return Question(kind, tuple(where), order, draw(st.sampled_from([1, 2, 3, 100, 100])))


questions = _questions()
