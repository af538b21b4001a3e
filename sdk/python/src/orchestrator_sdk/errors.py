"""The tree of every error this library raises; `code` is the stable name, from the contract.

OrchestratorError
├── APIError              the server said no: `status`, `retryable`, `details`
│   ├── InvalidRequest 400 · Unauthorized 401 · Forbidden 403
│   ├── NotFound 404      AgentNotFound · RunNotFound · SessionNotFound
│   ├── Conflict 409      SessionBusy · IdempotencyKeyReused · RunEnded · RunNotActive ·
│   │                     StaleAttempt
│   ├── Overloaded 429    QueueFull · RateLimited
│   └── Unavailable 503   Draining · AgentDraining · StorageFull
├── ConnectionLost        nobody answered for as long as was waited for
├── ProtocolError         what answered does not keep to the contract
├── RunFailed             the run ended badly; `code` is the agent's own where it gave one
├── RunCancelled          somebody ended the run
└── AgentError            raised by an agent: the run fails with this code and message
"""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, ClassVar, Final

import msgspec

_SAID_MAX: Final = 200
_REPEATABLE: Final = frozenset({408, 425, 429, 502, 503, 504})


class OrchestratorError(Exception):
    """Anything that goes wrong here; `code` is for programs, the message for people."""

    code: str = "error"

    def __init__(self, message: str, *, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        if code is not None:
            self.code = code


class APIError(OrchestratorError):
    """The server refused a request; `retry_after_s` is its wish where it has one."""

    by_code: ClassVar[dict[str, type["APIError"]]] = {}
    by_status: ClassVar[dict[int, type["APIError"]]] = {}

    def __init_subclass__(cls, *, status: int = 0) -> None:
        """Note which code, and for the first level which status, a class stands for."""
        APIError.by_code[cls.code] = cls
        if status:
            APIError.by_status[status] = cls

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        status: int = 0,
        retry_after_s: float | None = None,
        details: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message, code=code)
        self.status = status
        self.retry_after_s = retry_after_s
        self.details = dict(details or {})

    @property
    def retryable(self) -> bool:
        """Return whether the same request may succeed later."""
        return self.status in _REPEATABLE


class InvalidRequest(APIError, status=400):
    """The request breaks a rule; the message names it."""

    code = "invalid_request"


class Unauthorized(APIError, status=401):
    """No credential, or none that is good."""

    code = "unauthorized"


class Forbidden(APIError, status=403):
    """The caller is known and may not do this."""

    code = "forbidden"


class NotFound(APIError, status=404):
    """Nothing of that name is visible to the caller."""

    code = "not_found"


class AgentNotFound(NotFound):
    """No agent is registered under that name."""

    code = "agent_not_found"


class RunNotFound(NotFound):
    """No run has that id."""

    code = "run_not_found"


class SessionNotFound(NotFound):
    """No session has that id."""

    code = "session_not_found"


class Conflict(APIError, status=409):
    """Right in itself, but not in the present state."""

    code = "conflict"


class SessionBusy(Conflict):
    """The session has a run already."""

    code = "session_busy"


class IdempotencyKeyReused(Conflict):
    """The same key came with another body."""

    code = "idempotency_key_reused"


class RunEnded(Conflict):
    """The run has ended, and otherwise than this request wants."""

    code = "run_ended"


class RunNotActive(Conflict):
    """The run that calls has ended."""

    code = "run_not_active"


class StaleAttempt(Conflict):
    """The token is that of an attempt which is over."""

    code = "stale_attempt"


class Overloaded(APIError, status=429):
    """Too much at the moment."""

    code = "overloaded"


class QueueFull(Overloaded):
    """The server has as many open runs as it takes."""

    code = "queue_full"


class RateLimited(Overloaded):
    """The key has used up its limit."""

    code = "rate_limited"


class Unavailable(APIError, status=503):
    """The server cannot take this now."""

    code = "unavailable"


class Draining(Unavailable):
    """The server is shutting down."""

    code = "draining"


class AgentDraining(Unavailable):
    """The agent takes no more work."""

    code = "agent_draining"


class StorageFull(Unavailable):
    """The disk is full; reads go on."""

    code = "storage_full"


class ConnectionLost(OrchestratorError):
    """Nobody answered, or a stream broke off again and again, for as long as was waited for."""

    code = "connection_lost"


class ProtocolError(OrchestratorError):
    """What answered does not keep to the contract: is this the orchestrator's address?"""

    code = "protocol_error"


class RunFailed(OrchestratorError):
    """A run ended badly."""

    code = "run_failed"

    def __init__(self, code: str, message: str, run_id: str) -> None:
        super().__init__(message, code=code)
        self.run_id = run_id

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"


class RunCancelled(OrchestratorError):
    """A run was cancelled; the message is the reason."""

    code = "cancelled"

    def __init__(self, reason: str, run_id: str) -> None:
        super().__init__(reason)
        self.run_id = run_id


class AgentError(OrchestratorError):
    """Raise it in an agent: its run fails with this code and message, both shown to callers."""

    code = "agent_error"

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message, code=code)


def api_error(status: int, headers: Mapping[str, str], body: bytes) -> APIError:
    """Return the error that an answer other than 2xx stands for."""
    said = _object(body)
    inner = said.get("error")
    if isinstance(inner, dict):  # the error object of the OpenAI routes
        said = inner
        inner = inner.get("message")
    code = said.get("code") if isinstance(said.get("code"), str) else None
    text = inner if isinstance(inner, str) else body[:_SAID_MAX].decode("utf-8", "replace")
    if elsewhere := headers.get("location"):
        text = f"this is not the server's address, it redirects to {elsewhere}: use that one"
    known = APIError.by_code.get(code or "") or APIError.by_status.get(status, APIError)
    details = said.get("details")
    return known(
        text or f"the server answered {status}",
        code=code,
        status=status,
        retry_after_s=_seconds(headers.get("retry-after", "")),
        details=details if isinstance(details, dict) else None,
    )


def ended_badly(
    said: Mapping[str, Any], run_id: str, *, cancelled: bool
) -> RunFailed | RunCancelled:
    """Return what a run raises that did not end well, from what its end says."""
    message = str(said.get("message") or said.get("reason") or "")
    if cancelled:
        return RunCancelled(message or RunCancelled.code, run_id)
    return RunFailed(str(said.get("code") or RunFailed.code), message, run_id)


def is_good(status: int) -> bool:
    """Return whether a status is a 2xx."""
    return HTTPStatus.OK <= status < HTTPStatus.MULTIPLE_CHOICES


def _object(body: bytes) -> dict[str, Any]:
    try:
        said = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return {}
    return said if isinstance(said, dict) else {}


def _seconds(text: str) -> float | None:
    return float(text) if text.isascii() and text.isdigit() else None
