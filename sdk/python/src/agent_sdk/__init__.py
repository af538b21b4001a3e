"""The surface that agents of the first platform import; made of `orchestrator_sdk`."""

from agent_sdk.agents import Agent, FunctionAgent, create_agent
from agent_sdk.context import InvokeContext
from agent_sdk.models import Message, PlatformError, ToolResult, Usage
from agent_sdk.platform import PlatformClient, register_agent
from agent_sdk.responses import SSEResponse, format_sse_event, stream_text

__all__ = [
    "Agent",
    "FunctionAgent",
    "InvokeContext",
    "Message",
    "PlatformClient",
    "PlatformError",
    "SSEResponse",
    "ToolResult",
    "Usage",
    "create_agent",
    "format_sse_event",
    "register_agent",
    "stream_text",
]
