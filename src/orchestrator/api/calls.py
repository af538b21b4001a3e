"""One call of the API: the request, decoded and checked, and what its handler works with."""

from collections.abc import Awaitable, Callable
from typing import TypeAlias, TypeVar

import msgspec
from starlette.requests import Request
from starlette.types import ASGIApp

from orchestrator.core import jsontext
from orchestrator.core.errors import InvalidRequest, TooLarge
from orchestrator.engine import TENANT, Engine

T = TypeVar("T")
_DIGITS_MAX = 16
"""As many as values.NUMBER_MAX has."""


class APISettings(msgspec.Struct, frozen=True, kw_only=True):
    """What the API itself can be told."""

    version: str = "0"
    auth_mode: str = "auto"
    public_url: str = "http://localhost:8080"
    keep_alive_s: float = 15.0
    body_limit: int = 1 << 20
    wait_s: float = 50.0


class Call:
    """A request on its way to its handler."""

    def __init__(self, request: Request, engine: Engine, settings: APISettings) -> None:
        self.request = request
        self.engine = engine
        self.settings = settings
        self.tenant = TENANT

    def path(self, name: str) -> str:
        """Return a part of the path."""
        return str(self.request.path_params[name])

    def query(self, name: str) -> str | None:
        """Return a query parameter; an empty one counts as absent."""
        return self.request.query_params.get(name) or None

    def number(self, name: str, default: int, low: int, high: int) -> int:
        """Return a numeric query parameter; raises InvalidRequest naming the rule."""
        text = self.query(name)
        if text is None:
            return default
        # Counted first: thousands of digits are no number for Python.
        plain = text.isascii() and text.isdecimal() and len(text) <= _DIGITS_MAX
        if not plain or not low <= int(text) <= high:
            raise InvalidRequest(f"{name} must be a whole number from {low} to {high}")
        return int(text)

    def header(self, name: str) -> str | None:
        """Return a header; an empty one counts as absent."""
        return self.request.headers.get(name) or None

    def wants_stream(self) -> bool:
        """Return whether the caller accepts server-sent events."""
        return "text/event-stream" in self.request.headers.get("accept", "")

    async def body(self, shape: type[T], *, optional: bool = False) -> T:
        """Return the decoded body; raises InvalidRequest or TooLarge."""
        raw = await self._raw()
        if optional and not raw.strip():
            raw = b"{}"
        try:
            return jsontext.decode(jsontext.valid_utf8(raw), shape)
        except ValueError as error:
            raise InvalidRequest("invalid request body", reason=str(error)) from error

    async def _raw(self) -> bytes:
        limit = self.settings.body_limit
        parts, size = [], 0
        async for part in self.request.stream():
            size += len(part)
            if size > limit:
                raise TooLarge(f"the body is over {limit} bytes")
            parts.append(part)
        return b"".join(parts)


def required(value: str | None, field: str) -> str:
    """Return a field that must be there; raises InvalidRequest with the contract's sentence."""
    if not value:
        raise InvalidRequest(f"{field} is required")
    return value


def one_of(value: str, field: str, choices: tuple[str, ...]) -> str:
    """Return a value that must be one of a few; raises InvalidRequest naming them."""
    if value not in choices:
        raise InvalidRequest(f"{field} must be one of {', '.join(choices)}")
    return value


Handler: TypeAlias = Callable[[Call], Awaitable[ASGIApp]]
