"""Fetches a document that an operator's setting names, such as an identity provider's keys."""

from http import HTTPStatus
from typing import Final

from orchestrator.clients.exchange import HTTP, ExchangeFailed, Request, read_all
from orchestrator.core.errors import Unavailable

DOCUMENT_MAX: Final = 256 << 10
TIMEOUT_S: Final = 10.0


async def fetch(http: HTTP, url: str) -> bytes:
    """Return the body of a 200 for `GET url`, JSON by what is asked for; raises Unavailable."""
    request = Request(
        method="GET", url=url, headers={"Accept": "application/json"}, timeout_s=TIMEOUT_S
    )
    try:
        async with http.open(request) as answer:
            if answer.status != HTTPStatus.OK:
                raise Unavailable(f"{url} answered {answer.status}, not 200")
            body = await read_all(answer, DOCUMENT_MAX)
    except ExchangeFailed as error:
        raise Unavailable(f"{url} cannot be fetched: {error.message}") from error
    if body is None:
        raise Unavailable(f"{url} answered over {DOCUMENT_MAX} bytes")
    return body
