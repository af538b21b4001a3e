"""Where the messages of devices go: each is one request to the orchestrator."""

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from orchestrator.core import values
from orchestrator.core.secret import Secret
from orchestrator.ingress.greeting import Greeted
from orchestrator.ingress.messages import (
    AgentInvoke,
    ApprovalDecision,
    CancelRun,
    Message,
    RegisterTools,
    ToolClaim,
    ToolProgress,
    ToolResult,
)
from orchestrator.ingress.problems import Problem
from orchestrator.ingress.upstream import Upstream


async def forward(
    upstream: Upstream, greeted: Greeted, bearer: Secret | None, message: Message
) -> dict[str, Any] | None:
    """Have done what a message asks for; raises Problem.

    What comes of it is told by the session's events. Only messages of tools, which have none, are
    answered by an `ok` with what the orchestrator said.
    """
    if message.session_id and message.session_id != greeted.session_id:
        raise Problem("invalid_request", "session_id is not the session that hello has opened")
    path, body = _request(greeted, message)
    answer = await upstream.post(path, body, bearer)
    if not isinstance(message, RegisterTools | ToolClaim | ToolProgress):
        return None
    named = {"request_id": message.request_id} if message.request_id else {}
    return (answer if isinstance(answer, dict) else {}) | {"type": "ok"} | named


def _request(greeted: Greeted, message: Message) -> tuple[str, Mapping[str, Any]]:
    match message:
        case AgentInvoke():
            return "/internal/invoke", _invocation(greeted, message)
        case CancelRun(run_id=run_id, reason=reason):
            return f"/v1/runs/{_part(run_id)}/cancel", _without_none(reason=reason)
        case ApprovalDecision(approval_id=approval, decision=decision, reason=reason):
            body = _without_none(decision=decision, reason=reason)
            return f"/v1/approvals/{_part(approval)}/decide", body
        case ToolResult():
            outcome = _without_none(
                ok=message.ok, result=message.result, error=message.error, run_id=message.run_id
            )
            return f"/v1/tool_calls/{_part(message.tool_call_id)}/result", outcome
        case _:
            return _of_tools(greeted, message)


def _of_tools(greeted: Greeted, message: Message) -> tuple[str, Mapping[str, Any]]:
    match message:
        case RegisterTools(tools=tools, client_id=client_id):
            who = _without_none(client_id=client_id or "ingress", session_id=greeted.session_id)
            return "/v1/tools/register", {**who, "tools": tools}
        case ToolClaim(tool_call_id=call, run_id=run_id):
            return f"/v1/tool_calls/{_part(call)}/claim", _without_none(run_id=run_id)
        case ToolProgress(tool_call_id=call, run_id=run_id, progress=progress):
            body = _without_none(run_id=run_id, progress=progress)
            return f"/v1/tool_calls/{_part(call)}/progress", body
        case _:
            raise Problem("invalid_message", "this message is only said once, as a hello")


def _invocation(greeted: Greeted, message: AgentInvoke) -> dict[str, Any]:
    words = {"role": message.message.role, "content": values.content(message.message.content)}
    context = message.context
    if greeted.user_id is not None:
        context = {**(context or {}), "user_id": greeted.user_id}
    return _without_none(
        session_id=greeted.session_id,
        agent_id=message.agent_id,
        input_message=words,
        request_id=message.request_id,
        context=context,
    )


def _without_none(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def _part(text: str) -> str:
    return quote(text, safe="")
