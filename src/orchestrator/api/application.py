"""The API as one ASGI application: the route table behind the access rules."""

import re
from typing import Final

from msgspec.structs import replace
from starlette.requests import ClientDisconnect, Request
from starlette.routing import Route as Path
from starlette.routing import Router
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from orchestrator.api.admission import admit
from orchestrator.api.beats import NAME as HEARTBEAT
from orchestrator.api.beats import Beats
from orchestrator.api.calls import APISettings, Call
from orchestrator.api.keyless import KeylessAccess
from orchestrator.api.problems import problem, refusal
from orchestrator.api.proxies import Proxied, cross_origin
from orchestrator.api.routes import ROUTES
from orchestrator.api.table import Route
from orchestrator.core.access import PERMISSIONS, Caller
from orchestrator.core.errors import OrchestratorError
from orchestrator.engine import Engine
from orchestrator.telemetry import bound, get_logger

log = get_logger(__name__)

_ANSWER: Final = "orchestrator.answer"


def create_app(
    engine: Engine, settings: APISettings, routes: tuple[Route, ...] = ROUTES
) -> ASGIApp:
    """Return the application; raises ValueError for a route without a permission of the table."""
    for route in routes:
        if route.permission not in PERMISSIONS:
            raise ValueError(f"{route.method} {route.path} has no permission of the table")
    settings = replace(settings, route_names=frozenset(route.name for route in routes))
    router = Router(list(_paths(routes, engine, settings)), redirect_slashes=False)
    router.default = _nothing_here
    app: ASGIApp = _lean(router, engine, routes)
    if settings.auth_mode != "off":
        app = KeylessAccess(app, engine.access, settings)
    if settings.base_path or settings.trusted_proxies:
        app = Proxied(app, settings.base_path, settings.trusted_proxies)
    app = _Unwound(app)
    return cross_origin(app, settings.cors_origins) if settings.cors_origins else app


def heartbeats(engine: Engine, settings: APISettings) -> Beats:
    """Return what takes heartbeats below ASGI, behind the same rules as the application's."""
    keyless = None
    if settings.auth_mode != "off":
        keyless = KeylessAccess(_nothing_here, engine.access, settings)
    return Beats(_nothing_here, engine, _heartbeat(ROUTES), keyless)


def _lean(app: ASGIApp, engine: Engine, routes: tuple[Route, ...]) -> ASGIApp:
    known = any(route.name == HEARTBEAT for route in routes)
    return Beats(app, engine, _heartbeat(routes), None) if known else app


def _heartbeat(routes: tuple[Route, ...]) -> Route:
    return next(route for route in routes if route.name == HEARTBEAT)


def _paths(routes: tuple[Route, ...], engine: Engine, settings: APISettings) -> list[Path]:
    """Return a Starlette route per path; longer ones first, so that `{id}:cancel` is no id."""
    by_path: dict[str, dict[str, ASGIApp]] = {}
    for route in routes:
        for path in (route.path, *route.also):
            by_path.setdefault(path, {})[route.method] = _Endpoint(route, engine, settings)
    ordered = sorted(by_path, key=lambda path: (path.count("{"), -len(path)))
    return [_whole(Path(path, _Methods(by_path[path]))) for path in ordered]


def _whole(path: Path) -> Path:
    """Let a path match to its very end: `$` lets a newline behind it pass."""
    path.path_regex = re.compile(path.path_regex.pattern.removesuffix("$") + r"\Z")
    return path


class _Unwound:
    """Sends an answer when everything that led to it has returned.

    A stream may be open for hours, and thousands of them hold on to one frame each, not to eight.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the application find the answer, and send it."""
        await self._app(scope, receive, send)
        answer: ASGIApp | None = scope.pop(_ANSWER, None)
        if answer is not None:
            await answer(scope, receive, send)


class _Methods:
    """One path: its methods, HEAD like GET, and 405 for the others."""

    def __init__(self, endpoints: dict[str, ASGIApp]) -> None:
        self._endpoints = endpoints
        self._allowed = ", ".join(sorted(endpoints))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or say which methods there are."""
        method = "GET" if scope["method"] == "HEAD" else scope["method"]
        endpoint = self._endpoints.get(method)
        if endpoint is not None:
            await endpoint(scope, receive, send)
            return
        sentence = f"{scope['method']} is not answered here; {self._allowed} is"
        allow = {"Allow": self._allowed}
        await refusal(405, "method_not_allowed", sentence, headers=allow)(scope, receive, send)


class _Endpoint:
    """One row of the table as ASGI: decodes, calls the handler, and answers its errors."""

    def __init__(self, route: Route, engine: Engine, settings: APISettings) -> None:
        self._route = route
        self._engine = engine
        self._settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002  # ASGI
        """Find the answer to one request."""
        request = Request(scope, receive)
        headers: dict[str, str] = {}
        try:
            admitted = await admit(request, self._route, self._engine)
            headers = admitted.headers
            if admitted.refusal is not None:
                raise admitted.refusal  # noqa: TRY301  # with the headers, like any other answer
            answer = await self._handled(request, admitted.caller)
        except ClientDisconnect:
            return
        except OrchestratorError as error:
            answer = problem(error)
        except Exception:
            log.exception("request_failed", route=self._route.name)
            sentence = "the orchestrator itself failed; its log has the trace"
            answer = refusal(500, "internal_error", sentence)
        scope[_ANSWER] = _WithHeaders(answer, headers) if headers else answer

    async def _handled(self, request: Request, caller: Caller) -> ASGIApp:
        call = Call(request, self._engine, self._settings, caller)
        if caller.key_id is None:
            return await self._route.handler(call)
        with bound(key_id=caller.key_id):
            return await self._route.handler(call)


class _WithHeaders:
    """An answer with more headers, streams too."""

    def __init__(self, answer: ASGIApp, headers: dict[str, str]) -> None:
        self._answer = answer
        self._headers = [(n.lower().encode(), text.encode()) for n, text in headers.items()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the answer."""

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], *self._headers]}
            await send(message)

        await self._answer(scope, receive, sending)


async def _nothing_here(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] != "http":
        return
    # The path is not repeated: it may hold a secret that somebody put there by mistake.
    sentence = "nothing is at this path; /docs lists every one"
    await refusal(404, "not_found", sentence)(scope, receive, send)
