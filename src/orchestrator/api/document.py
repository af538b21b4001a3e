"""API.md: the route table for people. `python -m orchestrator.api.document > API.md` writes it."""

import sys
from importlib.resources import files

import msgspec

from orchestrator.api.routes import ROUTES
from orchestrator.api.table import Route

_INTRO = """# API

Every path this server answers, made from the route table (`src/orchestrator/api/routes.py`); as
OpenAPI 3.1 it is at `/openapi.json`, as a page at `/docs`. Bodies are JSON. Times are milliseconds
UTC unless a field says RFC 3339. Lists are `[]`, never `null`. An error is
`{"error": "<sentence>", "code": "<stable code>"}`, with `retryable` and `details` where they help;
[docs/errors.md](docs/errors.md) has a paragraph per code. Events and their payloads:
[docs/events.md](docs/events.md). Limits: [docs/limits.md](docs/limits.md).
"""
_GROUPS = ("Runs", "Sessions", "Agents", "Access", "Server")


def render() -> str:
    """Return API.md."""
    parts = [_INTRO]
    for group in _GROUPS:
        parts.append(f"## {group}\n")
        parts += [_section(route) for route in ROUTES if route.group == group]
    parts.append((files("orchestrator.api") / "agent_protocol.md").read_text())
    return "\n".join(parts)


def _section(route: Route) -> str:
    lines = [f"### `{route.method} {route.path}`\n"]
    if route.also:
        lines.append(f"Also {', '.join(f'`{path}`' for path in route.also)}.\n")
    lines.append(f"{route.summary}. Permission `{route.permission}`.\n")
    if route.stream is not None:
        lines.append(f"Answers with server-sent events: {route.stream}.\n")
    for title, found in (("Query", route.query), ("Header", route.headers)):
        lines += _rows(title, [(q.name, q.kind, q.text) for q in found])
    if route.body is not None:
        lines.append(f"Body: {_fields(route.body, route.requires)}.\n")
    if route.answer is not None:
        lines.append(f"Answer {route.status}: {_fields(route.answer)}.\n")
    for other in route.others:
        fields = f": {_fields(other.answer)}" if other.answer else ""
        lines.append(f"Answer {other.status} ({other.text}){fields}.\n")
    if route.errors:
        lines.append(f"Errors: {', '.join(f'`{code}`' for code in route.errors)}.\n")
    return "\n".join(lines)


def _rows(title: str, rows: list[tuple[str, str, str]]) -> list[str]:
    if not rows:
        return []
    head = [f"| {title} | type | meaning |", "|---|---|---|"]
    return [*head, *(f"| `{name}` | {kind} | {text} |" for name, kind, text in rows), ""]


def _fields(kind: type[msgspec.Struct], requires: tuple[str, ...] = ()) -> str:
    marks = {name: "\\*" if name in requires else "" for name in kind.__struct_fields__}
    return ", ".join(f"`{name}`{mark}" for name, mark in marks.items())


if __name__ == "__main__":
    sys.stdout.write(render())
