"""Keys: create, list, rotate, revoke; on the database when no server runs."""

from typing import Any, Final
from urllib.parse import quote

import click

from orchestrator.cli import options, shapes
from orchestrator.cli.desk import server_or_database
from orchestrator.cli.failure import CommandFailed
from orchestrator.cli.output import Output, clock
from orchestrator.core.access import ROLES


@click.command()
@click.argument("name")
@click.option("--role", type=click.Choice(list(ROLES)), required=True, help="What it may do.")
@click.option("--tenant", help="Whose it is; another than yours needs ADMIN_KEY.")
@click.option("--person", metavar="WHO", help="Makes it the personal key of somebody.")
@click.option("--agent", metavar="AGENT", help="Limits an agent's key to that agent.")
@click.option("--env", metavar="WORD", default="live", show_default=True,
              help="What stands in the key for people to read.")  # fmt: skip
@click.option("--expires", metavar="AGE", help="Ends it after 30d, 12h, 30m or 90s.")
@click.option("--limit", "limits", metavar="RATE", multiple=True,
              help="600/m for all its requests, or start_run=60/m for a route.")  # fmt: skip
@options.as_json
@options.url
def create(name: str, json: bool, url: str | None, **given: Any) -> None:
    """Make a key called NAME and print it, this once."""
    age = options.age_ms(given["expires"])
    body = {
        "name": name,
        "role": given["role"],
        "tenant": given["tenant"],
        "person": given["person"],
        "agent_id": given["agent"],
        "environment": given["env"],
        "expires_in_s": max(1, age // 1000) if age else None,
        "limits": dict(map(_limit, given["limits"])) or None,
    }
    asked = {field: value for field, value in body.items() if value is not None}
    _tell(server_or_database(url).post("/v1/keys", asked, shapes.MadeKey), Output(json=json))


def _limit(text: str) -> tuple[str, str]:
    name, found, rate = text.rpartition("=")
    return (name if found else "*"), rate


def _tell(made: dict[str, Any], out: Output) -> None:
    if out.json:
        out.result(made)
        return
    out.raw(made["key"])
    info = made["info"]
    out.remark(f"  key {info['key_id']} ({info['role']} of {info['tenant']}) is shown this once")
    out.remark("  ORCHESTRATOR_KEY=… is what the commands show a server")


@click.command()
@options.as_json
@options.url
def ls(json: bool, url: str | None) -> None:
    """List the keys; their secrets are kept nowhere."""
    out = Output(json=json)
    found = server_or_database(url).get("/v1/keys", shapes.Keys)["keys"]
    if json:
        for key in found:
            out.result(key)
        return
    columns = ("key", "name", "role", "tenant", "person", "state", "last used")
    rows = [
        (k["key_id"], k["name"], k["role"], k["tenant"], k.get("person"), _state(k),
         clock(k.get("last_used_at")))
        for k in found
    ]  # fmt: skip
    out.table(columns, rows)
    if out.terminal and not rows:
        out.remark("none yet: ./orchestrator keys create --role admin NAME")


def _state(key: dict[str, Any]) -> str:
    if key.get("revoked_at"):
        return f"revoked {clock(key['revoked_at'])}"
    return f"until {clock(key['expires_at'])}" if key.get("expires_at") else "good"


@click.command()
@click.argument("key")
@click.option("--overlap", metavar="AGE", default="1h", show_default=True,
              help="How long the old key goes on; 0s ends it now.")  # fmt: skip
@options.as_json
@options.url
def rotate(key: str, overlap: str, json: bool, url: str | None) -> None:
    """Make the key that comes after KEY and print it, this once."""
    body = {"overlap_s": (options.age_ms(overlap) or 0) // 1000}
    path = _path(key, "rotate")
    _tell(server_or_database(url).post(path, body, shapes.MadeKey), Output(json=json))


@click.command()
@click.argument("key")
@options.as_json
@options.url
def revoke(key: str, json: bool, url: str | None) -> None:
    """End KEY, the tokens it made and the streams it opened."""
    out = Output(json=json)
    found = server_or_database(url).post(_path(key, "revoke"), None, shapes.Key)
    out.result(found) if json else out.line(
        f"{found['key_id']} ({found['name']}) opens nothing now"
    )


def _path(key: str, verb: str) -> str:
    """Return the path of a key, which may be given whole: only its id goes on."""
    parts = key.split("_")
    whole = key.startswith("ok_")
    if whole and len(parts) != 4:  # noqa: PLR2004  # ok, environment, id, secret
        raise CommandFailed("that is no whole key; ./orchestrator keys ls shows the ids")
    return f"/v1/keys/{quote(parts[2] if whole else key, safe='')}/{verb}"


keys: Final = click.Group("keys", help="Make, list, rotate and revoke keys.")
for _command in (create, ls, rotate, revoke):
    keys.add_command(_command)
