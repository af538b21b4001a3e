"""Backups."""

import asyncio
import os
from pathlib import Path

import click

from orchestrator import app
from orchestrator.cli import options
from orchestrator.cli.failure import CommandFailed
from orchestrator.cli.output import Output
from orchestrator.settings import load
from orchestrator.stores.sqlite import locate


@click.command()
@click.argument("path")
@options.as_json
def backup(path: str, json: bool) -> None:
    """Copy the database to PATH, a new file.

    A server may be using the database meanwhile.
    """
    out, settings = Output(json=json), load()
    if settings.postgres:
        raise CommandFailed(
            "a PostgreSQL database is copied by its own program",
            hint="pg_dump --format=custom --file=PATH DATABASE_URL",
        )
    source, target = locate(settings.database_url).path, Path(os.path.abspath(path))  # noqa: PTH100  # takes .. away, too
    if not Path(source).exists():
        raise CommandFailed(
            f"there is no database at {source} to copy", hint="DATABASE_URL names another"
        )
    asyncio.run(app.backup(settings, str(target)))
    size = target.stat().st_size
    if json:
        out.result({"path": str(target), "bytes": size, "key_file": settings.secret_key_file})
        return
    out.line(f"{target} is a whole copy, {size:,} bytes")
    out.remark(f"  keep {settings.secret_key_file} too, apart from it: it decrypts credentials")
