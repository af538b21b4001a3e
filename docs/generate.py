"""Writes the pages that the code itself can tell: events, states, settings, the command line.

python docs/generate.py            write the pages
python docs/generate.py --check    exit 1 naming the pages that are not up to date
"""

import sys
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

import click
from msgspec.structs import FieldInfo, fields

from orchestrator.api.calls import APISettings
from orchestrator.api.routes import ROUTES
from orchestrator.api.table import Route
from orchestrator.cli.failure import MEANINGS as EXIT_MEANINGS
from orchestrator.cli.failure import Exit
from orchestrator.cli.main import COMMANDS, program
from orchestrator.console import ROUTES as PAGE_ROUTES
from orchestrator.core.access import OPEN, PERMISSIONS, ROLES, RUN_SCOPES, SESSION_SCOPES
from orchestrator.core.events import CATALOGUE, DELTAS, TERMINAL, Content, Payload
from orchestrator.core.states import APPROVAL, RUN, TOOL_CALL, Machine, RunState
from orchestrator.core.values import NUMBER_MAX
from orchestrator.settings import ingress_table, not_read, table

HERE: Final = Path(__file__).parent
NOTICE: Final = "<!-- Written by docs/generate.py; edit the source it reads, then run it. -->"

TYPES: Final[dict[Any, str]] = {
    str: "string",
    int: "integer",
    float: "number",
    bool: "boolean",
    Any: "any JSON",
    Content: "string or list of parts",
    list[str]: "list of strings",
    dict[str, Any]: "object",
}

EVENTS_HEAD: Final = """# Events

A run is a list of events. Each is one JSON object, the same in the log, in a replay and on a live
stream, byte for byte:

```json
{"event_id":"evt_…","run_id":"run_…","seq":4,"ts":1767225600000,"type":"agent_stream_delta","payload":{"text":"Hello"}}
```

`seq` counts from 1 without holes within a run, `ts` is milliseconds UTC. A good run reads
`run_started`, `user_input`, `agent_invoke_started`, any number of `agent_stream_delta`,
`agent_invoke_done`, `run_done`. Exactly one event of a run is *terminal*, and nothing follows it.
New types and new fields may be added at any time, so skip what you do not know; none is ever
renamed or removed. A field with a question mark may be absent.

Events of the *delta class* change no state. With `DURABILITY=balanced` they may reach a reader up
to a second before they are safe from a power cut, see [delivery](delivery.md). A stream that had
shown more than was left says so with a frame that is no event of the log and has no id:
`event: log_reset`, `data: {"after_seq":17}`. Forget what came after that seq; it comes again. In
the stream of a session it has the `run_id`, too.
"""

STATES_HEAD: Final = """# States

Runs, tool calls and approvals each have a state, and an event is the only thing that changes one.
The diagrams below are drawn from the tables that the code itself consults; an event that has no
arrow out of a state is refused there. A value in parentheses is that of the payload field named
under the diagram.
"""

SETTINGS_HEAD: Final = """# Settings

Settings are environment variables. Each is also a flag of `./orchestrator serve`
(`HTTP_PORT=9000` or `--http-port 9000`), except for secrets, which others could read in the list
of processes; a flag wins. An empty variable means unset, except `INGRESS_URL`. What cannot be
read stops the start with a sentence that names the variable and what was expected.

Times are in milliseconds where the name ends in `_MS`, ages are written `30d`, `12h`, `30m` or
`90s`, sizes `64MB`. Every number has the same upper bound, 2⁵³ = @NUMBER_MAX@: so many
milliseconds, bytes or runs.
"""

SETTINGS_TAIL: Final = """
Variables that are known and mean something which this version lacks stop the start as well, so that
nobody relies on what is not there: @NOT_READ@.

The commands that talk to a server also read `ORCHESTRATOR_URL`, the server to talk to; without it
they call port `HTTP_PORT` of this machine. `ORCHESTRATOR_KEY` is the key that they show it.

## The ingress

`./orchestrator ingress` is [a process of its own](ingress.md) and reads these, by the same rules:

@INGRESS@
"""

ACCESS_HEAD: Final = """# Access

Every route asks for one permission, and this page is made from the tables that the server itself
consults; a server with a route that asks for none does not start. [Keys](keys.md) says how to get
one. A caller who shows nothing gets 401, one without the permission 403, and whatever belongs to
another tenant is 404, as if it were not there. A server without keys asks for nothing.

## Permissions

| permission | what it is for | {roles} | session token | run token |
|---|---|{lines}|---|---|
"""

ACCESS_TAIL: Final = """
A word in the column of session tokens is the scope that such a token needs. `own` and `below`
narrow a run's token to its own run and those below it; a child's token is never wider than that of
the run which called it, and never reads the transcript. `ADMIN_KEY` and the commands beside the
database are admins of the tenant `default`; they also make keys for every other one and read its
audit log. `approver` will decide on approvals, once there are tools. An
agent's key may be limited to one agent (`--agent`).

## Routes

The body of a request is at most {body}, without a pause of more than {idle}. A key may have a limit
for each route, by its name, and one for all of them together.

| route | name | permission | body | answer |
|---|---|---|---|---|
"""

CLI_HEAD: Final = """# Command line

`./orchestrator` alone starts the server; everything else is a command. Results are written to
standard output and remarks to standard error. On a terminal they are set in columns and colours,
elsewhere they are plain lines, tab-separated where there are columns; `--json` writes one JSON
value on a line. Whatever an agent has said cannot control the terminal: control characters are
shown as `\\x1b`.

Besides these, a checkout knows `./orchestrator setup` (install what server and tests need),
`test`, `prove` (the fault rigs with all their rounds) and `bench`.

## Exit codes

| code | meaning |
|---|---|
"""

MEANINGS: Final = {
    "run": ("Runs", "A run is one answer of one agent to one message."),
    "tool_call": ("Tool calls", "A tool call is one use of a tool that an agent asked for."),
    "approval": ("Approvals", "An approval is the question whether a tool call may go ahead."),
}


def events_page() -> str:
    """Return docs/events.md."""
    rows = "".join(
        f"| [`{name}`](#{name}) | {_first_sentence(cls)} | {_kind(name)} |\n"
        for name, cls in CATALOGUE.items()
    )
    table = f"| type | when | kind |\n|---|---|---|\n{rows}"
    sections = "\n".join(_event(name, cls) for name, cls in CATALOGUE.items())
    return f"{NOTICE}\n{EVENTS_HEAD}\n{table}\n{sections}"


def states_page() -> str:
    """Return docs/states.md."""
    sections = (_machine(RUN), _machine(TOOL_CALL), _machine(APPROVAL))
    return f"{NOTICE}\n{STATES_HEAD}\n" + "\n".join(sections)


def _event(name: str, cls: type[Payload]) -> str:
    rows = "".join(_field(field) for field in fields(cls))
    where = ", ".join(_states_before(name)) or "not yet in use"
    return (
        f"## {name}\n\n{' '.join((cls.__doc__ or '').split())}\n\n"
        f"| field | type |\n|---|---|\n{rows}\nLegal in: {where}.\n"
    )


def _field(field: FieldInfo) -> str:
    mark = "" if field.required else "?"
    return f"| `{field.name}`{mark} | {_type(field.type)} |\n"


def _type(declared: Any) -> str:
    if declared in TYPES:
        return TYPES[declared]
    return next(text for known, text in TYPES.items() if declared == (known | None))


def _kind(name: str) -> str:
    return "terminal" if name in TERMINAL else "delta" if name in DELTAS else "state"


def _first_sentence(cls: type[Payload]) -> str:
    return " ".join((cls.__doc__ or "").split()).partition(";")[0].rstrip(".") + "."


def _states_before(event: str) -> list[str]:
    before = (s for s, row in RUN.table.items() if any(name == event for name, _ in row))
    return ["a new run" if state is None else f"`{state}`" for state in before]


def _machine(machine: Machine[Any]) -> str:
    title, meaning = MEANINGS[machine.name]
    deciding = ", ".join(f"`{event}.{field}`" for event, field in machine.deciding.items())
    ends = ", ".join(f"`{state}`" for state in _ordered(machine.terminal()))
    parts = [f"## {title}", meaning, _diagram(machine)]
    parts += [f"Deciding fields: {deciding}.", f"Terminal states: {ends}.", _staying(machine)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _diagram(machine: Machine[Any]) -> str:
    labels: dict[tuple[str, str], list[str]] = {}
    for before, (event, value), after in machine.edges():
        if before is not after:
            label = f"{event} ({value})" if value else event
            found = labels.setdefault((before or "[*]", after), [])
            found += [label] if label not in found else []
    arrows = [f"    {a} --> {b}: {'<br/>'.join(found)}" for (a, b), found in labels.items()]
    arrows += [f"    {state} --> [*]" for state in _ordered(machine.terminal())]
    return "```mermaid\nstateDiagram-v2\n" + "\n".join(arrows) + "\n```"


def _staying(machine: Machine[Any]) -> str:
    rows = ""
    for state in RunState if machine is RUN else ():
        kept = [f"`{name}`" for a, (name, _), b in machine.edges() if a is b is state]
        rows += f"| `{state}` | {', '.join(kept)} |\n" if kept else ""
    head = "Events that leave the state as it is:\n\n| state | events |\n|---|---|\n"
    return head + rows.rstrip("\n") if rows else ""


def _ordered(states: frozenset[StrEnum]) -> list[StrEnum]:
    return [state for state in type(next(iter(states))) if state in states]


def settings_page() -> str:
    """Return docs/settings.md."""
    head = SETTINGS_HEAD.replace("@NUMBER_MAX@", str(NUMBER_MAX))
    tail = SETTINGS_TAIL.replace("@NOT_READ@", not_read()).replace("@INGRESS@", ingress_table())
    return f"{NOTICE}\n{head}\n{table()}\n{tail}"


def access_page() -> str:
    """Return docs/access.md."""
    limits = APISettings()
    head = ACCESS_HEAD.format(roles=" | ".join(ROLES), lines="|".join(["---"] * len(ROLES)))
    rows = "".join(map(_permission, PERMISSIONS))
    tail = ACCESS_TAIL.format(
        body=f"{limits.body_limit >> 20} MiB", idle=f"{limits.body_idle_s:g} s"
    )
    return f"{NOTICE}\n{head}{rows}{tail}{''.join(map(_route, (*ROUTES, *PAGE_ROUTES)))}"


def _permission(name: str) -> str:
    everybody = name == OPEN
    roles = " | ".join("✓" if everybody or name in may else "" for may in ROLES.values())
    scopes = ", ".join(f"`{scope}`" for scope, may in SESSION_SCOPES.items() if name in may)
    runs = "✓" if everybody else RUN_TOKENS.get(name, "✓") if name in RUN_SCOPES else ""
    return (
        f"| `{name}` | {PERMISSIONS[name]} | {roles} | {'✓' if everybody else scopes} | {runs} |\n"
    )


def _route(route: Route) -> str:
    answer = "a stream" if route.stream == "always" else "or a stream" if route.stream else ""
    body = f"`{route.body.__name__}`" if route.body is not None else ""
    what = f"`{route.method} {route.path}` | `{route.name}` | `{route.permission}`"
    return f"| {what} | {body} | {answer} |\n"


def cli_page() -> str:
    """Return docs/cli.md."""
    codes = "".join(f"| {code.value} | {EXIT_MEANINGS[code]} |\n" for code in Exit)
    context = click.Context(program, info_name="orchestrator")
    commands = (program.get_command(context, name) for name in COMMANDS)
    sections = "\n".join(_command(c, context) for c in commands if c is not None)
    return f"{NOTICE}\n{CLI_HEAD}{codes}\n{sections}"


def _command(command: click.Command, parent: click.Context) -> str:
    context = click.Context(command, parent=parent, info_name=command.name)
    if isinstance(command, click.Group):
        return "\n".join(_command(found, context) for found in command.commands.values())
    usage = f"./{context.command_path} {' '.join(command.collect_usage_pieces(context)[1:])}"
    told = "\n\n".join(" ".join(part.split()) for part in (command.help or "").split("\n\n"))
    rows = "" if command.name == "serve" else "".join(_option(p) for p in command.params)
    head = "\n| option | meaning |\n|---|---|\n" if rows else ""
    path = context.command_path.removeprefix("orchestrator ")
    return f"## {path}\n\n```text\n{usage.strip()}\n```\n\n{told}\n{head}{rows}"


def _option(parameter: click.Parameter) -> str:
    if not isinstance(parameter, click.Option) or parameter.hidden:
        return ""
    value = "" if parameter.is_flag else f" {parameter.make_metavar(click.Context(program))}"
    default = f" [default: {parameter.default}]" if parameter.show_default else ""
    cell = f"{parameter.opts[0]}{value}".replace("|", "\\|")
    return f"| `{cell}` | {parameter.help}{default} |\n"


RUN_TOKENS: Final = {
    "runs:read": "own, below", "runs:cancel": "own, below", "sessions:read": "own",
    "agents:invoke": "as a child",
}  # fmt: skip
"""How a run's token is narrowed."""

PAGES: Final = {
    "events.md": events_page,
    "states.md": states_page,
    "settings.md": settings_page,
    "access.md": access_page,
    "cli.md": cli_page,
}


def main() -> int:
    """Write the pages, or with --check name those that would change."""
    wanted = {HERE / name: page() for name, page in PAGES.items()}
    stale = [path for path, text in wanted.items() if not path.exists() or path.read_text() != text]
    if "--check" in sys.argv:
        print(
            "".join(f"{path.name} is out of date: run docs/generate.py\n" for path in stale), end=""
        )
        return 1 if stale else 0
    for path in stale:
        path.write_text(wanted[path])
    return 0


if __name__ == "__main__":
    sys.exit(main())
