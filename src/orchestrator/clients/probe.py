"""Asks an agent how it is."""

from http import HTTPStatus
from typing import Any, Final

from orchestrator.clients.exchange import HTTP, Answer, ExchangeFailed, Request, read_all
from orchestrator.core import jsontext
from orchestrator.ports import ProbeAnswer

TIMEOUT_S: Final = 5.0
BODY_MAX: Final = 64 * 1024
_NO_ROUTE: Final = frozenset({404, 405, 501})
_WELL: Final = frozenset({"healthy", "ok", "up", "pass", "ready", "alive"})
_LABEL_MAX: Final = 128


class HTTPProbe:
    """An AgentProbe over HTTP."""

    def __init__(self, http: HTTP) -> None:
        self._http = http

    async def probe(
        self, endpoint: str, credential: str | None, *, operator: bool = True
    ) -> ProbeAnswer:
        """Ask `GET {endpoint}/health`; 404, 405, 501 mean unknown. A sick agent raises nothing."""
        wanted = {"Accept": "application/json"}
        if credential:
            wanted["Authorization"] = f"Bearer {credential}"
        url = endpoint.rstrip("/") + "/health"
        request = Request(
            method="GET", url=url, headers=wanted, timeout_s=TIMEOUT_S, operator=operator
        )
        try:
            async with self._http.open(request) as answer:
                return await _judge(answer)
        except ExchangeFailed:
            return ProbeAnswer("unhealthy")


async def _judge(answer: Answer) -> ProbeAnswer:
    if answer.status in _NO_ROUTE:
        return ProbeAnswer("unknown")
    if answer.status != HTTPStatus.OK:
        return ProbeAnswer("unhealthy")
    return _described(await read_all(answer, BODY_MAX))


def _described(body: bytes | None) -> ProbeAnswer:
    """Return what a 200 says; an agent that answers 200 in words of its own is healthy."""
    try:
        said = jsontext.decode((body or b"").decode("utf-8", "replace"))
    except ValueError:
        return ProbeAnswer("healthy")
    if not isinstance(said, dict):
        return ProbeAnswer("healthy")
    status, version = said.get("status"), said.get("version")
    sick = isinstance(status, str) and status.lower() not in _WELL
    return ProbeAnswer(
        "unhealthy" if sick else "healthy",
        version[:_LABEL_MAX] if isinstance(version, str) else None,
        _names(said.get("capabilities")),
    )


def _names(value: Any) -> tuple[str, ...]:
    listed = value if isinstance(value, list) else []
    return tuple(name[:_LABEL_MAX] for name in listed if isinstance(name, str))[:_LABEL_MAX]
