"""The route table as an OpenAPI 3.1 document from which typed clients can be generated."""

import re
from collections.abc import Iterator
from typing import Any

import msgspec

from orchestrator.api.shapes import REQUIRED, EventAnswer, ProblemAnswer
from orchestrator.api.table import Query, Route
from orchestrator.core.access import OPEN
from orchestrator.core.events import CATALOGUE

_REF = "#/components/schemas/{name}"
_ERROR = {"$ref": _REF.format(name="ProblemAnswer")}


def document(
    routes: tuple[Route, ...], version: str, url: str = "http://localhost:8080"
) -> dict[str, Any]:
    """Return the document of the server at `url`; operation ids are the routes' names for ever."""
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        for number, path in enumerate((route.path, *route.also)):
            operation = _operation(route, f"{route.name}_{number}" if number else route.name)
            paths.setdefault(path, {})[route.method.lower()] = operation
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Orchestrator",
            "version": version,
            "description": "Invoke agents, read their runs live and again, keep their sessions.",
        },
        "servers": [{"url": url}],
        "security": [{"bearer": []}],
        "paths": paths,
        "components": {
            "schemas": _schemas(routes),
            "securitySchemes": {
                "bearer": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "A key, a token of a session or a run, or one of your identity "
                    "provider's; a server without keys asks for nothing",
                }
            },
        },
    }


def _operation(route: Route, operation_id: str) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": operation_id,
        "summary": route.summary,
        "tags": [route.group],
        "x-permission": route.permission,
        "responses": dict(_responses(route)),
    }
    if route.permission == OPEN:
        operation["security"] = []
    parameters = [
        *_path_parameters(route),
        *_parameters("query", route.query),
        *_parameters("header", route.headers),
    ]
    if parameters:
        operation["parameters"] = parameters
    if route.body is not None:
        schema = {"$ref": _REF.format(name=route.body.__name__)}
        operation["requestBody"] = {
            "required": bool(route.requires),
            "content": {"application/json": {"schema": schema}},
        }
    return operation


def _responses(route: Route) -> Iterator[tuple[str, Any]]:
    streamed = route.stream is not None and not any(other.stream for other in route.others)
    content = _content(route.answer, streamed=streamed)
    if route.raw is not None:
        kind = "object" if route.raw == "application/json" else "string"
        content[route.raw] = {"schema": {"type": kind}}
    yield str(route.status), {"description": route.summary, "content": content}
    for other in route.others:
        content = _content(other.answer, streamed=other.stream)
        described: dict[str, Any] = {"description": other.text}
        yield str(other.status), described | ({"content": content} if content else {})
    errors = ", ".join(route.errors)
    yield (
        "default",
        {
            "description": f"What went wrong ({errors})" if errors else "What went wrong",
            "content": {"application/json": {"schema": _ERROR}},
        },
    )


def _content(answer: type[Any] | None, *, streamed: bool) -> dict[str, Any]:
    content: dict[str, Any] = {}
    if answer is not None:
        content["application/json"] = {"schema": {"$ref": _REF.format(name=answer.__name__)}}
    if streamed:
        content["text/event-stream"] = {"schema": {"type": "string"}}
    return content


def _path_parameters(route: Route) -> Iterator[dict[str, Any]]:
    for name in re.findall(r"{(\w+)}", route.path):
        yield {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}


def _parameters(place: str, found: tuple[Query, ...]) -> Iterator[dict[str, Any]]:
    for one in found:
        yield {
            "name": one.name,
            "in": place,
            "description": one.text,
            "schema": {"type": one.kind},
        }


def _schemas(routes: tuple[Route, ...]) -> dict[str, Any]:
    types: set[type[Any]] = {ProblemAnswer, EventAnswer}
    for route in routes:
        told = (route.body, route.answer, *(other.answer for other in route.others))
        types |= {t for t in told if t is not None}
    ordered = sorted(types, key=lambda t: t.__name__)
    _, schemas = msgspec.json.schema_components(ordered, ref_template=_REF)
    for route in routes:
        if route.body is not None and route.requires:
            schemas[route.body.__name__]["required"] = list(route.requires)
    for kind, fields in REQUIRED.items():
        schemas[kind.__name__]["required"] = list(fields)
    return schemas | _event_schemas()


def _event_schemas() -> dict[str, Any]:
    """Return the event as a union that its `type` tells apart."""
    payloads = sorted(CATALOGUE.values(), key=lambda t: t.__name__)
    _, schemas = msgspec.json.schema_components(payloads, ref_template=_REF)
    variants = {}
    for kind in payloads:
        name = f"{kind.__name__}Event"
        variants[kind.type] = _REF.format(name=name)
        schemas[name] = {
            "type": "object",
            "properties": {
                "event_id": {"type": "string"},
                "run_id": {"type": "string"},
                "seq": {"type": "integer"},
                "ts": {"type": "integer"},
                "type": {"const": kind.type},
                "payload": {"$ref": _REF.format(name=kind.__name__)},
            },
            "required": ["event_id", "run_id", "seq", "ts", "type", "payload"],
        }
    schemas["EventAnswer"] = {
        "oneOf": [{"$ref": ref} for ref in variants.values()],
        "discriminator": {"propertyName": "type", "mapping": variants},
    }
    return schemas
