"""Serves one agent: listen, register, answer, and on the way out drain before closing."""

import asyncio
import contextlib
import signal
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from typing import Any, Final, Protocol, TypedDict, Unpack

import uvicorn

from orchestrator_sdk import application, presence
from orchestrator_sdk.application import Servable
from orchestrator_sdk.background import beside
from orchestrator_sdk.errors import OrchestratorError
from orchestrator_sdk.presence import Registrable
from orchestrator_sdk.secret import Secret

DRAIN_S: Final = 30
_WILDCARDS: Final = frozenset({"0.0.0.0", "::", ""})  # noqa: S104  # compared, not bound


class CannotListen(OrchestratorError):
    """The address cannot be bound; the message says which and why."""

    code = "cannot_listen"


class Serving(TypedDict, total=False):
    """How an agent is served.

    `orchestrator_url` and `orchestrator_key` say where it registers (ORCHESTRATOR_URL and
    ORCHESTRATOR_KEY where they are absent), `endpoint` under which address the platform reaches it
    (AGENT_ENDPOINT, else host and port), `heartbeat_s` how often it says that it lives, `drain_s`
    how long runs under way may take at the end.
    """

    orchestrator_url: str
    orchestrator_key: str | Secret
    endpoint: str
    heartbeat_s: float
    drain_s: int


class Whole(Servable, Registrable, Protocol):
    """An agent that can be served and registered."""


class _Server(uvicorn.Server):
    """Uvicorn that leaves the signals to us and says when it listens."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals to us."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and say so; a lifespan that failed is an error and no exit."""
        try:
            await super().startup(sockets)
            failed = self.lifespan.should_exit  # all that older ones do
        except SystemExit:
            failed = True
        if failed:
            raise OrchestratorError("the agent's lifespan failed at the start; its log says why")
        self.ready.set()

    def leave(self) -> None:
        """Close the listener and finish what is under way."""
        self.should_exit = True


@asynccontextmanager
async def serving(
    agent: Whole, host: str = "127.0.0.1", port: int = 0, **how: Unpack[Serving]
) -> AsyncIterator[str]:
    """Serve an agent while the body runs, and hand out its address; port 0 takes a free one.

    Raises CannotListen.
    """
    listener = _bound(host, port)
    config = uvicorn.Config(
        application.create(agent),
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        ws="none",
        timeout_graceful_shutdown=how.get("drain_s", DRAIN_S),
    )
    server = _Server(config)
    url = _address(host, listener)
    endpoint = (
        how.get("endpoint") or presence.environment("AGENT_ENDPOINT") or _reachable(host, url)
    )
    with listener:
        async with beside(server.serve(sockets=[listener]), server.leave):
            await server.ready.wait()
            async with presence.registered(
                agent,
                endpoint,
                url=how.get("orchestrator_url"),
                key=how.get("orchestrator_key"),
                heartbeat_s=how.get("heartbeat_s", presence.HEARTBEAT_S),
            ):
                yield url


def serve(agent: Whole, host: str = "127.0.0.1", port: int = 8000, **how: Unpack[Serving]) -> None:
    """Serve an agent until SIGTERM or Ctrl-C, which drain it; a second signal ends it at once.

    Other machines are answered where `host` is theirs to reach, such as 0.0.0.0: then give the
    agent an `auth_token`.
    """
    try:
        asyncio.run(_until_told(agent, host, port, how))
    except CannotListen as error:
        sys.exit(f"{agent.id}: {error}")


async def _until_told(agent: Whole, host: str, port: int, how: Serving) -> None:
    told = asyncio.Event()
    loop = asyncio.get_running_loop()
    signals = (signal.SIGTERM, signal.SIGINT)

    def tell() -> None:
        told.set()
        for one in signals:
            loop.remove_signal_handler(one)

    with suppress(NotImplementedError):  # Windows: Ctrl-C still raises
        for one in signals:
            loop.add_signal_handler(one, tell)
    async with serving(agent, host, port, **how) as url:
        sys.stderr.write(f"{agent.id} answers at {url}\n")
        sys.stderr.flush()
        await told.wait()


def _bound(host: str, port: int) -> socket.socket:
    try:
        found: list[Any] = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        family, kind, protocol, _, address = found[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
        except OSError:
            listener.close()
            raise
    except OSError as error:
        raise CannotListen(
            f"cannot listen on {host}:{port}: {error.strerror}; choose another port"
        ) from error
    return listener


def _address(host: str, listener: socket.socket) -> str:
    port = listener.getsockname()[1]
    name = "127.0.0.1" if host in _WILDCARDS else host
    return f"http://[{name}]:{port}" if ":" in name else f"http://{name}:{port}"


def _reachable(host: str, url: str) -> str:
    """Return how others reach this machine: by its name, where every address is listened on."""
    if host not in _WILDCARDS:
        return url
    return f"http://{socket.gethostname()}:{url.rpartition(':')[2]}"
