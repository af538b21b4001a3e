"""The schema of the database: what an upgrade would change, and the upgrade."""

import asyncio
import sys
from typing import Any, Final

import click

from orchestrator import app, telemetry
from orchestrator.cli import options
from orchestrator.cli.output import Output
from orchestrator.settings import load
from orchestrator.stores.steps import Plan


@click.command()
@options.as_json
def plan(json: bool) -> None:
    """Say what an upgrade of the database would change; nothing is changed.

    A server may be using the database meanwhile.
    """
    out, settings = Output(json=json), load()
    found = asyncio.run(app.plan_upgrade(settings))
    if json:
        out.result(_told(found))
        return
    _tell(found, out)
    if not found.steps:
        return
    if found.backup is not None:
        out.line(f"a copy is made first: {found.backup}")
    elif found.schema:
        out.line("no copy is made; make one before: pg_dump --format=custom --file=PATH")
    else:
        out.line("no copy is made, for there is nothing to copy")
    if found.schema:
        out.line(_beside(found, shared=settings.postgres))


def _beside(found: Plan, *, shared: bool) -> str:
    if found.beside:
        return "servers of the older version may go on beside it"
    why = "they cannot use the new schema" if shared else "a file has one server"
    return f"servers of the older version must be stopped first: {why}"


@click.command()
@options.as_json
def up(json: bool) -> None:
    """Bring the database up to date; a second time there is nothing to do.

    A file is copied first, and no server may have it open.
    """
    telemetry.configure("error", terminal=sys.stderr.isatty())
    out, settings = Output(json=json), load()
    done = asyncio.run(app.upgrade(settings))
    if json:
        out.result(_told(done))
        return
    _tell(done, out)
    if done.backup is not None:
        out.line(f"the copy from before: {done.backup}")
    if done.steps:
        out.line(f"done: the database has schema {done.known}")


def _tell(found: Plan, out: Output) -> None:
    """Write where the database stands and the steps from there."""
    has = f"schema {found.schema}" if found.schema else "no schema yet"
    out.line(f"{found.database}: {has}, this version has {found.known}")
    for step in found.steps:
        out.line(f"  {step.number}  {step.title}")
    if not found.steps:
        newer = found.schema > found.known
        out.line("nothing to do" + (", the newer schema serves this version, too" if newer else ""))


def _told(found: Plan) -> dict[str, Any]:
    steps = [{"number": step.number, "title": step.title} for step in found.steps]
    return {
        "database": found.database,
        "schema": found.schema,
        "known": found.known,
        "steps": steps,
        "backup": found.backup,
        "beside": found.beside,
    }


migrate: Final = click.Group("migrate", help="Plan and make upgrades of the database's schema.")
for _command in (plan, up):
    migrate.add_command(_command)
