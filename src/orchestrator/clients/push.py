"""Hands live events to the ingress (CONTRACT §5)."""

from collections.abc import Sequence
from contextlib import suppress
from http import HTTPStatus
from typing import Final

import msgspec

from orchestrator.clients.exchange import HTTP, Answer, ExchangeFailed, Request, read_all
from orchestrator.core.access import TENANT
from orchestrator.core.errors import Unavailable
from orchestrator.ports import PushAnswer

TIMEOUT_S: Final = 10.0
_BODY_MAX: Final = 64 * 1024
_REFUSED: Final = frozenset({HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN})


class IngressPush:
    """A PushClient over HTTP; `url` is the ingress without its path, `key` its bearer."""

    def __init__(self, http: HTTP, url: str, key: str | None = None) -> None:
        self._http = http
        self._url = url.rstrip("/") + "/internal/send"
        self._headers = {"Content-Type": "application/json"}
        if key:
            self._headers["Authorization"] = f"Bearer {key}"

    async def push(self, tenant: str, session_id: str, events: Sequence[bytes]) -> PushAnswer:
        """Deliver one event, or several where the ingress said that lists are welcome.

        Raises Unavailable when they were not taken: no answer within 10 s, or any but 200.
        """
        request = Request(
            url=self._url,
            headers=self._headers,
            body=_body(tenant, session_id, events),
            timeout_s=TIMEOUT_S,
        )
        try:
            async with self._http.open(request) as answer:
                if answer.status in _REFUSED:
                    told = f"the ingress refused the push with {answer.status}"
                    raise Unavailable(f"{told}; its INGRESS_KEY must be the one of this server")
                if answer.status != HTTPStatus.OK:
                    raise Unavailable(f"the ingress did not take it: {answer.status}")
                return await _taken(answer)
        except ExchangeFailed as error:
            raise Unavailable(f"the ingress is away: {error.message}") from error


async def _taken(answer: Answer) -> PushAnswer:
    """Return what the head says; the body is read only so that the connection can be used again."""
    with suppress(ExchangeFailed):
        await read_all(answer, _BODY_MAX)
    return PushAnswer(
        batch=answer.header("X-Batch").strip() == "1",
        tails=answer.header("X-Ingress").strip().lower() == "tail",
    )


def _body(tenant: str, session_id: str, events: Sequence[bytes]) -> bytes:
    """Return the push; where there are tenants their sessions may have the same name."""
    whose = msgspec.json.encode({"session_id": session_id})
    if tenant != TENANT:
        whose = msgspec.json.encode({"session_id": session_id, "tenant": tenant})
    if len(events) == 1:
        return b'%b,"event":%b}' % (whose[:-1], events[0])
    return b'%b,"events":[%b]}' % (whose[:-1], b",".join(events))
