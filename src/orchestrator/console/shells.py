"""What the pages are made of: shells without data, and the files that bring them to life."""

from functools import cache
from importlib.resources import files
from pathlib import PurePath
from typing import Final

from starlette.responses import RedirectResponse
from starlette.types import ASGIApp

from orchestrator.api.calls import Call
from orchestrator.api.pages import kept, tag_of
from orchestrator.api.problems import refusal

POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'"
)
"""Content-Security-Policy: nothing inline, nothing from elsewhere, no text that becomes markup."""
GUARDED: Final = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
MEDIA: Final = {".mjs": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}


async def home(call: Call) -> ASGIApp:
    """Lead to the list of runs."""
    return RedirectResponse(f"{call.settings.base_path}/runs", 307, GUARDED)


async def runs(call: Call) -> ASGIApp:
    """Return the page that lists the newest runs."""
    return _shell(call, "runs.html")


async def run(call: Call) -> ASGIApp:
    """Return the page of one run, the same for all of them: its script reads the address."""
    return _shell(call, "run.html")


async def file(call: Call) -> ASGIApp:
    """Return a module, the style sheet or the icon; 304 to whoever has it."""
    found = _static().get(call.path("name"))
    if found is None:
        return refusal(404, "not_found", f"the console has {', '.join(sorted(_static()))}")
    body, tag, kind = found
    return kept(call, body, tag, kind, GUARDED)


def _shell(call: Call, name: str) -> ASGIApp:
    body = _page(name)
    return kept(call, body, tag_of(body), "text/html", GUARDED)


@cache
def _page(name: str) -> bytes:
    return (files("orchestrator.console") / "templates" / name).read_bytes()


@cache
def _static() -> dict[str, tuple[bytes, str, str]]:
    """Return bytes, ETag and media type of each file by its name."""
    found = {}
    for entry in (files("orchestrator.console") / "static").iterdir():
        kind = MEDIA.get(PurePath(entry.name).suffix)
        if kind is not None:
            body = entry.read_bytes()
            found[entry.name] = (body, tag_of(body), kind)
    return found
