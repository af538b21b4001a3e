"""What the server answers, as values; fields that we do not know are passed over."""

from collections.abc import Iterator
from typing import Any, Final

import msgspec

from orchestrator_sdk.frames import Content, text_of

TERMINAL: Final = frozenset({"run_done", "run_failed", "run_cancelled"})
LOG_RESET: Final = "log_reset"


class RunEvent(msgspec.Struct, frozen=True, kw_only=True):
    """An event of a run's log; docs/events.md has the payload of each `type`.

    `seq` counts from 1 without holes; `ts` is milliseconds UTC. One type is not in the log:
    `log_reset`, after a power loss, says that all events after `payload["after_seq"]` are void.
    """

    type: str
    payload: dict[str, Any]
    run_id: str
    seq: int = 0
    ts: int = 0
    event_id: str = ""

    @property
    def text(self) -> str:
        """Return the words of an `agent_stream_delta`; empty for any other event."""
        said = self.payload.get("text") if self.type == "agent_stream_delta" else None
        return said if isinstance(said, str) else ""


class EventPage(msgspec.Struct, frozen=True, kw_only=True):
    """A page of a run's log, iterable; `trimmed` says that retention took some of it."""

    events: list[RunEvent]
    has_more: bool
    next_cursor: str = ""
    trimmed: bool = False

    def __iter__(self) -> Iterator[RunEvent]:
        return iter(self.events)


class RunResult(msgspec.Struct, frozen=True, kw_only=True):
    """How a run ended well."""

    run_id: str
    final_message: Content = ""
    usage: dict[str, Any] = {}

    @property
    def text(self) -> str:
        """Return the message as text."""
        return text_of(self.final_message)

    def __str__(self) -> str:
        return self.text


class RunInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A run as last committed; times are milliseconds UTC."""

    run_id: str
    session_id: str
    agent_id: str
    status: str
    attempt: int = 0
    last_seq: int = 0
    created_at: int = 0
    started_at: int | None = None
    ended_at: int | None = None
    parent_run_id: str | None = None
    labels: dict[str, str] = {}
    final_message: Content | None = None
    usage: dict[str, Any] | None = None
    error: dict[str, Any] | None = None


class SessionMessage(msgspec.Struct, frozen=True, kw_only=True):
    """A line of a transcript; `created_at` is RFC 3339."""

    message_id: str
    role: str
    content: Content
    session_id: str = ""
    run_id: str | None = None
    created_at: str = ""

    @property
    def text(self) -> str:
        """Return the content as text."""
        return text_of(self.content)


class MessagePage(msgspec.Struct, frozen=True, kw_only=True):
    """The newest messages before a cursor, oldest first, iterable."""

    messages: list[SessionMessage]
    has_more: bool = False

    def __iter__(self) -> Iterator[SessionMessage]:
        return iter(self.messages)


class AgentInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A registered agent; `last_heartbeat_at` is milliseconds UTC, None without any."""

    agent_id: str
    name: str
    status: str
    last_heartbeat_at: int | None = None
    capabilities: list[str] = []


class AgentList(msgspec.Struct, frozen=True):
    """The registered agents."""

    agents: list[AgentInfo]
