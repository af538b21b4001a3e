"""The composition root: the only file that names concrete drivers."""

import asyncio
import contextlib
import errno
import gc
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple, cast
from urllib.parse import quote

import msgspec
import uvicorn

import orchestrator
from orchestrator.api import APISettings, create_app, heartbeats
from orchestrator.api.inprocess import InProcess
from orchestrator.api.protocol import HTTPProtocol
from orchestrator.api.routes import ROUTES
from orchestrator.buses.local import LocalBus
from orchestrator.clients.agents import agent_clients
from orchestrator.clients.fetch import fetch
from orchestrator.clients.http import HTTPClient
from orchestrator.clients.probe import HTTPProbe
from orchestrator.clients.push import IngressPush
from orchestrator.clients.streaming import StreamingClient
from orchestrator.console import ROUTES as PAGES
from orchestrator.core.errors import DatabaseRefused, PortBusy, SettingsInvalid, StoreFailure
from orchestrator.engine import AccessSettings, Engine, EngineSettings, Outside
from orchestrator.guards.egress import EgressGuard
from orchestrator.guards.secretbox import open_box
from orchestrator.ports import AgentClient, AgentProbe, Bus, Identity, PushClient, Store
from orchestrator.settings import Settings
from orchestrator.stores import sqlite
from orchestrator.stores.copying import Copied, Told, copied
from orchestrator.stores.sqlite import announce, locate, open_store
from orchestrator.stores.steps import Plan
from orchestrator.telemetry import exporting, get_logger
from orchestrator.world import RealWorld, stop_signals

log = get_logger(__name__)

Beside = Callable[[str], Awaitable[int | None]]
"""A coroutine that runs beside the server once it answers, given its URL; a number it returns
stops the server with that exit code."""

_LOOPBACK = ("127.0.0.1", "::1")
_BACKLOG = 2048
_GC_THRESHOLDS = (20_000, 20, 50)
_CUT_READERS_S = 1
"""How long answers in progress may take once every run is over; streams are cut and resume."""


@contextlib.asynccontextmanager
async def _kept(settings: Settings, world: RealWorld) -> AsyncIterator[tuple[Store, Bus]]:
    """Open the store that `DATABASE_URL` names, and the bus that goes with it."""
    if settings.postgres:
        async with _postgres(settings, world) as kept:
            yield kept
        return
    store = await open_store(
        settings.database_url,
        world=world,
        watermark=settings.min_free_disk,
        durability=settings.durability,
        migrate=settings.migrate == "start",
    )
    try:
        yield store, LocalBus()
    finally:
        await store.close()


@contextlib.asynccontextmanager
async def _postgres(settings: Settings, world: RealWorld) -> AsyncIterator[tuple[Store, Bus]]:
    # Imported here: a start on a file is quicker without.
    from orchestrator.buses.postgres import PostgresBus  # noqa: PLC0415  # as said above
    from orchestrator.stores import postgres  # noqa: PLC0415  # as said above

    migrate = settings.migrate == "start"
    store = await postgres.open_store(settings.database_url, world=world, migrate=migrate)
    try:
        bus = PostgresBus(settings.database_url, world)
        async with bus.running():
            yield store, bus
    finally:
        await store.close()


@contextlib.asynccontextmanager
async def open_engine(settings: Settings) -> AsyncIterator[Engine]:
    """Open the store and everything behind the engine's ports; nothing runs yet."""
    world = RealWorld()
    egress = EgressGuard(allow=settings.egress_allow, loopback=settings.loopback)
    async with (
        _kept(settings, world) as (store, bus),
        HTTPClient(world, egress) as http,
        StreamingClient(world, egress) as streaming,
    ):
        box = open_box(settings.secret_keys, settings.secret_key_file)
        outside = Outside(
            store=store,
            bus=bus,
            world=world,
            agents=agent_clients(streaming),
            egress=egress,
            box=box,
            signer=box,
            identity=_identity(settings, http, world),
            push=_push(settings, http),
            probe=HTTPProbe(http),
        )
        yield Engine(outside, _engine_settings(settings))


def _push(settings: Settings, http: HTTPClient) -> PushClient | None:
    if not settings.ingress_url:
        return None
    key = settings.ingress_key
    return IngressPush(http, settings.ingress_url, key.reveal() if key else None)


def _identity(settings: Settings, http: HTTPClient, world: RealWorld) -> Identity | None:
    if settings.oidc_issuer is None:
        return None
    from orchestrator.guards.oidc import OIDC, Rules  # noqa: PLC0415  # a start without is quicker

    rules = Rules(
        issuer=settings.oidc_issuer,
        audiences=settings.oidc_audience,
        jwks_url=settings.oidc_jwks_url,
        role_claim=settings.oidc_role_claim,
        tenant_claim=settings.oidc_tenant_claim,
        person_claim=settings.oidc_person_claim,
    )
    return OIDC(rules, partial(fetch, http), world)


class OpenClients(NamedTuple):
    """What calls agents: a client for each protocol, and what asks for their health."""

    agents: Mapping[str, AgentClient]
    probe: AgentProbe


@contextlib.asynccontextmanager
async def open_clients(allow: Sequence[str] = ("loopback",)) -> AsyncIterator[OpenClients]:
    """Open the clients alone, for a command that calls agents without a server."""
    world, egress = RealWorld(), EgressGuard(allow=allow)
    async with HTTPClient(world, egress) as http, StreamingClient(world, egress) as streaming:
        yield OpenClients(agent_clients(streaming), HTTPProbe(http))


async def backup(settings: Settings, path: str) -> None:
    """Copy the database to a new file, beside a running server or without one."""
    source = quote(locate(settings.database_url).path)
    store = await open_store(f"file:{source}?mode=ro", world=RealWorld())
    try:
        await store.backup(path)
    finally:
        await store.close()


async def copy(settings: Settings, target: str, told: Told) -> list[Copied]:
    """Copy the database file to an empty PostgreSQL database, whole or not at all.

    Raises DatabaseRefused before anything has begun; StoreFailure, StorageFull and Unavailable
    where nothing is left of what was begun.
    """
    from orchestrator.stores.postgres import loading  # noqa: PLC0415  # as said above
    from orchestrator.stores.sqlite import rows  # noqa: PLC0415  # no start needs it

    with rows.opened(settings.database_url, RealWorld().boot()) as source:
        async with loading.opened(target) as empty:
            return await copied(source, empty, told)


async def plan_upgrade(settings: Settings) -> Plan:
    """Return what an upgrade of the database's schema would do; changes nothing."""
    if not settings.postgres:
        return sqlite.plan(settings.database_url)
    from orchestrator.stores import postgres  # noqa: PLC0415  # as said above

    return await postgres.plan(settings.database_url)


async def upgrade(settings: Settings) -> Plan:
    """Bring the database's schema up to date, whatever MIGRATE says, and return what was done."""
    if not settings.postgres:
        return sqlite.up(settings.database_url)
    from orchestrator.stores import postgres  # noqa: PLC0415  # as said above

    return await postgres.prepare(postgres.locate(settings.database_url))


async def ask(settings: Settings, method: str, path: str, body: bytes) -> tuple[int, bytes]:
    """Return status and body of one API request, answered without a server, by the database.

    Who can open the file is its operator, so no key is asked for. Raises DatabaseRefused.
    """
    own = msgspec.structs.replace(settings, auth_mode="off")
    async with open_engine(own) as engine:
        app = create_app(engine, APISettings(auth_mode="off"))
        answer = InProcess(method, path, body)
        await app(answer.scope, answer.receive, answer.send)
        return answer.status, answer.body


async def try_store(settings: Settings) -> None:
    """Open the database and commit to its disk; raises DatabaseRefused or Unavailable."""
    async with _kept(settings, RealWorld()) as (store, _):
        await store.probe()


def _engine_settings(settings: Settings) -> EngineSettings:
    return EngineSettings(
        agent_timeout_ms=settings.agent_timeout_ms,
        first_byte_timeout_ms=settings.agent_first_byte_timeout_ms,
        idle_timeout_ms=settings.agent_idle_timeout_ms,
        run_max_ms=settings.run_max_ms,
        max_open_runs=settings.max_open_runs,
        max_run_bytes=settings.max_run_bytes,
        drain_timeout_ms=settings.drain_timeout_ms,
        retention_runs_ms=settings.retention_runs_ms,
        retention_deltas_ms=settings.retention_deltas_ms,
        base_url=settings.agent_base_url,
        access=AccessSettings(
            admin_key=settings.admin_key,
            open=settings.auth_mode == "off",
            keys_only=settings.auth_mode == "keys",
        ),
    )


async def serve(settings: Settings, *, beside: Beside | None = None) -> int:
    """Serve until SIGTERM, SIGINT or the word of `beside`; return the exit code.

    The first signal drains: the listener stays open, new runs are refused with `draining`, those
    in flight may end within DRAIN_TIMEOUT_MS. A second signal cuts that short. Raises PortBusy and
    DatabaseRefused before anything has begun.
    """
    _must_write(settings)
    with (
        exporting(settings.otlp_endpoint, version=orchestrator.__version__),
        _listening(settings.http_host, settings.http_port) as sockets,
    ):
        own = settings.at(sockets[0].getsockname()[1])
        async with open_engine(own) as engine:
            await _must_know_callers(engine, own)
            code = 1
            try:
                code = await _serve(engine, own, sockets, beside)
            except* StoreFailure as failures:
                log.critical("store_failed", error=str(failures.exceptions[0]))
            return code


def _must_write(settings: Settings) -> None:
    if not settings.postgres and locate(settings.database_url).mode == "ro":
        raise DatabaseRefused(
            "DATABASE_URL says mode=ro, and a server writes; leave the mode out, or say mode=rw"
        )


async def _must_know_callers(engine: Engine, settings: Settings) -> None:
    """Refuse to serve others while nobody has a key."""
    await engine.access.look()
    if settings.auth_mode == "off":
        log.warning("open_to_everybody", auth_mode="off", loopback=settings.loopback)
        return
    if engine.access.has_keys:
        return
    if settings.auth_mode == "keys" or not settings.loopback:
        why = f"HTTP_HOST={settings.http_host} lets others call"
        raise SettingsInvalid(
            f"{'AUTH_MODE=keys asks for keys' if settings.loopback else why}, and there is no key "
            "yet. Make one: ./orchestrator keys create --role admin NAME\n"
            "  Or say that everybody may do everything: AUTH_MODE=off ./orchestrator"
        )


async def _serve(
    engine: Engine, settings: Settings, sockets: list[socket.socket], beside: Beside | None
) -> int:
    server = _Server(_uvicorn(engine, settings))
    stop = _Stop(engine)
    async with asyncio.TaskGroup() as tasks, stop_signals(stop.now):
        serving = tasks.create_task(server.serve(sockets=sockets), name="http")
        async with engine.running():
            helper = tasks.create_task(_beside(beside, server, settings, stop), name="beside")
            await stop.wanted.wait()
        helper.cancel()
        server.should_exit = True
        await serving
    return stop.code


async def _beside(
    beside: Beside | None, server: uvicorn.Server, settings: Settings, stop: "_Stop"
) -> None:
    while not server.started:  # noqa: ASYNC110  # uvicorn has no event for it
        await asyncio.sleep(0.005)  # the same
    log.info("listening", url=settings.public_url)
    if not settings.postgres:
        announce(locate(settings.database_url).path, settings.own_url)
    _collect_rarely()
    code = await beside(settings.public_url) if beside is not None else None
    if code is not None:
        stop.now(code)


def _collect_rarely() -> None:
    """Leave what is there for ever out of the collector's rounds, and let it come less often.

    Runs and readers are let go of by reference counts; a round over thousands of them only stops
    everybody for some milliseconds.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_GC_THRESHOLDS)


class _Server(uvicorn.Server):
    """Uvicorn without its own idea of signals: it would close the listener before the drain."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals to us."""
        yield


class _Stop:
    """Why and how the server stops: the first word drains, the second ends what still runs."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.wanted = asyncio.Event()
        self.code = 0

    def now(self, code: int = 0) -> None:
        """Stop, with this exit code."""
        if self.wanted.is_set():
            self._engine.stop_runs()
            return
        log.info("draining", runs=self._engine.in_flight)
        self.code = code
        self.wanted.set()


def _uvicorn(engine: Engine, settings: Settings) -> uvicorn.Config:
    api = APISettings(
        version=orchestrator.__version__,
        auth_mode=settings.auth_mode,
        public_url=settings.public_url,
        base_path=settings.base_path,
        trusted_proxies=settings.trusted_proxies,
        cors_origins=settings.cors_origins,
        keep_alive_s=settings.keep_alive_ms / 1000,
    )
    protocol = partial(HTTPProtocol, beats=heartbeats(engine, api))
    return uvicorn.Config(
        create_app(engine, api, (*ROUTES, *PAGES)),
        http=cast("type[asyncio.Protocol]", protocol),  # it is only called
        loop="none",
        lifespan="off",
        ws="none",
        access_log=False,
        log_config=None,
        server_header=False,
        date_header=False,
        proxy_headers=False,
        backlog=_BACKLOG,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=_CUT_READERS_S,
    )


@contextlib.contextmanager
def _listening(host: str | None, port: int) -> Iterator[list[socket.socket]]:
    """Bind every address that `host` means; without one, both loopbacks."""
    sockets: list[socket.socket] = []
    try:
        for address in (host,) if host else _LOOPBACK:
            found = _bind(address, port, needed=not sockets)
            if found is not None:
                sockets.append(found)
                port = found.getsockname()[1]
        yield sockets
    finally:
        for bound in sockets:
            bound.close()


def _bind(address: str, port: int, *, needed: bool) -> socket.socket | None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        bound.bind((address, port))
    except OSError as error:
        bound.close()
        if error.errno == errno.EADDRINUSE:
            raise PortBusy(f"port {port} on {address} is already in use", port=port) from error
        if needed:
            raise PortBusy(f"cannot listen on {address}:{port}: {error.strerror}") from error
        return None  # a machine without IPv6
    return bound
