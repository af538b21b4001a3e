"""What goes wrong with a device's message, by the codes of the contract (CONTRACT §5)."""

from typing import Any, Final

CODES: Final = frozenset(
    {
        "invalid_message", "unauthorized", "session_required", "orchestrator_fail",
        "client_offline", "tool_timeout", "approval_timeout", "agent_error", "llm_error",
        "invalid_request", "internal_error",
    }
)  # fmt: skip
"""Every code that an `error` message may have, beside those of a run that failed."""

_UNAUTHORIZED: Final = frozenset({401, 403})
_GONE, _TOO_MANY, _SERVER = 410, 429, 500


class Problem(Exception):
    """A message that cannot be done; it becomes an `error` message and the connection stays.

    `cause` is the orchestrator's own code, `retryable` says that the same message may succeed
    later, `final` that the device is let go of.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        cause: str | None = None,
        retryable: bool = False,
        final: bool = False,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.cause = cause
        self.retryable = retryable
        self.final = final

    def fields(self) -> dict[str, Any]:
        """Return the fields of the `error` message."""
        told: dict[str, Any] = {"type": "error", "code": self.code, "message": self.message}
        if self.cause is not None:
            told["cause"] = self.cause
        if self.retryable:
            told["retryable"] = True
        return told


class Away(Problem):
    """The orchestrator cannot be reached, or cannot answer just now."""

    def __init__(self, message: str, *, cause: str | None = None) -> None:
        super().__init__("orchestrator_fail", message, cause=cause, retryable=True)


def refusal(status: int, code: str, message: str) -> Problem:
    """Return the problem that an answer of the orchestrator other than 2xx is."""
    if status >= _SERVER or status == _TOO_MANY:
        return Away(message, cause=code)
    if code in CODES:
        return Problem(code, message)
    if status in _UNAUTHORIZED:
        return Problem("unauthorized", message, cause=code)
    told = "approval_timeout" if status == _GONE else "invalid_request"
    return Problem(told, message, cause=code)
