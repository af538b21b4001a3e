"""The doctor: what is wrong with this installation, and the fix; or a bundle for a report."""

import asyncio
import io
import tarfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit, urlunsplit

import click
import msgspec

from orchestrator.cli import checks, options, shapes
from orchestrator.cli.failure import CommandFailed, Exit
from orchestrator.cli.output import Output
from orchestrator.cli.server import Server
from orchestrator.core.errors import OrchestratorError
from orchestrator.settings import VARIABLES, Settings, load

RUNS: Final = 200
_TOLD: Final = (
    "run_id", "status", "agent_id", "session_id", "attempt", "last_seq", "created_at",
    "started_at", "ended_at", "parent_run_id",
)  # fmt: skip


@click.command()
@click.option("--bundle", type=click.Path(path_type=Path), metavar="FILE",
              help="Also write a .tar.gz for a report: no messages, no secrets.")  # fmt: skip
@options.as_json
@options.url
def doctor(bundle: Path | None, json: bool, url: str | None) -> Exit:
    """Check settings, disk, clock, server and agents.

    The exit code is 0 when all is well.
    """
    out = Output(json=json)
    settings, server, found = _begin(url)
    found = asyncio.run(_look(settings, server, found, out))
    if bundle is not None:
        _write(bundle, settings, server, found)
        out.remark(f"{bundle} holds what a report needs; look through it before you send it")
    return Exit.FAILED if any(check.good is False for check in found) else Exit.OK


def _begin(url: str | None) -> tuple[Settings | None, Server | None, list[checks.Check]]:
    """Return the settings and the server, where they can be had, and what is to be said of that."""
    settings = server = None
    check = checks.Check("settings", good=True, said="every variable can be read")
    with suppress(OrchestratorError, CommandFailed):
        server = options.server(url)  # a variable it cannot read is told with the others
    try:
        settings = load()
    except OrchestratorError as error:
        fix = "docs/settings.md says what each variable takes"
        check = checks.Check("settings", good=False, said=error.message, fix=fix)
    return settings, server, [check]


async def _look(
    settings: Settings | None, server: Server | None, found: list[checks.Check], out: Output
) -> list[checks.Check]:
    for check in found:
        _show(check, out)
    async for check in checks.everything(settings, server):
        told = msgspec.structs.replace(check, fix="") if check.good else check
        found.append(told)
        _show(told, out)
    return found


def _show(check: checks.Check, out: Output) -> None:
    if out.json:
        out.result(check)
    else:
        out.check(good=check.good, text=f"{check.name}: {check.said}", fix=check.fix)


def _write(
    path: Path, settings: Settings | None, server: Server | None, found: list[checks.Check]
) -> None:
    """Write the bundle; a part that cannot be had says why instead."""
    try:
        with tarfile.open(path, "w:gz") as bundle:
            for name, part in _parts(settings, server, found):
                data = _said(part)
                info = tarfile.TarInfo(f"orchestrator-report/{name}")
                info.size = len(data)
                bundle.addfile(info, io.BytesIO(data))
    except OSError as error:
        raise CommandFailed(f"{path} cannot be written: {error.strerror}") from error


def _parts(
    settings: Settings | None, server: Server | None, found: list[checks.Check]
) -> Iterator[tuple[str, Callable[[], Any]]]:
    yield "checks.json", lambda: found
    if settings is not None:
        yield "settings.json", lambda: _redacted(settings)
    if server is None:
        return
    yield "health.json", lambda: server.text("/health").encode()
    yield "metrics.txt", lambda: server.text("/metrics").encode()
    yield "agents.json", lambda: _agents(server)
    yield "runs.json", lambda: _runs(server)


def _said(part: Callable[[], Any]) -> bytes:
    try:
        value = part()
    except CommandFailed as problem:
        value = {"not_available": str(problem)}
    if isinstance(value, bytes):
        return value
    return msgspec.json.format(msgspec.json.encode(value), indent=2)


def _redacted(settings: Settings) -> dict[str, Any]:
    """Return the settings: what is secret is only said to be set, URLs lose their passwords."""
    told = {field: getattr(settings, field) for field in settings.__struct_fields__}
    for variable in VARIABLES:
        value = told.get(variable.field)
        if variable.secret:
            told[variable.field] = "set" if value else "unset"
        elif isinstance(value, str) and "@" in value:
            told[variable.field] = without_user(value)
    return told


def without_user(url: str) -> str:
    """Return a URL without its user, password, query and fragment."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def _agents(server: Server) -> list[dict[str, Any]]:
    listed = server.get("/v1/agents", shapes.Agents)["agents"]
    agents = [server.get(f"/v1/agents/{agent['agent_id']}", shapes.AgentDetail) for agent in listed]
    return [agent | {"endpoint": without_user(agent["endpoint"])} for agent in agents]


def _runs(server: Server) -> list[dict[str, Any]]:
    """Return the newest runs without a word of what was said in them."""
    runs = server.get("/v1/runs", shapes.Runs, limit=RUNS)["runs"]
    return [
        {name: run[name] for name in _TOLD if name in run}
        | {"error_code": (run.get("error") or {}).get("code")}
        for run in runs
    ]
