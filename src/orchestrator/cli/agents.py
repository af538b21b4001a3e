"""Agents: list, register, show, try, drain, remove."""

from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlencode

import click

from orchestrator.cli import options, shapes
from orchestrator.cli.failure import CommandFailed, Exit
from orchestrator.cli.output import Output, clock

_instance: Final = click.option("--instance", metavar="ID", help="Only this one of its instances.")


@click.command()
@click.option("--capability", help="Only agents that say they have it.")
@click.option("--status", metavar="STATE", help="Only agents in this state.")
@options.as_json
@options.url
def ls(capability: str | None, status: str | None, json: bool, url: str | None) -> None:
    """List the registered agents."""
    out = Output(json=json)
    found = options.server(url).get(
        "/v1/agents", shapes.Agents, capability=capability, status=status
    )["agents"]
    if json:
        for agent in found:
            out.result(agent)
        return
    columns = ("agent", "status", "name", "last heartbeat", "capabilities")
    rows = [
        (a["agent_id"], a["status"], a["name"], clock(a.get("last_heartbeat_at")),
         ", ".join(a["capabilities"]))
        for a in found
    ]  # fmt: skip
    out.table(columns, rows)
    if out.terminal and not rows:
        out.remark("none yet: ./orchestrator agents add NAME http://localhost:8000")


@click.command()
@click.argument("agent")
@click.argument("endpoint", metavar="URL")
@click.option("--instance", metavar="ID",
              help="Which of several instances is at URL.  [default: default]")  # fmt: skip
@click.option("--name", help="What people read.  [default: AGENT]")
@click.option("--protocol", type=click.Choice(["native", "json", "openai"]), default="native",
              show_default=True, help="How the agent speaks.")  # fmt: skip
@click.option("--capability", "capabilities", multiple=True, help="May be given several times.")
@click.option("--token-file", type=click.Path(path_type=Path, exists=True, allow_dash=True),
              help="The bearer token for the agent; - reads standard input.")  # fmt: skip
@click.option("--on-lost", type=click.Choice(["fail", "retry"]), default="fail",
              help="What becomes of a run whose server died.")  # fmt: skip
@click.option(
    "--max-attempts", type=click.IntRange(min=1), metavar="N", help="Invocations of one run."
)
@click.option(
    "--max-concurrency", type=click.IntRange(min=1), metavar="N", help="Runs at the same time."
)
@click.option("--timeout-ms", type=click.IntRange(min=1), metavar="N", help="One invocation.")
@click.option(
    "--first-byte-ms", type=click.IntRange(min=1), metavar="N", help="Silence before the answer."
)
@click.option(
    "--idle-ms", type=click.IntRange(min=1), metavar="N", help="Silence within the answer."
)
@options.as_json
@options.url
def add(agent: str, endpoint: str, json: bool, url: str | None, **given: Any) -> None:
    """Register AGENT at URL, or change it."""
    answer = options.server(url).post("/v1/agents/register", _registration(agent, endpoint, given))
    out = Output(json=json)
    if json:
        out.result(answer)
    else:
        out.line(f"{agent} is registered at {endpoint}")
        out.remark(f'  ./orchestrator invoke {agent} "Hello"')


def _registration(agent: str, endpoint: str, given: dict[str, Any]) -> dict[str, Any]:
    clocks = {
        "invoke_ms": given["timeout_ms"],
        "first_byte_ms": given["first_byte_ms"],
        "idle_ms": given["idle_ms"],
    }
    secret = token(given["token_file"])
    body = {
        "agent_id": agent,
        "name": given["name"] or agent,
        "endpoint": endpoint,
        "instance_id": given["instance"],
        "protocol": given["protocol"],
        "capabilities": list(given["capabilities"]),
        "on_lost": given["on_lost"],
        "max_concurrency": given["max_concurrency"],
        "timeouts": {name: value for name, value in clocks.items() if value} or None,
        "retry": {"max_attempts": given["max_attempts"]} if given["max_attempts"] else None,
        "auth": {"type": "bearer", "token": secret} if secret else None,
    }
    return {name: value for name, value in body.items() if value is not None}


def token(file: Path | None) -> str | None:
    """Return a credential; it is read from a file because everybody sees a command's words."""
    if file is None:
        return None
    try:
        source = options.standard_input() if str(file) == "-" else _read(file)
    except OSError as error:
        raise CommandFailed(f"{file} cannot be read: {error.strerror}") from error
    if not source.strip():
        raise CommandFailed(f"{file} holds no token")
    return source.strip()


def _read(file: Path) -> str:
    return options.text_of(file.read_bytes(), str(file))


@click.command()
@click.argument("agent")
@options.as_json
@options.url
def show(agent: str, json: bool, url: str | None) -> None:
    """Show one agent; credentials stay in the server."""
    out = Output(json=json)
    found = options.server(url).get(_path(agent), shapes.AgentDetail)
    if json:
        out.result(found)
        return
    instances = found.pop("instances", [])
    out.fields(found)
    out.line()
    out.table(
        ("instance", "status", "endpoint", "runs", "last heartbeat"),
        [
            (one["instance_id"], one["status"], one["endpoint"], one["in_flight"],
             clock(one.get("last_heartbeat_at")))
            for one in instances
        ],
    )  # fmt: skip


@click.command()
@click.argument("agent")
@_instance
@options.as_json
@options.url
def rm(agent: str, instance: str | None, json: bool, url: str | None) -> None:
    """Forget AGENT; its runs stay."""
    out = Output(json=json)
    answer = options.server(url).delete(_path(agent, "", instance))
    out.result(answer) if json else out.line(f"{_named(agent, instance)} is forgotten; runs stay")


@click.command()
@click.argument("agent")
@_instance
@options.as_json
@options.url
def drain(agent: str, instance: str | None, json: bool, url: str | None) -> None:
    """Give AGENT no more runs until it registers again; those it has go on."""
    out = Output(json=json)
    answer = options.server(url).post(_path(agent, ":drain", instance))
    if json:
        out.result(answer)
        return
    out.line(f"{_named(agent, instance)} gets no more runs")
    out.remark(f"  ./orchestrator runs ls --agent {agent} --status running")


@click.command()
@click.argument("agent")
@_instance
@click.option("--message", default="Hello", show_default=True, help="What it is asked.")
@click.option("--token-file", type=click.Path(path_type=Path, exists=True, allow_dash=True),
              help="The bearer token for the agent; - reads standard input.")  # fmt: skip
@click.option("--seconds", type=click.FloatRange(min=0.1), metavar="N", default=30.0,
              show_default=True, help="The longest time of the invocation.")  # fmt: skip
@options.as_json
@options.url
def probe(
    agent: str, instance: str | None, message: str, token_file: Path | None, seconds: float,
    json: bool, url: str | None,
) -> Exit:  # fmt: skip
    """Check AGENT where it is registered: its health, and one invocation from here.

    The exit code is 0 when it breaks no rule that shows in one; `probe URL` tries them all.
    """
    from orchestrator.cli import probing

    found = options.server(url).get(_path(agent), shapes.AgentDetail)
    if found.get("has_auth") and token_file is None:
        raise CommandFailed(
            f"{agent} asks for a credential, which the server keeps to itself",
            hint=f"./orchestrator agents probe {agent} --token-file FILE",
        )
    endpoint = found["endpoint"] if instance is None else _endpoint(found, instance)
    protocol = found.get("protocol", "native")
    trial = probing.Trial(endpoint, protocol, message, token(token_file), seconds)
    return probing.probe_once(trial, Output(json=json))


def _endpoint(found: dict[str, Any], instance: str) -> str:
    """Return where an instance is; raises CommandFailed for one that is not registered."""
    known = {one["instance_id"]: one["endpoint"] for one in found.get("instances", [])}
    if instance not in known:
        told = f"agent {found['agent_id']} has no instance {instance!r}"
        raise CommandFailed(told, Exit.NOT_FOUND, f"it has {', '.join(known)}")
    return str(known[instance])


def _path(agent: str, verb: str = "", instance: str | None = None) -> str:
    if instance == "":
        raise CommandFailed("--instance is empty, and without one all of them would be meant")
    named = f"?{urlencode({'instance_id': instance})}" if instance else ""
    return f"/v1/agents/{quote(agent, safe='')}{verb}{named}"


def _named(agent: str, instance: str | None) -> str:
    return agent if instance is None else f"instance {instance} of {agent}"


agents: Final = click.Group("agents", help="List, register, show, try, drain and remove agents.")
for _command in (ls, add, show, probe, drain, rm):
    agents.add_command(_command)
