"""Backups."""

import asyncio
from pathlib import Path

import click

from orchestrator import app
from orchestrator.cli.output import Output
from orchestrator.settings import load


@click.command()
@click.argument("path")
def backup(path: str) -> None:
    """Copy the database to PATH, a new file.

    A server may be using the database meanwhile.
    """
    out, settings = Output(), load()
    asyncio.run(app.backup(settings, path))
    out.line(f"{path} is a whole copy, {Path(path).stat().st_size:,} bytes")
    out.remark(f"  keep {settings.secret_key_file} too, apart from it: it decrypts credentials")
