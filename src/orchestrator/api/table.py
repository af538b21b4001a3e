"""What a row of the route table holds; router, OpenAPI, API.md and docs tests read it."""

from typing import Any

import msgspec

from orchestrator.api.calls import Handler


class Query(msgspec.Struct, frozen=True):
    """A parameter of the query or the headers: its name, its JSON type and what it does."""

    name: str
    kind: str
    text: str


class Other(msgspec.Struct, frozen=True, kw_only=True):
    """An answer besides the usual one; `stream` says that it may be one of server-sent events."""

    status: int
    text: str
    answer: type[Any] | None = None
    stream: bool = False


class Route(msgspec.Struct, frozen=True, kw_only=True):
    """One method on one path; `permission` is one of `core.access.PERMISSIONS`.

    `also` are further paths of the same route. `requires` names the body's fields that must be
    there, `errors` the codes it answers besides those every route may answer. `stream` says when
    the answer is a stream of server-sent events, `raw` an answer that is not JSON; `others` are
    answers with another status than `status`.
    """

    method: str
    path: str
    handler: Handler
    permission: str
    name: str
    summary: str
    also: tuple[str, ...] = ()
    body: type[Any] | None = None
    requires: tuple[str, ...] = ()
    answer: type[Any] | None = None
    status: int = 200
    others: tuple[Other, ...] = ()
    query: tuple[Query, ...] = ()
    headers: tuple[Query, ...] = ()
    errors: tuple[str, ...] = ()
    stream: str | None = None
    raw: str | None = None
    group: str = "Runs"
