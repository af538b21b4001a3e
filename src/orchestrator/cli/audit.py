"""The audit log: list it, and verify that nobody has touched it."""

from typing import Any, Final

import click

from orchestrator.cli import options, shapes
from orchestrator.cli.desk import server_or_database
from orchestrator.cli.failure import Exit
from orchestrator.cli.output import Output, clock
from orchestrator.cli.server import Server


@click.command()
@click.option("--action", help="Only this one, such as key.create.")
@click.option("--tenant", help="Whose; another than yours needs ADMIN_KEY.")
@options.as_json
@options.url
def ls(action: str | None, tenant: str | None, json: bool, url: str | None) -> None:
    """List who did what, oldest first."""
    out = Output(json=json)
    found = server_or_database(url).pages(
        "/v1/audit", "entries", shapes.Audit, limit=1000, action=action, tenant=tenant
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
@click.option("--tenant", help="Only this one's.  [default: all that you may see]")
@click.option("--head", metavar="HASH", help="A hash from an earlier verification, which must "
              "still be in the log: then nothing was cut off.")  # fmt: skip
@options.as_json
@options.url
def verify(tenant: str | None, head: str | None, json: bool, url: str | None) -> Exit:
    """Check that every entry is as it was written.

    The exit code is 1 when one is not.
    """
    out, server = Output(json=json), server_or_database(url)
    found = [_verified(server, tenant)]
    others = [] if tenant else [t for t in found[0].get("tenants", []) if t != found[0]["tenant"]]
    found += [_verified(server, other) for other in others]
    cut = head is not None and not any(_holds(head, one, server) for one in found)
    good = not cut and all(one["ok"] for one in found)
    if json:
        for one in found:
            out.result(one | {"ok": one["ok"] and not cut})
        return Exit.OK if good else Exit.FAILED
    for one in found:
        _tell(one, out)
    if cut:
        out.line(f"no entry has the hash {head}: the end of the log was cut off")
    return Exit.OK if good else Exit.FAILED


def _verified(server: Server, tenant: str | None) -> dict[str, Any]:
    answer: dict[str, Any] = server.get("/v1/audit/verify", shapes.Verified, tenant=tenant)
    return answer


def _tell(one: dict[str, Any], out: Output) -> None:
    whose = f"tenant {one['tenant']}: "
    if one["ok"]:
        out.line(f"{whose}{one['entries']} entries are as they were written; the last has the hash")
        out.raw(one["head"])
    else:
        broken = one["broken_at"]
        out.line(f"{whose}entry {broken} is not as it was written, or one before it is gone")


def _holds(head: str, one: dict[str, Any], server: Server) -> bool:
    if head == one["head"]:
        return True
    asked = {"tenant": one["tenant"]} if one.get("tenants") else {}
    entries = server.pages("/v1/audit", "entries", shapes.Audit, limit=1000, **asked)
    return one["ok"] and any(entry["hash"] == head for entry in entries)


audit: Final = click.Group("audit", help="List and verify who did what.")
for _command in (ls, verify):
    audit.add_command(_command)
