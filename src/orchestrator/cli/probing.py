"""Probing: a conformance report for any agent, without a server."""

import asyncio
from pathlib import Path
from typing import NamedTuple

import click

from orchestrator import app
from orchestrator.cli import agents, options
from orchestrator.cli.conformance import Conformance, Verdict
from orchestrator.cli.failure import CommandFailed, Exit
from orchestrator.cli.output import Output
from orchestrator.core.errors import EgressRefused
from orchestrator.guards.egress import EgressGuard


@click.command()
@click.argument("endpoint", metavar="URL")
@click.option("--protocol", type=click.Choice(["native", "json", "openai"]), default="native",
              show_default=True, help="How the agent speaks.")  # fmt: skip
@click.option("--message", default="Hello", show_default=True, help="What it is asked.")
@click.option("--token-file", type=click.Path(path_type=Path, exists=True, allow_dash=True),
              help="The bearer token for the agent; - reads standard input.")  # fmt: skip
@click.option("--seconds", type=click.FloatRange(min=0.1), metavar="N", default=30.0,
              show_default=True, help="The longest time of one invocation.")  # fmt: skip
@options.as_json
def probe(
    endpoint: str, protocol: str, message: str, token_file: Path | None, seconds: float, json: bool
) -> Exit:
    """Check the agent at URL, rule by rule.

    The exit code is 0 when it breaks no rule of the agent protocol. The agent is invoked six times
    for real, so give --message something harmless.
    """
    try:
        EgressGuard(("loopback",)).check(endpoint, operator=True)
    except EgressRefused as error:
        raise CommandFailed(error.message) from error
    if endpoint.rstrip("/").endswith("/invoke") and protocol == "native":
        raise CommandFailed(
            "leave /invoke off the URL: a native agent is registered without it and called with it",
            hint=f"./orchestrator probe {endpoint.rstrip('/').removesuffix('/invoke')}",
        )
    token = agents.token(token_file)
    trial = Trial(endpoint, protocol, message, token, seconds)
    return asyncio.run(_probe(trial, Output(json=json), once=False))


class Trial(NamedTuple):
    """Which agent is tried, and how; `seconds` bounds every invocation."""

    endpoint: str
    protocol: str
    message: str
    token: str | None
    seconds: float


def probe_once(trial: Trial, out: Output) -> Exit:
    """Invoke an agent once and ask for its health; show what that says of it."""
    return asyncio.run(_probe(trial, out, once=True))


async def _probe(trial: Trial, out: Output, *, once: bool) -> Exit:
    good = True
    async with app.open_clients() as clients:
        tried = Conformance(clients.agents[trial.protocol], clients.probe, *trial)
        async for verdict in tried.once() if once else tried.report():
            _show(verdict, out)
            good = good and verdict.good is not False
    if not out.json:
        out.remark("the rules: API.md#agent-protocol")
    return Exit.OK if good else Exit.FAILED


def _show(verdict: Verdict, out: Output) -> None:
    if out.json:
        out.result(verdict)
        return
    said = f"{verdict.rule}: {verdict.said}" if verdict.said else verdict.rule
    out.check(good=verdict.good, text=said, fix=verdict.fix)
