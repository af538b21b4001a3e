"""Connections, their clocks, and when a failed request is worth another try."""

import logging
import secrets
import ssl
import time
from functools import cache
from typing import Final

import httpx
import msgspec

from orchestrator_sdk.errors import APIError, ConnectionLost, OrchestratorError

log = logging.getLogger("orchestrator_sdk")

SILENCE_S: Final = 45.0
FIRST_S: Final = 0.1
MOST_S: Final = 5.0
TELL_AT: Final = 5
"""The failure in a row at which a caller is told what is waited for: after a second or two."""
LIMITS: Final = httpx.Limits(max_connections=None, max_keepalive_connections=20)
"""Each open stream has a connection, and none of them may keep a cancel from getting one."""
RETRY_AFTER_MAX_S: Final = 60.0
"""The longest wait that a server may ask for; a longer one counts as this."""


class Timeouts(msgspec.Struct, frozen=True, kw_only=True):
    """How long is waited, in seconds.

    `connect` for a connection, `answer` for the answer to one request, `silence` between two pieces
    of a stream (a comment comes every 15 s), `give_up` for progress in spite of everything: one
    request with its repetitions, or a stream with its reconnects, ends with ConnectionLost then.
    """

    connect: float = 5.0
    answer: float = 30.0
    silence: float = SILENCE_S
    give_up: float = 120.0

    def of_requests(self) -> httpx.Timeout:
        """Return the clocks of a request."""
        return httpx.Timeout(self.answer, connect=self.connect)

    def of_streams(self) -> httpx.Timeout:
        """Return the clocks of a stream."""
        return httpx.Timeout(self.answer, connect=self.connect, read=self.silence)


class Patience:
    """Decides how long to wait after a failure, and when to give up."""

    def __init__(self, give_up_s: float, where: str = "the orchestrator") -> None:
        self._give_up_s = give_up_s
        self._where = where
        self._failures = 0
        self._since = 0.0

    def progressed(self) -> None:
        """Begin anew: something came."""
        self._failures = 0

    def after(self, error: Exception) -> float:
        """Return how many seconds to wait; raises what ends the waiting.

        The wait doubles from 0.1 s to 5 s, less a random
        part so that many callers do not return in the same moment.
        """
        if isinstance(error, APIError) and not error.retryable:
            raise error
        if not self._failures:
            self._since = time.monotonic()
        wish = error.retry_after_s if isinstance(error, APIError) else None
        delay = min(MOST_S, FIRST_S * float(1 << min(self._failures, 10)))
        delay *= 0.5 + secrets.randbelow(1000) / 2000
        self._failures += 1
        delay = max(delay, min(wish or 0.0, RETRY_AFTER_MAX_S))
        waited = time.monotonic() - self._since
        if waited + delay > self._give_up_s:
            raise self._gave_up(error, waited) from error
        if self._failures == TELL_AT:
            left_s = self._give_up_s - waited
            log.warning("%s; trying again for %.0f s", self._said(error, waited), left_s)
        return delay

    def _gave_up(self, error: Exception, waited_s: float) -> OrchestratorError:
        return error if isinstance(error, APIError) else ConnectionLost(self._said(error, waited_s))

    def _said(self, error: Exception, waited_s: float) -> str:
        why = f"{type(error).__name__}: {error}"
        if isinstance(error, APIError):  # whose text may be a page of a proxy
            why = f"{error.status} {error.code}"
        return f"{self._where} did not answer for {waited_s:.0f} s ({why})"


def patience(http: httpx.Client | httpx.AsyncClient, timeouts: Timeouts) -> Patience:
    """Return the patience with a server; its address is told without a password in it."""
    url = http.base_url
    where = f"the orchestrator at {url.scheme}://{url.netloc.decode()}"
    return Patience(timeouts.give_up, where)


@cache
def tls() -> ssl.SSLContext:
    """Return the one TLS context: to make one reads all certificates of the machine."""
    return ssl.create_default_context()


def agent_http(held_s: float = 0.0) -> httpx.AsyncClient:
    """Return connections for calls from within an agent; an answer may be held back for `held_s`.

    A child may think for long, but its stream says that it lives.
    """
    patient = Timeouts(silence=SILENCE_S + held_s)
    return httpx.AsyncClient(timeout=patient.of_streams(), limits=LIMITS, verify=tls())
