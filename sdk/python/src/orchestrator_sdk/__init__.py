"""Write agents for the orchestrator, and call them."""

from orchestrator_sdk.agents import Agent, agent
from orchestrator_sdk.application import mount
from orchestrator_sdk.async_client import AsyncClient, AsyncRunHandle
from orchestrator_sdk.calling import ChildFrame, ChildRun
from orchestrator_sdk.client import Client, RunHandle
from orchestrator_sdk.context import Context, Message, Resume
from orchestrator_sdk.errors import (
    AgentDraining,
    AgentError,
    AgentNotFound,
    APIError,
    Conflict,
    ConnectionLost,
    Draining,
    Forbidden,
    IdempotencyKeyReused,
    InvalidRequest,
    NotFound,
    OrchestratorError,
    Overloaded,
    ProtocolError,
    QueueFull,
    RateLimited,
    RunCancelled,
    RunEnded,
    RunFailed,
    RunNotActive,
    RunNotFound,
    SessionBusy,
    SessionNotFound,
    StaleAttempt,
    StorageFull,
    Unauthorized,
    Unavailable,
)
from orchestrator_sdk.frames import Done, Event, Pause, State
from orchestrator_sdk.presence import registered
from orchestrator_sdk.secret import Secret
from orchestrator_sdk.server import CannotListen, serve, serving
from orchestrator_sdk.shapes import (
    AgentInfo,
    EventPage,
    MessagePage,
    RunEvent,
    RunInfo,
    RunResult,
    SessionMessage,
)
from orchestrator_sdk.transport import Timeouts

__all__ = [
    "APIError", "Agent", "AgentDraining", "AgentError", "AgentInfo", "AgentNotFound",
    "AsyncClient", "AsyncRunHandle", "CannotListen", "ChildFrame", "ChildRun", "Client",
    "Conflict", "ConnectionLost", "Context", "Done", "Draining", "Event", "EventPage",
    "Forbidden", "IdempotencyKeyReused", "InvalidRequest", "Message", "MessagePage", "NotFound",
    "OrchestratorError", "Overloaded", "Pause", "ProtocolError", "QueueFull", "RateLimited",
    "Resume", "RunCancelled", "RunEnded", "RunEvent", "RunFailed", "RunHandle", "RunInfo",
    "RunNotActive", "RunNotFound", "RunResult", "Secret", "SessionBusy", "SessionMessage",
    "SessionNotFound", "StaleAttempt", "State", "StorageFull", "Timeouts", "Unauthorized",
    "Unavailable", "agent", "mount", "registered", "serve", "serving",
]  # fmt: skip
