"""The route table as an OpenAPI 3.1 document from which typed clients can be generated."""

import re
from collections.abc import Iterator
from typing import Any

import msgspec

from orchestrator.api.shapes import EventAnswer, ProblemAnswer
from orchestrator.api.table import Route
from orchestrator.core.events import CATALOGUE

_REF = "#/components/schemas/{name}"
_ERROR = {"$ref": _REF.format(name="ProblemAnswer")}


def document(routes: tuple[Route, ...], version: str) -> dict[str, Any]:
    """Return the document; operation ids are the routes' names and do not change."""
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
        "paths": paths,
        "components": {"schemas": _schemas(routes)},
    }


def _operation(route: Route, operation_id: str) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": operation_id,
        "summary": route.summary,
        "tags": [route.group],
        "x-permission": route.permission,
        "responses": dict(_responses(route)),
    }
    parameters = [*_path_parameters(route), *_query_parameters(route)]
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
    content: dict[str, Any] = {}
    if route.answer is not None:
        content["application/json"] = {"schema": {"$ref": _REF.format(name=route.answer.__name__)}}
    if route.raw is not None:
        content[route.raw] = {"schema": {"type": "string"}}
    if route.stream is not None:
        content["text/event-stream"] = {"schema": {"type": "string"}}
    yield str(route.status), {"description": route.summary, "content": content}
    if route.name == "start_run":
        for status, text in (("200", "The run of a repeated key, or the ended run"),
                             ("202", "The run goes on")):  # fmt: skip
            yield status, {"description": text, "content": content}
    if (route.stream is not None and "stream" in route.name) or route.name == "list_events":
        yield "204", {"description": "The reader has seen the terminal event"}
    errors = ", ".join(route.errors)
    yield (
        "default",
        {
            "description": f"What went wrong ({errors})" if errors else "What went wrong",
            "content": {"application/json": {"schema": _ERROR}},
        },
    )


def _path_parameters(route: Route) -> Iterator[dict[str, Any]]:
    for name in re.findall(r"{(\w+)}", route.path):
        yield {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}


def _query_parameters(route: Route) -> Iterator[dict[str, Any]]:
    for query in route.query:
        yield {
            "name": query.name,
            "in": "query",
            "description": query.text,
            "schema": {"type": query.kind},
        }


def _schemas(routes: tuple[Route, ...]) -> dict[str, Any]:
    types: set[type[Any]] = {ProblemAnswer, EventAnswer}
    types |= {t for route in routes for t in (route.body, route.answer) if t is not None}
    ordered = sorted(types, key=lambda t: t.__name__)
    _, schemas = msgspec.json.schema_components(ordered, ref_template=_REF)
    for route in routes:
        if route.body is not None and route.requires:
            schemas[route.body.__name__]["required"] = list(route.requires)
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
