"""The pages' own route table; `app.py` joins it to that of the API."""

from typing import Final

from orchestrator.api.table import Other, Query, Route
from orchestrator.console import shells

_KNOWN = Query("If-None-Match", "string", "the `ETag` of what the caller has")
_UNCHANGED = Other(status=304, text="the caller has the current one")

ROUTES: Final[tuple[Route, ...]] = (
    Route(
        method="GET", path="/", handler=shells.home, permission="open", name="home",
        summary="Leads to `/runs`", status=307, raw="text/html", group="Pages",
    ),
    Route(
        method="GET", path="/runs", handler=shells.runs, permission="open", name="runs_page",
        summary="The newest runs as a page; it holds no data and asks the API",
        raw="text/html", headers=(_KNOWN,), others=(_UNCHANGED,), group="Pages",
    ),
    Route(
        method="GET", path="/runs/{run_id}", handler=shells.run, permission="open",
        name="run_page", summary="One run as a page, live; it holds no data and asks the API",
        raw="text/html", headers=(_KNOWN,), others=(_UNCHANGED,), group="Pages",
    ),
    Route(
        method="GET", path="/console/{name}", handler=shells.file, permission="open",
        name="console_file", summary="What the pages are made of: modules, style sheet, icon",
        raw="text/javascript", headers=(_KNOWN,), others=(_UNCHANGED,), group="Pages",
    ),
)  # fmt: skip
