"""The API about itself: the OpenAPI document, a page to read it, the SDK for browsers."""

import re
from collections.abc import Mapping
from functools import cache
from hashlib import sha256
from html import escape
from importlib.resources import files
from pathlib import Path
from types import MappingProxyType
from typing import Final

import msgspec
from starlette.responses import HTMLResponse, Response
from starlette.types import ASGIApp

from orchestrator.api import openapi as document
from orchestrator.api import routes
from orchestrator.api.calls import Call
from orchestrator.api.problems import refusal
from orchestrator.api.table import Route

SDK: Final = ("client.mjs", "client.d.mts", "ingress.mjs", "ingress.d.mts")
"""Files of the JavaScript SDK that browsers load; a wheel carries them beside this module."""
CHECKOUT: Final = Path(__file__).resolve().parents[3] / "sdk" / "js"
_CODE: Final = re.compile(r"`([^`]+)`")


async def openapi(call: Call) -> ASGIApp:
    """Return the OpenAPI document."""
    body = _document(call.settings.version, call.settings.public_url)
    return Response(body, media_type="application/json")


@cache
def _document(version: str, url: str) -> bytes:
    return msgspec.json.encode(document.document(routes.ROUTES, version, url))


async def docs(call: Call) -> ASGIApp:
    """Return the page; it needs nothing from elsewhere."""
    style = (files("orchestrator.api") / "docs.css").read_text()
    groups = list(dict.fromkeys(route.group for route in routes.ROUTES))
    body = "".join(_group(group) for group in groups)
    nav = "".join(f'<a href="#{g.lower()}">{g}</a>' for g in groups)
    return HTMLResponse(
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Orchestrator API</title>'
        f'<meta name="viewport" content="width=device-width"><style>{style}</style>'
        f"<header><h1>Orchestrator API</h1><p>Version {escape(call.settings.version)} · "
        f'<a href="openapi.json">OpenAPI 3.1</a></p><nav>{nav}</nav></header>'
        f"<main>{body}</main></html>"
    )


async def sdk(call: Call) -> ASGIApp:
    """Return a file of the SDK; 304 to whoever has it."""
    name = call.path("name")
    if name not in SDK:
        return refusal(404, "not_found", f"the SDK has {', '.join(SDK)}")
    body, tag = _sdk(name)
    return kept(call, body, tag, "text/javascript")


@cache
def _sdk(name: str) -> tuple[bytes, str]:
    """Return the bytes of a file of the SDK and their ETag, the same as long as we run."""
    packed = files("orchestrator.api") / name
    body = (packed if packed.is_file() else CHECKOUT / name).read_bytes()
    return body, tag_of(body)


def tag_of(body: bytes) -> str:
    """Return the ETag of a body."""
    return f'"{sha256(body).hexdigest()[:32]}"'


def kept(
    call: Call, body: bytes, tag: str, kind: str, more: Mapping[str, str] = MappingProxyType({})
) -> Response:
    """Return a body that callers keep, asking whether it is current; 304 where it is."""
    headers = {"ETag": tag, "Cache-Control": "no-cache", **more}
    known = re.findall(r'"[^"]*"|\*', call.header("if-none-match") or "")
    if tag in known or "*" in known:
        return Response(status_code=304, headers=headers)
    return Response(body, headers=headers, media_type=kind)


def _group(group: str) -> str:
    found = "".join(_route(route) for route in routes.ROUTES if route.group == group)
    return f'<section id="{group.lower()}"><h2>{group}</h2>{found}</section>'


def _route(route: Route) -> str:
    facts = [
        ("Also", ", ".join(route.also)),
        ("Query", _list([f"{q.name} – {q.text}" for q in route.query])),
        ("Headers", _list([f"{h.name} – {h.text}" for h in route.headers])),
        ("Body", _names(route.body, route.requires)),
        ("Answer", _names(route.answer, ())),
        ("Also answers", _list([f"{other.status} – {other.text}" for other in route.others])),
        ("Stream", route.stream or ""),
        ("Errors", ", ".join(route.errors)),
        ("Permission", route.permission),
    ]
    rows = "".join(f"<dt>{name}</dt><dd>{_text(text)}</dd>" for name, text in facts if text)
    return (
        f'<details id="{route.name}"><summary><b class="{route.method.lower()}">{route.method}</b>'
        f"<code>{escape(route.path)}</code><span>{_text(route.summary)}</span></summary>"
        f"<dl>{rows}</dl></details>"
    )


def _names(kind: type | None, requires: tuple[str, ...]) -> str:
    fields = getattr(kind, "__struct_fields__", ())
    return ", ".join(f"{name}*" if name in requires else name for name in fields)


def _list(texts: list[str]) -> str:
    return "\n".join(texts)


def _text(text: str) -> str:
    return _CODE.sub(r"<code>\1</code>", escape(text)).replace("\n", "<br>")
