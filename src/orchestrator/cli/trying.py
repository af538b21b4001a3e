"""Trying it out: the server, a demo agent, the ingress and a first run, from one command."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import click

import orchestrator
from orchestrator.cli import options, ports, serving, shapes
from orchestrator.cli.events import follow
from orchestrator.cli.failure import CommandFailed, Exit
from orchestrator.cli.output import Output
from orchestrator.settings import load, load_ingress

AGENT: Final = "demo_agent"
AGENT_PORT: Final = 8000
GREETING: Final = "Hello, how are you?"
PROGRAM: Final = Path(orchestrator.__file__).parents[2] / "examples" / "demo_agent.py"


@click.command()
@click.argument("text", default=GREETING)
def dev(text: str) -> int:
    """Start server, demo agent and ingress, show a first run, stay up."""
    return _play(text, stay=True)


@click.command()
@click.argument("text", default=GREETING)
def demo(text: str) -> int:
    """Do what dev does, and end after the run."""
    return _play(text, stay=False)


def _play(text: str, *, stay: bool) -> int:
    out = Output()
    settings = load(flags=_quiet(out))

    async def beside(url: str) -> int | None:
        async with _demo_agent() as endpoint, _ingress(url, out, wanted=stay) as ingress:
            out.line(f"server      {url}", "bold")
            out.line(f"demo agent  {endpoint}", "bold")
            run_id, code = await asyncio.to_thread(_first_run, url, endpoint, text, out)
            if not stay:
                out.line("this server ends now; one that stays up:")
                out.line("  ./orchestrator dev")
                return code
            devices = await ingress.readline() if ingress else b""
            _what_next(url, run_id, devices.decode().strip(), out)
            await asyncio.Event().wait()
            return None

    return serving.run(settings, beside)


def _quiet(out: Output) -> dict[str, str]:
    """Return the settings of a first try: a free port, no ingress, warnings only."""
    said = os.environ  # noqa: TID251  # what a person has set wins over these
    flags = {
        name: value
        for name, value in (("INGRESS_URL", "off"), ("LOG_LEVEL", "warn"))
        if name not in said
    }
    wanted = load().http_port
    if wanted and not ports.is_free(wanted):
        owner = ports.owner_of(wanted) or "another process"
        flags["HTTP_PORT"] = str(ports.next_free(wanted))
        out.remark(f"port {wanted} is taken by {owner}; taking {flags['HTTP_PORT']}")
    return flags


@asynccontextmanager
async def _demo_agent() -> AsyncIterator[str]:
    """Run the demo agent; it ends with us however we end, because its standard input closes."""
    if not PROGRAM.exists():
        raise CommandFailed(
            "the demo agent is not here: this is an installed package, not a checkout",
            hint="register an agent of your own: ./orchestrator agents add NAME URL",
        )
    port = AGENT_PORT if ports.is_free(AGENT_PORT) else 0
    agent = await asyncio.create_subprocess_exec(
        sys.executable, "-I", str(PROGRAM), "--port", str(port), "--until-eof",
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    try:
        address = await agent.stdout.readline() if agent.stdout else b""
        if not address:
            raise CommandFailed(f"the demo agent did not start; try: python3 {PROGRAM}")
        yield address.decode().strip()
    finally:
        if agent.returncode is None:
            agent.send_signal(signal.SIGTERM)
            await agent.wait()


@asynccontextmanager
async def _ingress(
    url: str, out: Output, *, wanted: bool
) -> AsyncIterator[asyncio.StreamReader | None]:
    """Run the ingress beside the server, if its port is free; it says its address once it is up."""
    port = load_ingress().ws_port
    if not (wanted and port and ports.is_free(port)):
        if wanted and port:
            owner = ports.owner_of(port) or "another process"
            out.remark(f"port {port} is taken by {owner}; no ingress is started")
        yield None
        return
    said = os.environ  # noqa: TID251  # the same process, one step on
    ingress = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "orchestrator", "ingress", "--until-eof",
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        env={"LOG_LEVEL": "warn", **said, "ORCHESTRATOR_URL": url}, start_new_session=True,
    )  # fmt: skip
    try:
        yield ingress.stdout
    finally:
        if ingress.returncode is None:
            ingress.send_signal(signal.SIGTERM)
            await ingress.wait()


def _first_run(url: str, endpoint: str, text: str, out: Output) -> tuple[str, int]:
    server = options.server(url)
    registration = {"agent_id": AGENT, "name": "Demo agent", "endpoint": endpoint}
    server.post("/v1/agents/register", registration)
    out.line()
    out.line(f"you         {text}", "cyan")
    asked = {"agent_id": AGENT, "input_message": {"role": "user", "content": text}}
    run = server.post("/v1/runs", asked, shapes.Run)
    code = follow(server.events(run["run_id"]), out, talk=True)
    out.line()
    out.line(f"run         {run['run_id']}  {'done' if code is Exit.OK else 'did not end well'}")
    return run["run_id"], code


def _what_next(url: str, run_id: str, devices: str, out: Output) -> None:
    """Print where to look, and commands that go on from here."""
    out.line(f"page        {url}/runs/{run_id}")
    out.line(f"events      {url}/v1/runs/{run_id}/events")
    out.line(f"API         {url}/docs")
    if devices:
        out.line(f"ingress     {devices}")
    out.line()
    at = "" if url.endswith(":8080") else f"ORCHESTRATOR_URL={url} "
    for command in (f'invoke {AGENT} "help"', f"chat {AGENT}", f"replay {run_id}", "runs ls"):
        out.line(f"  {at}./orchestrator {command}")
    out.line()
    out.remark(f"serving at {url}; Ctrl-C stops it")
