"""The tree of every error the product can raise, each with a stable code and an HTTP status.

    OrchestratorError
    ├── InvalidRequest        400   the caller sent something we cannot take
    │   └── EgressRefused           an address that this server must not dial
    ├── Unauthorized          401   nobody we know, or no longer
    ├── Forbidden             403
    ├── NotFound              404
    │   ├── AgentNotFound · RunNotFound · SessionNotFound · KeyNotFound
    ├── Conflict              409   true in itself, but not in this state
    │   ├── SessionBusy · IdempotencyKeyReused · RunEnded · RunNotActive · StaleAttempt
    │   ├── AgentCycle
    │   └── StaleWrite              a guard did not hold: somebody else decided first
    ├── TooSlow               408
    ├── TooLarge              413
    ├── QueueFull · RateLimited 429
    ├── StoreFailure          500   the disk refused a commit; the process stops
    ├── Unavailable           503
    │   └── Draining · AgentDraining · StorageFull
    ├── AgentFailure                an invocation ended badly; becomes `run_failed`, never an answer
    └── StartRefused                the process cannot start as asked
        ├── SettingsInvalid · DatabaseRefused · PortBusy

Raise or log, never both, never neither. `api/problems.py` is the one place that maps them to HTTP.
"""

from typing import Any, ClassVar


class OrchestratorError(Exception):
    """An error with a stable `code`, an HTTP `status` and, where they help, `details`."""

    code: ClassVar[str] = "internal_error"
    status: ClassVar[int] = 500
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, **details: Any) -> None:
        super().__init__(message)
        self.message = message
        self.details = details


class InvalidRequest(OrchestratorError):
    """The request breaks a rule of the contract; the message names the rule."""

    code = "invalid_request"
    status = 400


class EgressRefused(InvalidRequest):
    """A URL or address that the egress rules forbid; the message names the rule and the fix."""

    code = "egress_refused"


class Unauthorized(OrchestratorError):
    """The request carries no credential that is known and still good."""

    code = "unauthorized"
    status = 401


class Forbidden(OrchestratorError):
    """The caller may not do this here."""

    code = "forbidden"
    status = 403


class NotFound(OrchestratorError):
    """Nothing of that name is visible to the caller."""

    code = "not_found"
    status = 404


class AgentNotFound(NotFound):
    """No agent is registered under that name."""

    code = "agent_not_found"


class RunNotFound(NotFound):
    """No run has that id, or retention removed it."""

    code = "run_not_found"


class SessionNotFound(NotFound):
    """No session has that id."""

    code = "session_not_found"


class KeyNotFound(NotFound):
    """No key of this tenant has that id."""

    code = "key_not_found"


class Conflict(OrchestratorError):
    """The request is well-formed but the present state forbids it."""

    code = "conflict"
    status = 409


class SessionBusy(Conflict):
    """The session already has a run and the caller did not want to queue."""

    code = "session_busy"


class AgentCycle(Conflict):
    """The called agent is at work above the caller, and would wait for itself."""

    code = "agent_cycle"


class IdempotencyKeyReused(Conflict):
    """The same idempotency key came with another body."""

    code = "idempotency_key_reused"


class RunEnded(Conflict):
    """The run has ended, and otherwise than the caller asks for."""

    code = "run_ended"


class RunNotActive(Conflict):
    """The run has ended, so nothing can be done in its name any more."""

    code = "run_not_active"


class StaleAttempt(Conflict):
    """The token is that of an attempt which is over; the attempt that came after has its own."""

    code = "stale_attempt"


class StaleWrite(Conflict):
    """A guard of a commit did not hold; load again and decide again."""

    code = "stale_write"


class TooSlow(OrchestratorError):
    """The rest of a body did not come in time; the message says how long it was waited for."""

    code = "body_too_slow"
    status = 408


class TooLarge(OrchestratorError):
    """A body, header or value is over its documented limit."""

    code = "too_large"
    status = 413


class QueueFull(OrchestratorError):
    """The admission limit is reached; try again after `retry_after` seconds."""

    code = "queue_full"
    status = 429
    retryable = True


class RateLimited(OrchestratorError):
    """The caller's key has used up its limit; try again after `retry_after` seconds."""

    code = "rate_limited"
    status = 429
    retryable = True


class StoreFailure(OrchestratorError):
    """The store refused a commit for a reason that is not the caller's; the process must stop."""

    code = "store_failure"


class Unavailable(OrchestratorError):
    """The server cannot take this now; the same request may succeed later."""

    code = "unavailable"
    status = 503
    retryable = True


class Draining(Unavailable):
    """The server is shutting down and takes no new runs."""

    code = "draining"


class AgentDraining(Unavailable):
    """The agent is leaving and takes no new runs until it registers again."""

    code = "agent_draining"


class StorageFull(Unavailable):
    """The disk is full or under its free-space watermark; reads go on."""

    code = "storage_full"


class AgentFailure(OrchestratorError):
    """One invocation of an agent failed; `code` is the code of the `run_failed` event.

    `retryable` says whether another attempt could help (the registry's policy decides whether
    one is made); `retry_after_ms` is the agent's own wish, when it sent one, `http_status` its
    answer when that was no 200. `refused` says that our own rules forbade the call: nothing was
    sent; `hung_up` that the connection ended before the answer was whole.
    """

    status = 502

    def __init__(
        self,
        code: str,
        message: str,
        *,
        retryable: bool = True,
        retry_after_ms: int | None = None,
        refused: bool = False,
        hung_up: bool = False,
        http_status: int | None = None,
    ) -> None:
        super().__init__(message)
        self.refused = refused
        self.hung_up = hung_up
        self.http_status = http_status
        self.code = code  # type: ignore[misc]  # an agent may have a code of its own
        self.retryable = retryable  # type: ignore[misc]  # the same: decided per failure
        self.retry_after_ms = retry_after_ms


class StartRefused(OrchestratorError):
    """The process cannot start as asked; the message is the whole story for the operator."""

    code = "start_refused"


class SettingsInvalid(StartRefused):
    """An environment variable or flag is malformed; the message names it and what was expected."""

    code = "settings_invalid"


class DatabaseRefused(StartRefused):
    """The database is foreign, newer, corrupt, in use or unknown; it is left untouched."""

    code = "database_refused"


class PortBusy(StartRefused):
    """The address is taken; the message names its owner where the system tells."""

    code = "port_busy"
