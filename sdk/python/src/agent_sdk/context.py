"""What an agent of the old surface is told with each invocation."""

from typing import Any

import msgspec

from agent_sdk.models import Message
from orchestrator_sdk.context import Context


class InvokeContext(msgspec.Struct, kw_only=True):
    """One invocation: the message to answer, what was said before, and who asks."""

    agent_id: str
    session_id: str
    run_id: str
    input_message: Message
    messages: list[Message] = []
    context: dict[str, Any] = {}
    traceparent: str | None = None
    platform_base_url: str = ""


def invoke_context(ctx: Context) -> InvokeContext:
    """Return an invocation in the old shape."""
    return InvokeContext(
        agent_id=ctx.agent_id,
        session_id=ctx.session_id,
        run_id=ctx.run_id,
        input_message=Message(ctx.input_message.role, ctx.input_message.content),
        messages=[Message(line.role, line.content) for line in ctx.messages],
        context=ctx.context,
        traceparent=ctx.traceparent,
        platform_base_url=ctx.platform_base_url,
    )
