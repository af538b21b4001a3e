"""What a run's events come to: fold them one by one into a view, for a screen or a summary.

The view is plain data, and its JSON, `msgspec.json.encode(view)`, that of the JavaScript SDK.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

import msgspec
from msgspec.structs import replace

from orchestrator_sdk.frames import Content, text_of
from orchestrator_sdk.shapes import LOG_RESET, RunEvent


class Piece(msgspec.Struct, frozen=True, kw_only=True):
    """A piece of the answer."""

    seq: int
    ts: int
    text: str


class StateLine(msgspec.Struct, frozen=True, kw_only=True):
    """What the agent said it was doing."""

    seq: int
    ts: int
    state: str
    detail: Any = None


class OwnEvent(msgspec.Struct, frozen=True, kw_only=True):
    """An event that only the agent knows."""

    seq: int
    ts: int
    name: str
    data: Any = None


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """One invocation of the agent; `code` and `message` say how it failed."""

    attempt: int | None
    agent_id: str | None
    endpoint: str | None
    instance_id: str | None
    seq: int
    started_at: int
    ended_at: int | None = None
    code: str | None = None
    message: str | None = None
    delay_ms: int | None = None


class Child(msgspec.Struct, frozen=True, kw_only=True):
    """A run that the agent began."""

    run_id: str
    agent_id: str
    seq: int
    ts: int


class ToolCall(msgspec.Struct, frozen=True, kw_only=True):
    """A tool call; `state` is the machine's word, `decision` that of policy."""

    tool_call_id: str
    tool_name: str | None = None
    kind: str | None = None
    args: Any = None
    state: str | None = None
    decision: str | None = None
    reason: str | None = None
    rules: list[str] | None = None
    deadline_ts: int | None = None
    status: str | None = None
    result: Any = None
    error: dict[str, Any] | None = None
    created_at: int | None = None
    ended_at: int | None = None


class Approval(msgspec.Struct, frozen=True, kw_only=True):
    """What a human is asked; `decision` is PENDING until somebody or the clock decides."""

    approval_id: str
    tool_call_id: str | None = None
    tool_name: str | None = None
    args_summary: str | None = None
    args: Any = None
    expires_at: int | None = None
    decision: str | None = None
    reason: str | None = None
    decided_by: str | None = None
    required_at: int | None = None
    decided_at: int | None = None


class LLMCall(msgspec.Struct, frozen=True, kw_only=True):
    """A model call through the proxy; `done_seq` is the seq of its end."""

    request_id: str
    seq: int | None = None
    done_seq: int | None = None
    model: str | None = None
    stream: bool | None = None
    started_at: int | None = None
    ended_at: int | None = None
    latency_ms: int | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    total_tokens: int | None = None
    error: str | None = None
    ttft_ms: int | None = None
    cost: float | None = None
    upstream: str | None = None


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """How a run ended badly; the code of a cancelled one is `cancelled`."""

    code: str | None
    message: str | None


class View(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a run; times are milliseconds UTC.

    `holes` are the first and last seq of what was never seen. What follows `durable_seq` may still
    be taken back by a power loss.
    """

    run_id: str | None = None
    session_id: str | None = None
    agent_id: str | None = None
    parent_run_id: str | None = None
    request_id: str | None = None
    status: str | None = None
    queued: bool = False
    seq: int = 0
    durable_seq: int = 0
    holes: tuple[tuple[int, int], ...] = ()
    input: Content | None = None
    text: str = ""
    pieces: tuple[Piece, ...] = ()
    states: tuple[StateLine, ...] = ()
    agent_events: tuple[OwnEvent, ...] = ()
    attempts: tuple[Attempt, ...] = ()
    children: tuple[Child, ...] = ()
    tool_calls: tuple[ToolCall, ...] = ()
    approvals: tuple[Approval, ...] = ()
    llm_calls: tuple[LLMCall, ...] = ()
    final_message: Content | None = None
    usage: dict[str, Any] | None = None
    error: Failure | None = None
    created_at: int | None = None
    started_at: int | None = None
    ended_at: int | None = None


def reduce(view: View, event: RunEvent) -> View:
    """Return the view after one more event of the run; doubles and other runs change nothing."""
    if view.run_id and event.run_id != view.run_id:
        return view
    if event.type == LOG_RESET:
        return _rewound(view, event.payload["after_seq"])
    if event.seq <= view.seq:
        return view
    hole = ((view.seq + 1, event.seq - 1),) if event.seq > view.seq + 1 else ()
    fold = _FOLD.get(event.type)
    durable = fold is not None and event.type not in _DELTAS
    return replace(
        view,
        run_id=event.run_id,
        holes=view.holes + hole,
        seq=event.seq,
        durable_seq=event.seq if durable else view.durable_seq,
        **(fold(view, event) if fold else {}),
    )


_DELTAS: Final = frozenset(
    {"agent_stream_delta", "agent_state", "agent_event", "llm_call_started", "llm_call_done"}
)
_MEASURED: Final = (
    "latency_ms", "prompt_tokens", "completion_tokens", "total_tokens", "error", "ttft_ms", "cost",
    "upstream",
)  # fmt: skip
_POLICY: Final = {
    "allow": "POLICY_CHECKED", "require_approval": "WAITING_APPROVAL", "block": "BLOCKED",
}  # fmt: skip
_ENDS: Final = {"run_done": "DONE", "run_failed": "FAILED", "run_cancelled": "CANCELLED"}

Changes = dict[str, Any]
Item = TypeVar("Item", ToolCall, Approval, LLMCall)


def _pick(payload: Mapping[str, Any], *names: str) -> Changes:
    return {name: payload.get(name) for name in names}


def _saying(items: tuple[Item, ...], blank: Item, key: str, fields: Changes) -> tuple[Item, ...]:
    """Return the items with more said of the one that `blank` names, known before or not."""
    wanted = getattr(blank, key)
    whole = list(items)
    if all(getattr(item, key) != wanted for item in items):
        whole.append(blank)
    return tuple(
        replace(item, **fields) if getattr(item, key) == wanted else item for item in whole
    )


def _tool(view: View, tool_call_id: str, fields: Changes) -> Changes:
    blank = ToolCall(tool_call_id=tool_call_id)
    return {"tool_calls": _saying(view.tool_calls, blank, "tool_call_id", fields)}


def _approval(view: View, approval_id: str, fields: Changes) -> Changes:
    blank = Approval(approval_id=approval_id)
    return {"approvals": _saying(view.approvals, blank, "approval_id", fields)}


def _llm(view: View, request_id: str, fields: Changes) -> Changes:
    blank = LLMCall(request_id=request_id)
    return {"llm_calls": _saying(view.llm_calls, blank, "request_id", fields)}


def _closed(view: View, ts: int, fields: Changes) -> tuple[Attempt, ...]:
    """Return the attempts, the last of which ends here if it is still open."""
    if not view.attempts or view.attempts[-1].ended_at is not None:
        return view.attempts
    return (*view.attempts[:-1], replace(view.attempts[-1], ended_at=ts, **fields))


def _ended(view: View, event: RunEvent, fields: Changes) -> Changes:
    """Return what the end of a run changes, however it ended."""
    attempts = _closed(view, event.ts, fields)
    status = _ENDS[event.type]
    return {"status": status, "queued": False, "ended_at": event.ts, "attempts": attempts}


def _kept(view: View, seq: int) -> Changes:
    """Return what the agent has said up to `seq`."""
    pieces = tuple(piece for piece in view.pieces if piece.seq <= seq)
    return {
        "pieces": pieces,
        "text": "".join(piece.text for piece in pieces),
        "states": tuple(state for state in view.states if state.seq <= seq),
        "agent_events": tuple(own for own in view.agent_events if own.seq <= seq),
    }


def _rewound(view: View, seq: int) -> View:
    """Return the view as it was after `seq`: only what changes no state can have been lost."""
    if seq >= view.seq:
        return view
    if seq < view.durable_seq:
        return View(run_id=view.run_id, seq=seq, holes=((1, seq),) if seq else ())
    undone = _pick({}, "done_seq", "ended_at", *_MEASURED)
    calls = (call for call in view.llm_calls if (call.seq or call.done_seq or 0) <= seq)
    return replace(
        view,
        seq=seq,
        holes=tuple((first, min(last, seq)) for first, last in view.holes if first <= seq),
        llm_calls=tuple(
            replace(call, **undone) if (call.done_seq or 0) > seq else call for call in calls
        ),
        **_kept(view, seq),
    )


def _run_started(_: View, event: RunEvent) -> Changes:
    names = _pick(event.payload, "session_id", "agent_id", "parent_run_id", "request_id")
    return {**names, "status": "CREATED", "created_at": event.ts}


def _user_input(_: View, event: RunEvent) -> Changes:
    return {"input": event.payload["content"], "queued": bool(event.payload.get("queued"))}


def _invoke_started(view: View, event: RunEvent) -> Changes:
    told = _pick(event.payload, "attempt", "agent_id", "endpoint", "instance_id")
    attempt = Attempt(**told, seq=event.seq, started_at=event.ts)
    return {
        "status": "RUNNING",
        "queued": False,
        "started_at": event.ts if view.started_at is None else view.started_at,
        "attempts": (*view.attempts, attempt),
    }


def _delta(view: View, event: RunEvent) -> Changes:
    return _said(view, event, event.payload["text"])


def _said(view: View, event: RunEvent, text: str) -> Changes:
    piece = Piece(seq=event.seq, ts=event.ts, text=text)
    return {"text": view.text + text, "pieces": (*view.pieces, piece)}


def _state(view: View, event: RunEvent) -> Changes:
    told = _pick(event.payload, "state", "detail")
    return {"states": (*view.states, StateLine(seq=event.seq, ts=event.ts, **told))}


def _own_event(view: View, event: RunEvent) -> Changes:
    told = _pick(event.payload, "name", "data")
    return {"agent_events": (*view.agent_events, OwnEvent(seq=event.seq, ts=event.ts, **told))}


def _invoke_done(view: View, event: RunEvent) -> Changes:
    told = _pick(event.payload, "final_message", "usage")
    return {**told, "attempts": _closed(view, event.ts, {})}


def _retrying(view: View, event: RunEvent) -> Changes:
    why = _pick(event.payload, "code", "message", "delay_ms")
    attempts = _closed(view, event.ts, why)
    return {**_kept(view, event.payload["discard_from_seq"] - 1), "attempts": attempts}


def _done(view: View, event: RunEvent) -> Changes:
    final, usage = event.payload.get("final_message"), event.payload.get("usage")
    final = view.final_message if final is None else final
    text = "" if view.text else text_of(final)  # of an agent that says it only here
    return {
        **(_said(view, event, text) if text else {}),
        "final_message": final,
        "usage": view.usage if usage is None else usage,
        **_ended(view, event, {}),
    }


def _failed(view: View, event: RunEvent) -> Changes:
    why = _pick(event.payload, "code", "message")
    return {"error": Failure(**why), **_ended(view, event, why)}


def _cancelled(view: View, event: RunEvent) -> Changes:
    error = Failure(code="cancelled", message=event.payload.get("reason"))
    return {"error": error, **_ended(view, event, {})}


def _paused(_: View, event: RunEvent) -> Changes:
    return {"status": event.payload["state"]}


def _resumed(_: View, __: RunEvent) -> Changes:
    return {"status": "RUNNING"}


def _called_child(view: View, event: RunEvent) -> Changes:
    run_id, agent_id = event.payload["child_run_id"], event.payload["agent_id"]
    child = Child(run_id=run_id, agent_id=agent_id, seq=event.seq, ts=event.ts)
    return {"children": (*view.children, child)}


def _llm_started(view: View, event: RunEvent) -> Changes:
    told = _pick(event.payload, "model", "stream")
    began = {"seq": event.seq, "started_at": event.ts}
    return _llm(view, event.payload["request_id"], told | began)


def _llm_done(view: View, event: RunEvent) -> Changes:
    told = _pick(event.payload, "model", "stream", *_MEASURED)
    ended = {"done_seq": event.seq, "ended_at": event.ts}
    return _llm(view, event.payload["request_id"], told | ended)


def _tool_created(view: View, event: RunEvent) -> Changes:
    told = _pick(event.payload, "tool_name", "kind", "args")
    began = {"state": "CREATED", "created_at": event.ts}
    return _tool(view, event.payload["tool_call_id"], told | began)


def _policy(view: View, event: RunEvent) -> Changes:
    told = _pick(event.payload, "decision", "reason", "rules")
    state = _POLICY.get(event.payload["decision"], "POLICY_CHECKED")
    return _tool(view, event.payload["tool_call_id"], told | {"state": state})


def _dispatched(view: View, event: RunEvent) -> Changes:
    return _tool(view, event.payload["tool_call_id"], _pick(event.payload, "state"))


def _requested(view: View, event: RunEvent) -> Changes:
    told = _pick(event.payload, "state", "tool_name", "args", "deadline_ts")
    return _tool(view, event.payload["tool_call_id"], told)


def _tool_ended(view: View, event: RunEvent) -> Changes:
    told = _pick(event.payload, "status", "state", "result", "error")
    return _tool(view, event.payload["tool_call_id"], told | {"ended_at": event.ts})


def _approval_required(view: View, event: RunEvent) -> Changes:
    payload = event.payload
    told = _pick(payload, "tool_call_id", "tool_name", "args_summary", "args", "expires_at")
    asked = {"decision": "PENDING", "required_at": event.ts}
    waiting = _tool(view, payload["tool_call_id"], {"state": "WAITING_APPROVAL"})
    return waiting | _approval(view, payload["approval_id"], told | asked)


def _approval_decided(view: View, event: RunEvent) -> Changes:
    payload = event.payload
    told = _pick(payload, "decision", "reason", "decided_by")
    said = _approval(view, payload["approval_id"], told | {"decided_at": event.ts})
    for one in said["approvals"]:
        if one.approval_id == payload["approval_id"] and one.tool_call_id:
            state = "TIMEOUT" if told["decision"] == "EXPIRED" else told["decision"]
            return said | _tool(view, one.tool_call_id, {"state": state})
    return said


_FOLD: Final[Mapping[str, Callable[[View, RunEvent], Changes]]] = {
    "run_started": _run_started,
    "user_input": _user_input,
    "agent_invoke_started": _invoke_started,
    "agent_stream_delta": _delta,
    "agent_state": _state,
    "agent_event": _own_event,
    "agent_invoke_done": _invoke_done,
    "agent_invoke_retrying": _retrying,
    "run_done": _done,
    "run_failed": _failed,
    "run_cancelled": _cancelled,
    "run_paused": _paused,
    "run_resumed": _resumed,
    "agent_called_child": _called_child,
    "llm_call_started": _llm_started,
    "llm_call_done": _llm_done,
    "tool_call_created": _tool_created,
    "policy_decision": _policy,
    "tool_dispatched": _dispatched,
    "tool_request": _requested,
    "tool_result": _tool_ended,
    "approval_required": _approval_required,
    "approval_decision": _approval_decided,
}
