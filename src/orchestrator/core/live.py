"""Live names: what an event of the log is called when it is pushed to the ingress."""

from typing import Any

import msgspec

from orchestrator.core import events as ev


def live(event: ev.LogEvent) -> bytes | None:
    """Return the pushed JSON object for a log event; None for events that are not pushed."""
    if event.type not in _PUSHED:
        return None
    envelope = ev.open_event(event.data)
    fields = _fields(envelope.decoded())
    if fields is None:
        return None
    return msgspec.json.encode(
        fields
        | {
            "ts": envelope.ts,
            "run_id": envelope.run_id,
            "event_id": envelope.event_id,
            "seq": envelope.seq,
        }
    )


_PUSHED = frozenset(
    cls.type
    for cls in (
        ev.RunStarted,
        ev.UserInput,
        ev.AgentStreamDelta,
        ev.AgentState,
        ev.AgentInvokeRetrying,
        ev.RunPaused,
        ev.RunResumed,
        ev.ToolRequest,
        ev.ApprovalRequired,
        ev.RunDone,
        ev.RunFailed,
        ev.RunCancelled,
    )
)


def _fields(payload: ev.Payload) -> dict[str, Any] | None:
    match payload:
        case ev.AgentStreamDelta(text=text):
            return {"type": "delta", "text": text}
        case ev.AgentState(state=state, detail=detail):
            return {"type": "state", "state": state, "detail": detail}
        case ev.RunPaused(state=state) | ev.RunResumed(state=state):
            return {"type": "state", "state": state, "detail": None}
        case ev.UserInput(queued=queued):
            return {"type": "state", "state": "queued", "detail": None} if queued else None
        case ev.AgentInvokeRetrying(discard_from_seq=seq):
            return {
                "type": "state",
                "state": "retrying",
                "detail": {"discard_from_seq": seq},
            }
        case _:
            return _ends(payload)


def _ends(payload: ev.Payload) -> dict[str, Any]:
    match payload:
        case ev.RunDone(usage=usage):
            return {"type": "done", "usage": usage or {}}
        case ev.RunFailed(code=code, message=message):
            return {"type": "error", "code": code, "message": message}
        case ev.RunCancelled(reason=reason):
            return {"type": "error", "code": "cancelled", "message": reason}
        case _:
            named: dict[str, Any] = msgspec.to_builtins(payload)
            named.pop("state", None)
            return {"type": payload.type, **named}
