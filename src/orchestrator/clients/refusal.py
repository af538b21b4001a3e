"""What an answer other than 200 means: an `agent_status` failure with the agent's own words."""

import asyncio
from collections.abc import Sequence
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Final

from orchestrator.clients.exchange import Answer, ExchangeFailed
from orchestrator.core.errors import AgentFailure
from orchestrator.core.secret import Secret

BODY_MAX: Final = 2048
"""Bytes of the body that are kept."""
_BODY_S: Final = 5.0
_REDIRECTS: Final = range(300, 400)
_SERVER_ERRORS: Final = range(500, 600)
_WORTH_REPEATING: Final = frozenset({408, 425, 429})


async def refusal(answer: Answer, shown: Sequence[Secret] = ()) -> AgentFailure:
    """Return the failure for an answer that is not 200; reads 2 KiB of it for 5 s at most.

    What the agent was `shown` is taken out of its words, which are kept and read by others.
    """
    status = answer.status
    said = _without(shown, printable(await _beginning(answer)))
    message = f"the agent answered {status}" + (f": {said}" if said else "")
    if status in _REDIRECTS:
        target = _without(shown, printable(answer.header("Location").encode()[:200]))
        message = (
            f"the agent answered {status} to {target or 'nowhere'}; redirects are not followed"
        )
    return AgentFailure(
        "agent_status",
        message,
        retryable=status in _SERVER_ERRORS or status in _WORTH_REPEATING,
        retry_after_ms=retry_after_ms(answer.header("Retry-After"), answer.header("Date")),
        http_status=status,
    )


def retry_after_ms(value: str, date: str) -> int | None:
    """Return the wait that `Retry-After` asks for (RFC 9110 §10.2.3): seconds, or a date.

    A date is measured against the answer's own `Date`, so that no clock but the sender's counts.
    """
    value = value.strip()
    if value.isascii() and value.isdigit():
        return int(value[:9]) * 1000
    then, now = _date(value), _date(date)
    if then is None or now is None:
        return None
    return max(0, int((then - now).total_seconds() * 1000))


def printable(raw: bytes) -> str:
    """Return bytes as one line of text without control characters, of 2 KiB at most."""
    text = raw.decode("utf-8", "replace")
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line.encode()[:BODY_MAX].decode("utf-8", "ignore")


def _without(shown: Sequence[Secret], text: str) -> str:
    for secret in shown:
        text = text.replace(secret.reveal(), "…")
    return text


async def _beginning(answer: Answer) -> bytes:
    body = b""
    try:
        async with asyncio.timeout(_BODY_S):
            while len(body) < BODY_MAX and (piece := await answer.read()):
                body += piece
    except (TimeoutError, ExchangeFailed):
        pass  # the status is the news; what there is of the body explains it
    return body[:BODY_MAX]


def _date(value: str) -> datetime | None:
    try:
        parsed = parsedate_to_datetime(value)
    except (TypeError, ValueError):
        return None
    return parsed if parsed.tzinfo is not None else None
