"""The ingress as a process: its listeners, its devices, its beginning and its end."""

import asyncio
import contextlib
import socket
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec

from orchestrator.clients.exchange import HTTP
from orchestrator.ingress import http
from orchestrator.ingress.connection import Connection
from orchestrator.ingress.device import RESTART, Device
from orchestrator.ingress.greeting import Lobby
from orchestrator.ingress.head import Head, may_push, objection
from orchestrator.ingress.http import Answer
from orchestrator.ingress.told import IngressSettings
from orchestrator.ingress.upstream import Upstream
from orchestrator.ports import World
from orchestrator.telemetry import get_logger
from orchestrator.world import stop_signals

log = get_logger(__name__)

LEAVE_S: Final = 2.0
"""How long devices have to answer the close when the ingress ends."""
_LOOK_S: Final = 0.5
_BACKLOG: Final = 2048
_SEND_BUFFER: Final = 128 << 10
_METHODS: Final = {"/ws": "GET", "/health": "GET", "/internal/send": "POST"}
_TAKEN: Final = {"X-Ingress": "tail", "X-Batch": "1"}


class _Push(msgspec.Struct):
    session_id: str
    event: dict[str, Any] | None = None
    events: list[dict[str, Any]] | None = None


class Ingress:
    """All connections of the process, and what they share."""

    def __init__(self, settings: IngressSettings, lobby: Lobby, tasks: asyncio.TaskGroup) -> None:
        self.settings = settings
        self._lobby = lobby
        self._tasks = tasks
        self._connections: set[Connection] = set()
        self._devices = 0
        self._ending = False

    # ------------------------------------------------------------ connections

    def arrived(self, connection: Connection) -> None:
        """Note a connection."""
        self._connections.add(connection)

    def left(self, connection: Connection) -> None:
        """Forget a connection."""
        self._connections.discard(connection)
        self._devices -= connection.device is not None

    def greet(self, connection: Connection) -> Device:
        """Return the device at the end of a connection."""
        self._devices += 1
        return Device(connection, self._lobby)

    def start(self, connection: Connection) -> None:
        """Have a device's messages done."""
        self._tasks.create_task(connection.work(), name="device")

    async def watch(self) -> None:
        """Look at the clocks of all connections, for ever."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(_LOOK_S)
            now = loop.time()
            for connection in list(self._connections):
                connection.look(now)

    async def end(self) -> None:
        """Send all devices away, to come again elsewhere."""
        self._ending = True
        for connection in list(self._connections):
            connection.close(RESTART, "the ingress restarts; come again with your cursor")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LEAVE_S):
                while self._devices:  # noqa: ASYNC110  # the end of the process, once
                    await asyncio.sleep(0.01)

    # ------------------------------------------------------------ requests

    def objection(self, head: Head) -> Answer | None:
        """Return what a request for a WebSocket is refused with, None where it may be one."""
        if head.path != "/ws":
            return http.refused(404, "not_found", "a WebSocket is at /ws")
        why = objection(head, self.settings)
        if why is not None:
            return http.refused(403, "forbidden", why)
        if self._ending or self._devices >= self.settings.ws_max_connections:
            full = "the ingress ends" if self._ending else "the ingress has all devices it may have"
            return http.refused(503, "unavailable", f"{full}; try again", retry_after="1")
        return None

    def answer(self, head: Head, body: bytes) -> Answer:
        """Return the answer to a plain request."""
        allowed = _METHODS.get(head.path)
        if allowed is None:
            return http.refused(404, "not_found", "there is /ws, /health and /internal/send")
        if head.method != allowed and not (head.method == "HEAD" and allowed == "GET"):
            told = f"{head.path} takes {allowed}"
            return http.refused(405, "method_not_allowed", told, allow=allowed)
        match head.path:
            case "/health":
                return 200, self._health(), {"Cache-Control": "no-store"}
            case "/internal/send":
                return self._pushed(head, body)
            case _:
                told = "this is a WebSocket: ask for one"
                return http.refused(426, "upgrade_required", told, upgrade="websocket")

    def _health(self) -> dict[str, object]:
        sessions = self._lobby.sessions
        return {"status": "healthy", "connections": self._devices, "sessions": sessions}

    def _pushed(self, head: Head, body: bytes) -> Answer:
        """Take a push, which is only a hint: what is in it comes by the tail."""
        if not may_push(head, self.settings):
            told = "send INGRESS_KEY as the bearer of a push"
            return http.refused(401, "unauthorized", told, www_authenticate="Bearer")
        try:
            push = msgspec.json.decode(body, type=_Push)
        except msgspec.MsgspecError as error:
            return http.refused(400, "invalid_request", f"this is no push: {error}")
        if push.event is None and push.events is None:
            return http.refused(400, "invalid_request", "a push has event or events")
        return 200, {"ok": True}, _TAKEN


async def serve(
    settings: IngressSettings,
    http_client: HTTP,
    world: World,
    sockets: Sequence[socket.socket],
    ready: Callable[[], None] | None = None,
) -> int:
    """Serve on bound sockets until SIGTERM or SIGINT; return the exit code."""
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as tasks, stop_signals(stop.set):
        upstream = Upstream(http_client, settings.orchestrator_url)
        inside = tasks.create_task(
            _serve(settings, upstream, world, sockets, ready), name="ingress"
        )
        await stop.wait()
        inside.cancel()
    return 0


async def _serve(
    settings: IngressSettings,
    upstream: Upstream,
    world: World,
    sockets: Sequence[socket.socket],
    ready: Callable[[], None] | None,
) -> None:
    loop = asyncio.get_running_loop()
    async with asyncio.TaskGroup() as tasks, contextlib.AsyncExitStack() as stack:
        ingress = Ingress(settings, Lobby(settings, upstream, world, tasks), tasks)
        for bound in sockets:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
            server = await loop.create_server(
                lambda: Connection(ingress), sock=bound, backlog=_BACKLOG
            )
            stack.callback(server.close)
        if ready is not None:
            ready()
        try:
            await ingress.watch()
        finally:
            await stack.aclose()
            await ingress.end()
