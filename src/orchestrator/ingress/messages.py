"""What devices say: one struct per message of the contract, and how its bytes become one."""

from typing import Any, Final, TypeAlias

import msgspec

from orchestrator.core import jsontext
from orchestrator.ingress.problems import Problem


class Said(msgspec.Struct, frozen=True, kw_only=True, tag_field="type"):
    """A message of a device; unknown fields are ignored, so that newer devices work."""

    request_id: str | None = None
    session_id: str | None = None
    run_id: str | None = None


class Hello(Said, frozen=True, kw_only=True, tag="hello"):
    """Who is there, in which session, and how far it has come."""

    user_id: str | None = None
    api_key: str | None = None
    token: str | None = None
    client_meta: Any = None
    cursor: str | None = None
    last_seq: dict[str, int] | None = None


class Words(msgspec.Struct, frozen=True, kw_only=True):
    """What is said to an agent."""

    role: str = "user"
    content: Any = None


class AgentInvoke(Said, frozen=True, kw_only=True, tag="agent_invoke"):
    """An agent is asked."""

    agent_id: str
    message: Words
    context: dict[str, Any] | None = None


class ToolResult(Said, frozen=True, kw_only=True, tag="tool_result"):
    """A client tool has ended."""

    tool_call_id: str
    ok: bool
    result: Any = None
    error: Any = None


class ApprovalDecision(Said, frozen=True, kw_only=True, tag="approval_decision"):
    """A person has decided."""

    approval_id: str
    decision: str
    reason: str | None = None


class CancelRun(Said, frozen=True, kw_only=True, tag="cancel_run"):
    """A run is to end."""

    run_id: str
    reason: str | None = None


class RegisterTools(Said, frozen=True, kw_only=True, tag="register_tools"):
    """Tools that the device runs."""

    tools: list[dict[str, Any]]
    client_id: str | None = None


class ToolClaim(Said, frozen=True, kw_only=True, tag="tool_claim"):
    """The device takes a tool call on."""

    tool_call_id: str


class ToolProgress(Said, frozen=True, kw_only=True, tag="tool_progress"):
    """The device is still at a tool call."""

    tool_call_id: str
    progress: Any = None


Message: TypeAlias = (
    Hello | AgentInvoke | ToolResult | ApprovalDecision | CancelRun | RegisterTools | ToolClaim
    | ToolProgress
)  # fmt: skip

_ANY: Final[Any] = Message
_HEAD: Final = msgspec.json.Decoder(dict[str, Any])


def read(raw: bytes) -> Message:
    """Return a device's message; raises Problem `invalid_message` saying what is wrong with it."""
    try:
        message: Message = jsontext.decode(raw, _ANY)
    except ValueError as error:
        raise Problem("invalid_message", f"this is no message of the contract: {error}") from error
    return message


def request_of(raw: bytes) -> str | None:
    """Return the `request_id` of a message that is otherwise none, so that it can be answered."""
    try:
        found = _HEAD.decode(raw).get("request_id")
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
    return found if isinstance(found, str) else None
