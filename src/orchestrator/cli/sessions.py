"""Sessions: list them, and show one with its transcript and its runs."""

from collections.abc import Iterator
from itertools import islice
from typing import Any, Final
from urllib.parse import quote

import click
import msgspec

from orchestrator.cli import options, shapes
from orchestrator.cli.output import STYLES, Output, clock
from orchestrator.cli.server import Server

PAGE: Final = 1000
_LIMIT: Final = click.option(
    "--limit", type=click.IntRange(min=1), metavar="N", default=50, show_default=True,
    help="How many.",
)  # fmt: skip


@click.command()
@_LIMIT
@options.as_json
@options.url
def ls(limit: int, json: bool, url: str | None) -> None:
    """List sessions, newest first."""
    out = Output(json=json)
    found = options.server(url).pages(
        "/v1/sessions", "sessions", shapes.Sessions, limit=min(limit, PAGE)
    )
    rows = list(islice(found, limit))
    if json:
        for session in rows:
            out.result(session)
        return
    out.table(
        ("session", "user", "created", "last used"),
        [
            (s["session_id"], s.get("user_id"), clock(s["created_at"]), clock(s["updated_at"]))
            for s in rows
        ],
    )
    if out.terminal and not rows:
        out.remark("none yet: ./orchestrator chat AGENT begins one")


@click.command()
@click.argument("session_id", metavar="SESSION")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", default=50, show_default=True,
              help="How many of the newest messages and runs.")  # fmt: skip
@options.as_json
@options.url
def show(session_id: str, limit: int, json: bool, url: str | None) -> None:
    """Show what was said in SESSION, and its runs with their states."""
    server, out = options.server(url), Output(json=json)
    path = f"/v1/sessions/{quote(session_id, safe='')}"
    session = server.get(path, shapes.Session)
    said = list(islice(_messages(server, path), limit))[::-1]
    runs = list(islice(_runs(server, session_id, limit), limit))[::-1]
    if json:
        out.result({**session, "messages": said, "runs": runs})
        return
    for message in said:
        out.line(f"{message['role']}  {message['created_at']}", "bold")
        out.line(_text(message["content"]))
        out.line()
    for run in runs:
        error = (run.get("error") or {}).get("code")
        told = [run["run_id"], run["status"], run["agent_id"], clock(run["created_at"])]
        out.line("  ".join([*told, error] if error else told), STYLES.get(run["status"], ""))
    if out.terminal:
        out.remark(f"go on: ./orchestrator chat AGENT --session {session_id}")


def _messages(server: Server, path: str) -> Iterator[dict[str, Any]]:
    """Yield the messages of a transcript, newest first."""
    before: str | None = None
    while True:
        page = server.get(f"{path}/messages", shapes.Messages, limit=200, before=before)
        yield from reversed(page["messages"])
        if not page["has_more"]:
            return
        before = page["messages"][0]["message_id"]


def _runs(server: Server, session_id: str, limit: int) -> Iterator[dict[str, Any]]:
    return server.pages(
        "/v1/runs", "runs", shapes.Runs, session_id=session_id, limit=min(limit, PAGE)
    )


def _text(content: str | list[dict[str, Any]]) -> str:
    """Return what people read of a message; what is no text is named by its type."""
    if isinstance(content, str):
        return content
    return "".join(
        part["text"] if isinstance(part.get("text"), str) else f"[{_kind(part)}]"
        for part in content
    )


def _kind(part: dict[str, Any]) -> str:
    kind = part.get("type")
    return kind if isinstance(kind, str) else msgspec.json.encode(part).decode()


sessions: Final = click.Group("sessions", help="List sessions, and read one.")
for _command in (ls, show):
    sessions.add_command(_command)
