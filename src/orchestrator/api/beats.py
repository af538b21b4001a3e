"""The short ways for heartbeats, which come all the time: same checks, same answer, less around.

Most are answered by the connection itself, `at_once`; one whose key has to be looked up is answered
here, before the router. A heartbeat that is refused, or not as most are, goes on to the handler.
"""

from typing import Final

import msgspec
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from orchestrator.api.keyless import KeylessAccess
from orchestrator.api.shapes import InstanceBody
from orchestrator.api.table import Route
from orchestrator.core.access import Caller
from orchestrator.core.errors import OrchestratorError
from orchestrator.engine import Engine

NAME: Final = "heartbeat"
BODY_MAX: Final = 1024
"""Bytes of the body of a heartbeat that may go one of these ways."""
BEFORE: Final = "/v1/agents/"
AFTER: Final = "/heartbeat"
BODY: Final = b'{"ok":true}'
HEADERS: Final = [
    (b"content-length", str(len(BODY)).encode()),
    (b"content-type", b"application/json"),
]
_DECODER: Final = msgspec.json.Decoder(InstanceBody)
_ELSEWHERE: Final = frozenset({b"x-run-token", b"origin", b"expect", b"transfer-encoding"})
"""With one of these headers there is more to a request than this file knows of."""
_KEYS: Final = frozenset({b"authorization", b"x-api-key"})


class Beats:
    """Answers heartbeats of instances that are known and passes everything else on."""

    def __init__(
        self, app: ASGIApp, engine: Engine, route: Route, keyless: KeylessAccess | None
    ) -> None:
        self._app = app
        self._engine = engine
        self._route = route
        self._keyless = keyless

    def at_once(self, scope: Scope, body: bytes) -> bool:
        """Take a heartbeat that came whole, if nobody need be asked about it."""
        agent_id, shown = _agent_of(scope), _shown(scope)
        if agent_id is None or shown is None:
            return False
        if self._keyless is not None and self._keyless.objection(scope) is not None:
            return False
        caller = self._engine.access.known(shown or None)
        return caller is not None and self._is_taken(caller, agent_id, body)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or pass the request on as it came; who may call at all was looked at before."""
        agent_id, shown = _agent_of(scope), _shown(scope)
        if agent_id is None or not shown or self._engine.access.keyless:
            await self._app(scope, receive, send)
            return
        first = await receive()
        if await self._is_good(first, agent_id, shown):
            await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
            await send({"type": "http.response.body", "body": BODY})
        else:
            await self._app(scope, _again(first, receive), send)

    async def _is_good(self, first: Message, agent_id: str, shown: str) -> bool:
        if first["type"] != "http.request" or first.get("more_body"):
            return False
        try:
            caller = await self._engine.access.caller(shown)
        except OrchestratorError:
            return False  # the handler says what is wrong, and has it noted
        return self._is_taken(caller, agent_id, first.get("body", b""))

    def _is_taken(self, caller: Caller, agent_id: str, body: bytes) -> bool:
        if caller.limits or not caller.may(self._route.permission) or len(body) > BODY_MAX:
            return False
        try:
            named = _DECODER.decode(body).instance_id if body else None
        except ValueError:
            return False
        return self._engine.agents.beat(agent_id, caller, named or None)


def _agent_of(scope: Scope) -> str | None:
    """Return whose heartbeat this is; None for anything else, or with anything more to it."""
    if scope["type"] != "http" or scope["method"] != "POST" or scope["query_string"]:
        return None
    path: str = scope["path"]
    if not path.endswith(AFTER) or not path.startswith(BEFORE):
        return None
    agent_id = path[len(BEFORE) : -len(AFTER)]
    return None if not agent_id or "/" in agent_id else agent_id


def _shown(scope: Scope) -> str | None:
    """Return the one key that a request shows, empty without any; None when there is more."""
    shown = b""
    for name, value in scope["headers"]:
        if name in _ELSEWHERE:
            return None
        if name in _KEYS:
            key = value if name == b"x-api-key" else _bearer(value)
            if shown or not key:
                return None
            shown = key
    return shown.decode("latin-1")


def _bearer(value: bytes) -> bytes:
    return value[7:].strip() if value[:7].lower() == b"bearer " else b""


def _again(first: Message, receive: Receive) -> Receive:
    """Return a way to receive what was received already, and then the rest."""
    messages = [first]

    async def receiving() -> Message:
        return messages.pop() if messages else await receive()

    return receiving
