"""Whether there is another attempt, and how long to wait before it."""

from typing import Final

from orchestrator.core.records import Retry

ASKED_MAX_MS: Final = 300_000
"""The longest wait that an agent may ask for, unless its `max_backoff_ms` is longer."""


def delay_ms(retry: Retry, attempt: int, noise: float, at_least: int | None = None) -> int:
    """Return the milliseconds to wait after `attempt` (from 1) failed.

    The wait doubles with each attempt up to `max_backoff_ms`; `noise` in [0, 1) spreads it over
    its upper half, so that many runs do not come back at the same moment. `at_least` is what the
    other side asked for (`Retry-After`): it is waited for whole, and the spread comes on top.
    """
    full = min(retry.backoff_ms * 2 ** min(attempt - 1, 30), retry.max_backoff_ms)
    asked = at_least or 0
    if asked * 2 <= full:
        return int(full * (0.5 + noise / 2))
    return asked + int(full * noise / 2)


def may_retry(
    retry: Retry, attempt: int, code: str, *, retryable: bool, at_least: int | None = None
) -> bool:
    """Return whether `attempt` (from 1), which failed with `code`, is followed by another.

    One that would have to wait for too long (`at_least` milliseconds) is not made: sooner it would
    be refused again.
    """
    wanted = retryable and (not retry.codes or code in retry.codes)
    soon = (at_least or 0) <= max(retry.max_backoff_ms, ASKED_MAX_MS)
    return wanted and soon and attempt < retry.max_attempts
