"""Stored secrets: encrypt them anew after SECRET_KEY got a new first key."""

from typing import Final

import click

from orchestrator.cli import options, shapes
from orchestrator.cli.desk import server_or_database
from orchestrator.cli.output import Output


@click.command()
@options.as_json
@options.url
def rotate(json: bool, url: str | None) -> None:
    """Encrypt every stored secret with the first key, so that the others may go."""
    out = Output(json=json)
    found = server_or_database(url).post("/v1/secrets/rotate", {}, shapes.Resealed)
    if json:
        out.result(found)
        return
    out.line(f"{found['changed']} secrets are encrypted anew")
    if found["unreadable"]:
        out.line(f"{found['unreadable']} are of a key that is gone: register their agents again")


secrets: Final = click.Group("secrets", help="Look after stored secrets.")
secrets.add_command(rotate)
