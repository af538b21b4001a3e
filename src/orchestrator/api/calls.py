"""One call of the API: the request, decoded and checked, and what its handler works with."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractContextManager, suppress
from functools import partial
from typing import TypeAlias, TypeVar

import msgspec
from starlette.requests import Request
from starlette.types import ASGIApp

from orchestrator.core import jsontext, values
from orchestrator.core.access import LOCAL, Caller
from orchestrator.core.errors import (
    InvalidRequest,
    RunNotFound,
    SessionNotFound,
    TooLarge,
    TooSlow,
)
from orchestrator.engine import Engine

T = TypeVar("T")
Watch: TypeAlias = Callable[[Callable[[], None]], AbstractContextManager[None]]
"""Given what cuts a stream, watches over it while the context is open."""
_THROW_AWAY = 16 << 20
_THROW_AWAY_S = 2.0


class APISettings(msgspec.Struct, frozen=True, kw_only=True):
    """What the API itself can be told."""

    version: str = "0"
    auth_mode: str = "auto"
    public_url: str = "http://localhost:8080"
    base_path: str = ""
    trusted_proxies: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()
    route_names: frozenset[str] = frozenset()
    keep_alive_s: float = 15.0
    body_limit: int = 1 << 20
    body_idle_s: float = 60.0
    wait_s: float = 50.0


class Call:
    """A request on its way to its handler."""

    def __init__(
        self, request: Request, engine: Engine, settings: APISettings, caller: Caller
    ) -> None:
        self.request = request
        self.engine = engine
        self.settings = settings
        self.caller = caller
        self.tenant = caller.tenant

    def path(self, name: str) -> str:
        """Return a part of the path."""
        return str(self.request.path_params[name])

    async def run_id(self) -> str:
        """Return the path's run if the caller may know of it; raises RunNotFound."""
        run_id = self.path("run_id")
        if self.caller.session_id is not None:
            run = await self.engine.runs.get(run_id, self.tenant)
            if not await self.engine.access.sees(self.caller, run):
                raise RunNotFound(f"run {run_id} not found")
        return run_id

    def session_id(self) -> str:
        """Return the path's session if the caller may know of it; raises SessionNotFound."""
        session_id = values.session_id(self.path("session_id"))
        if self.caller.session_id not in {None, session_id}:
            raise SessionNotFound(f"session {session_id} not found")
        return session_id

    @property
    def watch(self) -> Watch | None:
        """Return what watches over a stream whose reader may lose the right to it."""
        caller = self.caller
        for_ever = caller.key_id is None and caller.run_id is None and caller.expires_at is None
        if for_ever and (caller.maker != LOCAL or self.settings.auth_mode == "off"):
            return None
        return partial(self.engine.access.watching, caller)

    def query(self, name: str) -> str | None:
        """Return a query parameter; an empty one counts as absent."""
        return self.request.query_params.get(name) or None

    def number(self, name: str, default: int, low: int, high: int) -> int:
        """Return a numeric query parameter; raises InvalidRequest naming the rule."""
        text = self.query(name)
        if text is None:
            return default
        if not values.is_number(text) or not low <= int(text) <= high:
            raise InvalidRequest(f"{name} must be a whole number from {low} to {high}")
        return int(text)

    def header(self, name: str) -> str | None:
        """Return a header; an empty one counts as absent."""
        return self.request.headers.get(name) or None

    def sole_header(self, name: str) -> str | None:
        """Return a header that may be repeated but not contradicted; raises InvalidRequest."""
        found = set(self.request.headers.getlist(name)) - {""}
        if len(found) > 1:
            raise InvalidRequest(f"the header {name} came with differing values; send one")
        return found.pop() if found else None

    def wants_stream(self) -> bool:
        """Return whether the caller accepts server-sent events."""
        return "text/event-stream" in self.request.headers.get("accept", "")

    async def body(self, shape: type[T], *, optional: bool = False) -> T:
        """Return the decoded body; raises InvalidRequest, TooLarge or TooSlow."""
        raw = await self._raw()
        if optional and not raw.strip():
            raw = b"{}"
        try:
            return jsontext.decode(jsontext.valid_utf8(raw), shape)
        except ValueError as error:
            raise InvalidRequest("invalid request body", reason=str(error)) from error

    async def gone(self) -> None:
        """Return when the caller has hung up; the body must have been read."""
        while (await self.request.receive())["type"] != "http.disconnect":
            pass

    async def _raw(self) -> bytes:
        limit = self.settings.body_limit
        if self.header("expect") and int(self.header("content-length") or 0) > limit:
            raise TooLarge(f"the body is over {limit} bytes")  # before the caller sends it
        parts, size = [], 0
        async for part in self._parts(self.settings.body_idle_s):
            size += len(part)
            if size > limit:
                await self._throw_away()
                raise TooLarge(f"the body is over {limit} bytes")
            parts.append(part)
        return b"".join(parts)

    async def _parts(self, idle_s: float) -> AsyncIterator[bytes]:
        stream = self.request.stream()
        while True:
            try:
                async with asyncio.timeout(idle_s):
                    part = await anext(stream, None)
            except TimeoutError:
                raise TooSlow(f"nothing more of the body came within {idle_s:g} s") from None
            if part is None:
                return
            yield part

    async def _throw_away(self) -> None:
        """Read on for a moment: a caller who is cut off while sending sees no answer."""
        size = 0
        with suppress(TimeoutError):
            async with asyncio.timeout(_THROW_AWAY_S):
                while size < _THROW_AWAY:
                    message = await self.request.receive()
                    size += len(message.get("body", b""))
                    if not message.get("more_body"):
                        return


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
