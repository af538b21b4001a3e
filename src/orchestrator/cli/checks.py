"""What `doctor` looks at: each check says what it found and, when that is bad, the fix."""

import os
import platform
import resource
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlsplit

import msgspec

import orchestrator
from orchestrator import app, telemetry
from orchestrator.cli import ports, shapes
from orchestrator.cli.failure import CommandFailed
from orchestrator.cli.server import Server
from orchestrator.core.errors import DatabaseRefused, OrchestratorError, SettingsInvalid
from orchestrator.guards.secretbox import open_box
from orchestrator.settings import Settings
from orchestrator.stores.sqlite import holder_of, locate
from orchestrator.stores.steps import Plan

FILES_NEEDED: Final = 4096
SLOW_SYNC_MS: Final = 50.0
SKEW_MS: Final = 60_000
_SYNCS: Final = 10


class Check(msgspec.Struct, frozen=True):
    """One finding; `good` None means that it is worth knowing and no fault."""

    name: str
    good: bool | None
    said: str
    fix: str = ""


async def everything(settings: Settings | None, server: Server | None) -> AsyncIterator[Check]:
    """Yield every check in the order in which a fault would show; None leaves out its own."""
    up = server is not None and _answers(server)
    yield _versions()
    yield _open_files()
    if settings is not None:
        yield _port(settings, up=up)
        yield await _database(settings)
        yield _key(settings)
        if not settings.postgres:
            yield _disk(settings)
            yield _sync(settings)
    if server is not None:
        async for check in _served(server, up=up):
            yield check
    if settings is not None:
        yield _ingress(settings)


async def _served(server: Server, *, up: bool) -> AsyncIterator[Check]:
    """Yield what a server says of itself and of its agents."""
    if not up:
        yield Check("server", None, f"none answers at {server.url}; ./orchestrator starts one")
        return
    try:
        yield _health(server)
        yield _clock(server)
        async for check in _agents(server):
            yield check
    except CommandFailed as problem:
        yield Check("server", good=False, said=problem.message, fix=problem.hint)


def _versions() -> Check:
    said = f"orchestrator {orchestrator.__version__}, Python {platform.python_version()}"
    return Check("versions", good=True, said=f"{said}, {platform.platform(terse=True)}")


def _open_files() -> Check:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return Check("open files", good=soft >= FILES_NEEDED, said=f"{soft} may be open at once",
                 fix=f"an open run needs two: ulimit -n {FILES_NEEDED}")  # fmt: skip


def _port(settings: Settings, *, up: bool) -> Check:
    port = settings.http_port
    if port == 0 or ports.is_free(port):
        return Check("port", good=True, said=f"{port} is free")
    owner = ports.owner_of(port) or "another user's process"
    fix = f"stop it, or take another: HTTP_PORT={ports.next_free(port)}"
    return Check("port", good=up, said=f"{port} is in use by {owner}", fix="" if up else fix)


async def _database(settings: Settings) -> Check:
    name = "PostgreSQL"
    if not settings.postgres:
        location = locate(settings.database_url)
        name = location.path
        untried = _untried(location.path, location.mode)
        if untried is not None:
            return untried
    telemetry.configure("error", terminal=sys.stderr.isatty())
    try:
        planned = await app.plan_upgrade(settings)
        if planned.steps:
            return _behind(settings, planned)
        await app.try_store(settings)
    except DatabaseRefused as error:
        return Check("database", good=False, said=error.message, fix="DATABASE_URL names another")
    except OrchestratorError as error:
        return Check("database", good=False, said=error.message, fix="look at the disk first")
    return Check("database", good=True, said=f"{name} takes a commit")


def _behind(settings: Settings, planned: Plan) -> Check:
    """Return the finding for a database that lacks steps, which only a start or `up` makes."""
    has = f"has schema {planned.schema}" if planned.schema else "has no schema yet"
    said = f"{planned.database} {has}; this version has {planned.known}"
    if settings.migrate == "start":
        return Check("database", None, f"{said}, and a start brings it there")
    said += ", and MIGRATE=never lets no start change it"
    return Check("database", good=False, said=said, fix="./orchestrator migrate up")


def _key(settings: Settings) -> Check:
    """Look at what encrypts credentials; a file that is not there yet is not made."""
    path = Path(settings.secret_key_file)
    if not settings.secret_keys and not path.exists():
        if os.access(path.parent, os.W_OK | os.X_OK):
            return Check("key", None, f"{path} does not exist yet; a start makes it")
        return Check("key", good=False, said=f"{path} is not there and cannot be made",
                     fix="SECRET_KEY_FILE must be in a folder that can be written")  # fmt: skip
    try:
        open_box(settings.secret_keys, path)
    except SettingsInvalid as error:
        return Check("key", good=False, said=error.message, fix="docs/settings.md")
    name = "SECRET_KEY" if settings.secret_keys else path
    return Check("key", good=True, said=f"{name} encrypts credentials")


def _untried(path: str, mode: str) -> Check | None:
    """Return the finding where a commit cannot be tried: in use, not there, read-only."""
    holder = holder_of(path)
    if holder is not None:
        return Check("database", good=True, said=f"{path}, in use by process {holder}")
    if not Path(path).exists():
        return Check("database", None, f"{path} does not exist yet; a start makes it")
    if mode == "ro":
        return Check("database", None, f"{path} is opened for reading only")
    return None


def _folder(settings: Settings) -> Path:
    return Path(locate(settings.database_url).path).parent


def _disk(settings: Settings) -> Check:
    try:
        free = shutil.disk_usage(_folder(settings)).free
    except OSError as error:
        return Check("disk", good=False, said=f"{_folder(settings)}: {error.strerror}",
                     fix="DATABASE_URL must name a file in a folder that is there")  # fmt: skip
    said = f"{free >> 20:,} MiB free, MIN_FREE_DISK is {settings.min_free_disk >> 20:,} MiB"
    fix = "new runs are refused below that: make room, or set RETENTION_DELTAS"
    return Check("disk", good=free > settings.min_free_disk, said=said, fix=fix)


def _sync(settings: Settings) -> Check:
    """Time what every acknowledged change waits for."""
    try:
        with tempfile.NamedTemporaryFile(dir=_folder(settings)) as file:
            took = sorted(_synced(file) for _ in range(_SYNCS))[_SYNCS // 2]
    except OSError as error:
        return Check("fsync", good=False, said=f"{_folder(settings)}: {error.strerror}",
                     fix="give the server a folder in which it may write")  # fmt: skip
    return Check("fsync", good=took < SLOW_SYNC_MS, said=f"{took:.2f} ms, the middle of {_SYNCS}",
                 fix="every invocation waits for one: use a local disk")  # fmt: skip


def _synced(file: Any) -> float:
    began = time.perf_counter()
    file.write(b"x" * 4096)
    file.flush()
    os.fsync(file.fileno())
    return (time.perf_counter() - began) * 1000


def _answers(server: Server) -> bool:
    try:
        server.text("/health/live")
    except CommandFailed:
        return False
    return True


def _health(server: Server) -> Check:
    try:
        health = msgspec.json.decode(server.text("/health"), type=shapes.Health)
    except ValueError:
        raise server.stranger("/health") from None
    said = ", ".join([health.status, f"version {health.version}", *health.problems])
    return Check("server", good=health.status == "healthy", said=f"{server.url}: {said}",
                 fix="its log says more; docs/operations.md#health")  # fmt: skip


def _clock(server: Server) -> Check:
    """Compare this clock with the newest event's: time that went back shows there."""
    newest = server.get("/v1/runs", shapes.Runs, limit=1)["runs"]
    now = int(time.time() * 1000)  # noqa: TID251  # this machine's clock is what is looked at
    ahead = max((run["created_at"] for run in newest), default=0) - now
    return Check("clock", good=ahead < SKEW_MS,
                 said="the newest run is in the past" if ahead <= 0 else f"{ahead} ms behind a run",
                 fix="the clock went back: let NTP set it (timedatectl set-ntp true)")  # fmt: skip


async def _agents(server: Server) -> AsyncIterator[Check]:
    listed = server.get("/v1/agents", shapes.Agents)["agents"]
    if not listed:
        yield Check("agents", None, "none is registered: ./orchestrator agents add NAME URL")
    async with app.open_clients() as clients:
        for agent in listed:
            path = f"/v1/agents/{quote(agent['agent_id'], safe='')}"
            endpoint = server.get(path, shapes.AgentDetail)["endpoint"]
            yield _agent(agent["agent_id"], endpoint, await _state(clients, endpoint))


async def _state(clients: app.OpenClients, endpoint: str) -> str:
    if not _reachable(endpoint):
        return "unreachable"
    return (await clients.probe.probe(endpoint, None)).status


def _agent(agent_id: str, endpoint: str, status: str) -> Check:
    good = {"healthy": True, "unknown": True}.get(status, False)
    told = "no /health, but it is there" if status == "unknown" else status
    said = f"{agent_id} at {endpoint}: {told}"
    return Check("agent", good=good, said=said, fix=f"./orchestrator probe {endpoint}")


def _ingress(settings: Settings) -> Check:
    url = settings.ingress_url
    if url is None:
        return Check("ingress", None, "INGRESS_URL is off: nothing is pushed")
    if _reachable(url):
        return Check("ingress", good=True, said=f"{url} takes connections")
    return Check("ingress", None, f"nobody at {url}; runs do not mind, INGRESS_URL=off is quieter")


def _reachable(url: str) -> bool:
    try:
        parts = urlsplit(url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        socket.create_connection((parts.hostname or "", port), timeout=2).close()
    except (OSError, ValueError):
        return False
    return True
