"""Where administrative commands go: the server that runs, or the database when none does."""

import asyncio
import sys
from typing import Any

import msgspec

from orchestrator import app, telemetry
from orchestrator.cli import options
from orchestrator.cli.server import Server
from orchestrator.settings import Settings, load, server_named
from orchestrator.stores.sqlite import address_of, holder_of, locate


class Database(Server):
    """A server as the commands see it, whose answers come from the file."""

    def __init__(self, settings: Settings) -> None:
        super().__init__("http://localhost")
        self._settings = settings

    def _exchange(
        self, method: str, path: str, body: dict[str, Any] | None = None
    ) -> tuple[int, bytes]:
        telemetry.configure("error", terminal=sys.stderr.isatty())
        data = b"" if body is None else msgspec.json.encode(body)
        return asyncio.run(app.ask(self._settings, method, path, data))


def server_or_database(url: str | None) -> Server:
    """Return the server that is named or has the database open, else the database itself."""
    if url is None and not server_named():
        settings = load()
        if settings.postgres:
            return Database(settings)
        path = locate(settings.database_url).path
        if holder_of(path) is None:
            return Database(settings)
        url = address_of(path)  # of two servers the one that has this database
    return options.server(url)
