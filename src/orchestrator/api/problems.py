"""The one place where an error becomes an HTTP answer."""

from http import HTTPStatus
from typing import Any

import msgspec
from starlette.responses import Response

from orchestrator.core.errors import OrchestratorError

_CUT = (408, 413)
"""Statuses after which the rest of the body is not read, so the connection cannot go on."""
RETRY_AFTER_S = 1
"""What a caller is told when a server cannot take something just now."""


def json_response(
    content: Any, status: int = 200, headers: dict[str, str] | None = None
) -> Response:
    """Return an answer of ours as JSON; structs and plain values alike."""
    return Response(msgspec.json.encode(content), status, headers, "application/json")


def problem(error: OrchestratorError) -> Response:
    """Return the answer for an error of the tree."""
    details = dict(error.details)
    headers = {}
    if error.retryable:
        headers["Retry-After"] = str(details.pop("retry_after", RETRY_AFTER_S))
    if error.status == HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = 'Bearer realm="orchestrator"'
    if error.status in _CUT:
        headers["Connection"] = "close"
    return refusal(
        error.status, error.code, error.message,
        details=details, retryable=error.retryable, headers=headers,
    )  # fmt: skip


def refusal(
    status: int,
    code: str,
    message: str,
    *,
    details: dict[str, Any] | None = None,
    retryable: bool = False,
    headers: dict[str, str] | None = None,
) -> Response:
    """Return an answer that says what went wrong."""
    body: dict[str, Any] = {"error": message, "code": code}
    if retryable:
        body["retryable"] = True
    if details:
        body["details"] = details
    return json_response(body, status, headers)
