"""Runs: invoke, replay, list, cancel, run again."""

import time
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, Final
from urllib.parse import quote

import click
import msgspec

from orchestrator.cli import options, shapes
from orchestrator.cli.events import follow
from orchestrator.cli.failure import CommandFailed, Exit
from orchestrator.cli.output import Output, clock, duration
from orchestrator.cli.server import Server
from orchestrator.clients.sse import SSEEvent
from orchestrator.core.values import BUSY_KINDS, NUMBER_MAX

PAGE: Final = 1000
WIDE: Final = 120
"""The width from which on a list of runs has all its columns."""
OPEN: Final = "created,running,paused_waiting_tool,paused_waiting_approval"
ENDED: Final = "done,failed,cancelled"


@click.command()
@click.argument("agent")
@click.argument("text")
@click.option("--session", metavar="ID", help="Go on with this conversation.")
@click.option("--on-busy", type=click.Choice(BUSY_KINDS),
              help="What to do while it has a run; without it, wait.")  # fmt: skip
@click.option("--timeout-ms", type=click.IntRange(1, NUMBER_MAX), metavar="N",
              help="The longest time this run may take.")  # fmt: skip
@click.option("--detach", is_flag=True, help="Print the run's id and leave it working.")
@options.as_json
@options.url
def invoke(
    agent: str, text: str, session: str | None, on_busy: str | None, timeout_ms: int | None,
    detach: bool, json: bool, url: str | None,
) -> Exit:  # fmt: skip
    """Give AGENT a message and stream its answer.

    The exit code is the run's outcome. As TEXT - reads the message from standard input.
    """
    server, out = options.server(url), Output(json=json)
    content = options.standard_input() if text == "-" else text
    body = {
        "agent_id": agent,
        "session_id": session,
        "on_busy": on_busy,
        "timeout_ms": timeout_ms,
        "input_message": {"role": "user", "content": content},
    }
    given = {name: value for name, value in body.items() if value is not None}
    run = server.post("/v1/runs", given, shapes.Run)
    if detach:
        out.raw(msgspec.json.encode(run).decode() if json else run["run_id"])
        return Exit.OK
    if not json:
        out.remark(f"{run['run_id']}  session {run['session_id']}")
        if out.terminal:
            out.remark(f"{server.url}/runs/{run['run_id']}")
    try:
        return follow(server.events(run["run_id"]), out, talk=True)
    except KeyboardInterrupt:
        out.remark(f"the run goes on: ./orchestrator tail {run['run_id']}")
        raise


@click.command()
@click.argument("run_id", metavar="RUN")
@click.option("--words", is_flag=True, help="Show the conversation instead of the events.")
@options.as_json
@options.url
def replay(run_id: str, words: bool, json: bool, url: str | None) -> Exit:
    """Show the log of RUN.

    Nothing is executed and nobody is called.
    """
    server, out = options.server(url), Output(json=json)
    code = follow(_recorded(server, run_id, out), out, talk=words)
    if not json and server.get(_path(run_id)).get("ended_at") is None:
        out.remark(f"the run goes on: ./orchestrator tail {run_id}")
    return code


def _recorded(server: Server, run_id: str, out: Output) -> Iterator[SSEEvent]:
    """Yield the log as it is now, page by page, each event byte for byte."""
    page: dict[str, Any] = {"next_cursor": "0", "has_more": True}
    while page["has_more"]:
        text = server.text(f"{_path(run_id)}/events?limit={PAGE}&after_seq={page['next_cursor']}")
        try:
            found = msgspec.json.decode(text, type=shapes.Page)
        except ValueError:
            server.get(_path(run_id))  # says what is wrong, as it says to everybody
            raise server.stranger("without a log") from None
        page = {"next_cursor": found.next_cursor, "has_more": found.has_more}
        if found.trimmed:
            out.remark("retention removed a part of this log")
        for raw in found.events:
            data = bytes(raw)
            try:
                head = msgspec.json.decode(data, type=_Head)
            except ValueError:
                raise server.stranger("with what is no event") from None
            yield SSEEvent(head.type, data.decode(), str(head.seq))


class _Head(msgspec.Struct):
    seq: int
    type: str


def _path(run_id: str) -> str:
    return f"/v1/runs/{quote(run_id, safe='')}"


def _filters(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option(
            "--older-than", metavar="AGE", help="Only runs older than 30d, 12h, 30m, 90s."
        ),
        click.option("--session", metavar="ID", help="Only runs of this session."),
        click.option("--agent", metavar="AGENT", help="Only runs of this agent."),
        click.option("--status", metavar="STATES", help="Only runs in these states, a comma list."),
    ):
        command = option(command)
    return command


def _matching(
    server: Server, status: str | None, agent: str | None, session: str | None, older: str | None
) -> Iterator[dict[str, Any]]:
    age = options.age_ms(older)
    unknown = set((status or "done").lower().replace(" ", "").split(",")) - set(options.STATES)
    if unknown:
        known = ", ".join(options.STATES)
        raise CommandFailed(f"there is no state {unknown.pop()!r}; there are {known}")
    now = int(time.time() * 1000)  # noqa: TID251  # a person's now
    before = max(0, now - age) if age is not None else None
    return server.pages(
        "/v1/runs", "runs", shapes.Runs, status=status, agent_id=agent, session_id=session,
        created_before=before, limit=200,
    )  # fmt: skip


@click.command()
@_filters
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    metavar="N",
    default=50,
    show_default=True,
    help="How many.",
)
@options.as_json
@options.url
def ls(
    status: str | None, agent: str | None, session: str | None, older_than: str | None,
    limit: int, json: bool, url: str | None,
) -> None:  # fmt: skip
    """List runs, newest first."""
    out = Output(json=json)
    found = _matching(options.server(url), status, agent, session, older_than)
    rows = list(islice(found, limit))
    if json:
        for run in rows:
            out.result(run)
        return
    narrow = out.terminal and out.width < WIDE
    kept = [name for name in _COLUMNS if not (narrow and name in ("session", "took"))]
    out.table(kept, [[_COLUMNS[name](run) for name in kept] for run in rows])
    if out.terminal and not rows:
        out.remark("no such runs")


def _took(run: dict[str, Any]) -> str:
    ended = run.get("ended_at")
    return duration(ended - run["created_at"]) if ended else "-"


_COLUMNS: Final[dict[str, Callable[[dict[str, Any]], Any]]] = {
    "run": lambda run: run["run_id"],
    "status": lambda run: run["status"],
    "agent": lambda run: run["agent_id"],
    "session": lambda run: run["session_id"],
    "created": lambda run: clock(run["created_at"]),
    "took": _took,
    "error": lambda run: (run.get("error") or {}).get("code"),
}
"""What a list of runs shows, and how it is read from a run."""


@click.command()
@click.argument("run_id", metavar="RUN")
@click.option("--tree", is_flag=True, help="Show the runs below it too.")
@options.as_json
@options.url
def show(run_id: str, tree: bool, json: bool, url: str | None) -> None:
    """Show one run as last committed."""
    out = Output(json=json)
    path, shape = _path(run_id), shapes.Tree if tree else shapes.Run
    found = options.server(url).get(path + ("/tree" if tree else ""), shape)
    if json:
        out.result(found)
    elif tree:
        _branch(found, out, 0)
    else:
        out.fields(found)


def _branch(node: dict[str, Any], out: Output, depth: int) -> None:
    run = node["run"]
    out.line(f"{'  ' * depth}{run['run_id']}  {run['agent_id']}  {run['status']}")
    for child in node["children"]:
        _branch(child, out, depth + 1)


def _chosen(
    server: Server, run_ids: tuple[str, ...], filters: tuple[str | None, ...], default: str
) -> list[dict[str, Any]]:
    """Return the named runs, or those that meet the filters; one of the two must be said."""
    if bool(run_ids) == any(filters):
        raise CommandFailed("name runs, or choose them with --status, --agent, --session or "
                            "--older-than; not both")  # fmt: skip
    if run_ids:
        return [{"run_id": run_id, "status": "", "agent_id": ""} for run_id in run_ids]
    status, agent, session, older = filters
    return list(_matching(server, status or default, agent, session, older))


def _each(
    runs: list[dict[str, Any]], act: Callable[[str], dict[str, Any]], out: Output, *, dry: bool
) -> Exit:
    """Act on every run; go on after a refusal, and say at the end that there was one."""
    code = Exit.OK
    for run in runs:
        if dry:
            out.result(run) if out.json else out.raw(f"would: {run['run_id']} {run['status']}")
            continue
        try:
            done = act(run["run_id"])
        except CommandFailed as problem:
            if problem.code is Exit.UNREACHABLE:
                raise
            out.remark(f"{run['run_id']}: {problem.message}", "red")
            code = problem.code
        else:
            out.result(done) if out.json else out.raw(f"{done['run_id']} {done['status']}")
    if not runs:
        out.remark("no such runs")
    return code


_dry_run: Final = click.option("--dry-run", is_flag=True, help="Only say which runs it would be.")
_runs: Final = click.argument("run_ids", metavar="[RUN]...", nargs=-1)


@click.command()
@_runs
@_filters
@click.option("--reason", help="Why, for the log.")
@_dry_run
@options.as_json
@options.url
def cancel(
    run_ids: tuple[str, ...], status: str | None, agent: str | None, session: str | None,
    older_than: str | None, reason: str | None, dry_run: bool, json: bool, url: str | None,
) -> Exit:  # fmt: skip
    """End runs, the named ones or all open ones that meet the filters."""
    server = options.server(url)
    runs = _chosen(server, run_ids, (status, agent, session, older_than), OPEN)
    body = {"reason": reason} if reason else {}

    def act(run_id: str) -> dict[str, Any]:
        return dict(server.post(f"{_path(run_id)}:cancel", body, shapes.Changed))

    return _each(runs, act, Output(json=json), dry=dry_run)


@click.command()
@_runs
@_filters
@_dry_run
@options.as_json
@options.url
def rerun(
    run_ids: tuple[str, ...], status: str | None, agent: str | None, session: str | None,
    older_than: str | None, dry_run: bool, json: bool, url: str | None,
) -> Exit:  # fmt: skip
    """Start new runs with the messages of ended ones: the named, or all that meet the filters."""
    server = options.server(url)
    runs = _chosen(server, run_ids, (status, agent, session, older_than), ENDED)

    def act(run_id: str) -> dict[str, Any]:
        return dict(server.post(f"{_path(run_id)}:rerun", shape=shapes.Changed))

    return _each(runs, act, Output(json=json), dry=dry_run)


runs: Final = click.Group("runs", help="List, show, cancel and repeat runs.")
for _command in (ls, show, cancel, rerun):
    runs.add_command(_command)
