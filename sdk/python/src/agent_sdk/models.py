"""The values of the old surface: messages, usage, results of tools, and its one error."""

from typing import Any, Literal, TypeAlias

import msgspec

from orchestrator_sdk import frames
from orchestrator_sdk.errors import OrchestratorError
from orchestrator_sdk.frames import Content

Status: TypeAlias = Literal["succeeded", "pending", "failed"]


class Message(msgspec.Struct, frozen=True):
    """A line of a conversation; its fields can also be read as keys."""

    role: str
    content: Content

    def __getitem__(self, name: str) -> Any:
        return self.to_dict()[name]

    def get(self, name: str, default: Any = None) -> Any:
        return self.to_dict().get(name, default)

    @property
    def text(self) -> str:
        """Return the content as text."""
        return frames.text_of(self.content)

    def to_dict(self) -> dict[str, Any]:
        """Return the message as it is on the wire."""
        return {"role": self.role, "content": self.content}


class Usage(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """What an answer took."""

    tokens: int | None = None
    total_tokens: int | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    duration_ms: int | None = None

    def to_dict(self) -> dict[str, int]:
        """Return the fields that are known."""
        return {name: n for name, n in msgspec.structs.asdict(self).items() if n is not None}


class ToolResult(msgspec.Struct, frozen=True, kw_only=True):
    """How a tool call stands: exactly one of `succeeded`, `pending`, `failed` is true.

    `reason` says what a pending one waits for: waiting_approval, waiting_client or executing.
    """

    status: Status
    tool_call_id: str = ""
    result: Any = None
    reason: str | None = None
    error: dict[str, Any] | None = None

    @property
    def succeeded(self) -> bool:
        """Return whether `result` is there."""
        return self.status == "succeeded"

    @property
    def pending(self) -> bool:
        """Return whether the outcome is still open."""
        return self.status == "pending"

    @property
    def failed(self) -> bool:
        """Return whether `error` says why there is no result."""
        return self.status == "failed"


class PlatformError(OrchestratorError):
    """The platform refused or did not answer; `status` is 0 where nothing was said."""

    code = "platform_error"

    def __init__(self, message: str, *, code: str | None = None, status: int = 0) -> None:
        super().__init__(message, code=code)
        self.status = status
