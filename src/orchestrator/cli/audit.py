"""The audit log: list it, and verify that nobody has touched it."""

from typing import Final

import click

from orchestrator.cli import options, shapes
from orchestrator.cli.desk import server_or_database
from orchestrator.cli.failure import Exit
from orchestrator.cli.output import Output, clock
from orchestrator.cli.server import Server


@click.command()
@click.option("--action", help="Only this one, such as key.create.")
@options.as_json
@options.url
def ls(action: str | None, json: bool, url: str | None) -> None:
    """List who did what, oldest first."""
    out = Output(json=json)
    found = server_or_database(url).pages(
        "/v1/audit", "entries", shapes.Audit, limit=1000, action=action
    )
    if json:
        for entry in found:
            out.result(entry)
        return
    columns = ("seq", "at", "who", "what", "on", "detail")
    rows = [
        (e["seq"], clock(e["at"]), e["actor"], e["action"], e["target"],
         ", ".join(f"{name}={value}" for name, value in e.get("detail", {}).items()))
        for e in found
    ]  # fmt: skip
    out.table(columns, rows)


@click.command()
@click.option("--head", metavar="HASH", help="A hash from an earlier verification or a log line, "
              "which must still be in the chain's end: nothing was cut off.")  # fmt: skip
@options.as_json
@options.url
def verify(head: str | None, json: bool, url: str | None) -> Exit:
    """Check that every entry is as it was written.

    The exit code is 1 when one is not.
    """
    out = Output(json=json)
    server = server_or_database(url)
    found = server.get("/v1/audit/verify", shapes.Verified)
    good = found["ok"] and _holds(head, found["head"], server)
    if json:
        out.result(found | {"ok": good})
    elif good:
        out.line(f"{found['entries']} entries are as they were written; the last has the hash")
        out.raw(found["head"])
    elif found["ok"]:
        out.line(f"no entry has the hash {head}: the end of the log was cut off")
    else:
        out.line(f"entry {found['broken_at']} is not as it was written, or one before it is gone")
    return Exit.OK if good else Exit.FAILED


def _holds(head: str | None, newest: str, server: Server) -> bool:
    if head is None or head == newest:
        return True
    entries = server.pages("/v1/audit", "entries", shapes.Audit, limit=1000)
    return any(entry["hash"] == head for entry in entries)


audit: Final = click.Group("audit", help="List and verify who did what.")
for _command in (ls, verify):
    audit.add_command(_command)
