"""Moves to PostgreSQL: the whole database, copied and compared."""

import asyncio
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import click

from orchestrator import app, telemetry
from orchestrator.cli import options
from orchestrator.cli.failure import CommandFailed, Exit
from orchestrator.cli.output import Output
from orchestrator.core.errors import StorageFull, StoreFailure, Unavailable
from orchestrator.settings import Settings, load
from orchestrator.stores.copying import Copied, Tally
from orchestrator.stores.postgres.location import shown
from orchestrator.stores.sqlite import locate

_EVERY_S: Final = 0.2
_VERBS: Final = {"copy": "copying", "check": "reading back"}
_LEFT: Final = (
    "not copied: what belongs to a host alone (leases, marks of its state, numbers of commits)"
)


@click.command()
@click.argument("target", metavar="TARGET")
@options.as_json
def copy(target: str, json: bool) -> None:
    """Copy the whole database file to an empty PostgreSQL database, postgresql://….

    As TARGET - reads the address from standard input, so that nobody sees its password in the list
    of processes. No server may have the file open. Every row is read back and compared before
    anything stays: the copy is there whole or not at all, and the file is not changed.
    """
    telemetry.configure("error", terminal=sys.stderr.isatty())
    out, settings = Output(json=json), load()
    if settings.postgres:
        raise CommandFailed(
            "DATABASE_URL names a PostgreSQL database, and only a SQLite file is copied",
            hint="pg_dump and pg_restore copy from PostgreSQL to PostgreSQL",
        )
    url = options.standard_input().strip() if target == "-" else target
    line = _Line()
    try:
        found = asyncio.run(app.copy(settings, url, line))
    except (StoreFailure, StorageFull, Unavailable) as error:
        raise CommandFailed(error.message, Exit.FAILED) from error
    finally:
        line.clear()
    if json:
        out.result(_told(settings, url, found))
        return
    rows = [(one.table, f"{one.rows:,}", f"{one.bytes:,}", one.hash[:16]) for one in found]
    out.table(("table", "rows", "bytes", "BLAKE2b"), rows)
    _tell(settings, url, found, out)


class _Line:
    """Says on a terminal how far a copy is, on one line that goes when it is done."""

    def __init__(self) -> None:
        self._open = sys.stderr.isatty()
        self._at = float("-inf")

    def __call__(self, verb: str, table: str, tally: Tally) -> None:
        now = time.monotonic()
        if self._open and now - self._at >= _EVERY_S:
            self._at = now
            said = f"{_VERBS[verb]} {table}: {tally.rows:,} rows, {tally.bytes:,} bytes"
            click.echo(f"\r\x1b[K{said}", err=True, nl=False)

    def clear(self) -> None:
        """Take the line away."""
        if self._open:
            click.echo("\r\x1b[K", err=True, nl=False)


def _tell(settings: Settings, url: str, found: Sequence[Copied], out: Output) -> None:
    """Write what is to be known and to be done after a copy."""
    source, rows = locate(settings.database_url).path, sum(one.rows for one in found)
    out.line(f"{shown(url)} is a whole copy of {source}: {rows:,} rows, each compared")
    changed = sum(one.changed for one in found)
    if changed:
        out.line(f"{changed:,} texts had a NUL, which PostgreSQL does not keep; it became U+FFFD")
    out.remark(f"  {_LEFT}")
    out.remark("  next: start with the new address and the old secret key, which seals what is in")
    out.remark("  the database and signs its tokens:")
    out.remark("    export DATABASE_URL=postgresql://…  # the address that you gave")
    out.remark(f"    {_key(settings)}")
    out.remark("    ./orchestrator")
    out.remark(f"  {source} stays as it was; with a server on it, open runs would happen twice")


def _key(settings: Settings) -> str:
    """Return how the next server gets the secret key; the key itself is never written."""
    if settings.secret_keys or not Path(settings.secret_key_file).exists():
        return "export SECRET_KEY=…  # the same as up to now"
    return f'export SECRET_KEY="$(paste -sd, {shlex.quote(settings.secret_key_file)})"'


def _told(settings: Settings, url: str, found: Sequence[Copied]) -> dict[str, Any]:
    return {
        "source": locate(settings.database_url).path,
        "target": shown(url).strip("'"),
        "tables": [
            {"table": one.table, "rows": one.rows, "bytes": one.bytes, "hash": one.hash}
            for one in found
        ],
        "replaced_texts": sum(one.changed for one in found),
        "key_file": settings.secret_key_file,
    }
