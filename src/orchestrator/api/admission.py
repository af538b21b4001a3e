"""Lets a request in: finds what it shows, who that is, and whether the route is for them."""

from collections.abc import Iterable
from typing import Final

import msgspec
from starlette.requests import Request

from orchestrator.api.table import Route
from orchestrator.core import credentials, ratelimit
from orchestrator.core.access import OPEN, Caller, nobody
from orchestrator.core.errors import (
    Forbidden,
    InvalidRequest,
    RateLimited,
    RunNotActive,
    StaleAttempt,
    Unauthorized,
)
from orchestrator.engine import TENANT, Engine

SHOWN_MAX: Final = 16 << 10
"""Characters that a credential has at most."""
_BEARER: Final = "bearer "


class Admitted(msgspec.Struct, frozen=True):
    """Who may go on, and the headers that the answer carries; with `refusal` nobody may."""

    caller: Caller
    headers: dict[str, str] = {}
    refusal: RateLimited | None = None


async def admit(request: Request, route: Route, engine: Engine) -> Admitted:
    """Return who calls a route; raises Unauthorized, Forbidden and InvalidRequest.

    The token of an attempt that is over raises RunNotActive or StaleAttempt.
    """
    if route.permission == OPEN:
        return Admitted(nobody(TENANT))
    try:
        caller = await engine.access.caller(_shown(request, route, engine))
    except (Unauthorized, RunNotActive, StaleAttempt) as error:
        kind = "bad_credential" if isinstance(error, Unauthorized) else "dead_token"
        engine.audit.security(kind, f"{peer_of(request)} at {route.name}")
        raise
    if not caller.may(route.permission):
        raise _refused(caller, route)
    return _counted(engine, caller, route)


def peer_of(request: Request) -> str:
    """Return the address that a request came from, as far as proxies are trusted."""
    return request.client.host if request.client is not None else "a socket"


def _refused(caller: Caller, route: Route) -> Unauthorized | Forbidden:
    if caller.kind == "nobody":
        return Unauthorized(
            "this server asks for a key: send it as `Authorization: Bearer ok_…`; "
            "./orchestrator keys create makes one"
        )
    return Forbidden(
        f"{route.name} needs the permission {route.permission}, which {caller.name} does not have"
    )


def _counted(engine: Engine, caller: Caller, route: Route) -> Admitted:
    headers: dict[str, str] = {}
    refusal = None
    for name, limit, verdict in engine.access.take(caller, route.name) if caller.limits else ():
        for field, value in ratelimit.headers(name, limit, verdict).items():
            headers[field] = f"{headers[field]}, {value}" if field in headers else value
        if not verdict.allowed:  # the last one told, if any
            of = "all routes" if name == "*" else name
            text = (
                f"{caller.name} has used up its {limit} for {of}; wait, or ask for a higher limit"
            )
            refusal = RateLimited(text, retry_after=verdict.retry_after_s)
    headers.pop("Retry-After", None)  # the refusal's answer says it
    return Admitted(caller, headers, refusal)


def _shown(request: Request, route: Route, engine: Engine) -> str | None:
    """Return the credential that a request shows; raises InvalidRequest for two that differ.

    A run's token says more than the key that may come with it. A server that tells nobody apart
    looks at tokens only, for it asks for nothing.
    """
    query = request.query_params.get("token")
    found = {text for text in request.headers.getlist("x-run-token") if text}
    if not found and engine.access.keyless:
        texts = [*_everywhere(request, strict=False), query or ""]
        return next((text for text in texts if text.startswith(credentials.TOKEN_PREFIXES)), None)
    found = found or {text for text in _everywhere(request) if text}
    if query:
        found.add(_of_query(query, request, route))
    if len(found) > 1:
        raise InvalidRequest("the request shows credentials that differ; send one")
    shown = found.pop() if found else None
    if shown is not None and len(shown) > SHOWN_MAX:
        raise Unauthorized(f"a credential has at most {SHOWN_MAX} characters")
    return shown


def _everywhere(request: Request, *, strict: bool = True) -> Iterable[str]:
    for value in request.headers.getlist("authorization"):
        if value[: len(_BEARER)].lower() == _BEARER:
            yield value[len(_BEARER) :].strip()
        elif value and strict:
            raise Unauthorized("the Authorization header must be `Bearer`, a space and the key")
    yield from request.headers.getlist("x-api-key")


def _of_query(shown: str, request: Request, route: Route) -> str:
    """Return a credential of the address, which may only be a token, and for a stream."""
    streams = route.stream == "always" or "text/event-stream" in request.headers.get("accept", "")
    if route.stream is None or not streams or request.method not in {"GET", "HEAD"}:
        raise InvalidRequest("?token= is for event streams; send an Authorization header instead")
    if not shown.startswith(credentials.TOKEN_PREFIXES[1]):
        raise Unauthorized("?token= takes the token of a session: keys do not go into addresses")
    return shown
