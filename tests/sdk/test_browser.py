"""The JavaScript SDK in a real browser: a page of another origin, a reload in the middle."""

import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ..processes import Running, request
from .browser import Site, browsing, page, site

FOLLOW = """
const { Client, emptyView, reduce } = await import(`${known.url}/sdk/client.mjs`);
const client = new Client({ url: known.url, token: known.token });
const kept = JSON.parse(sessionStorage.getItem("kept"));
const runId = kept?.view.run_id ?? (await client.run("demo", "slow 5")).id;
const status = (await client.request("GET", `/v1/runs/${runId}`)).status;
let view = kept?.view ?? emptyView();
const seqs = [];
for await (const event of client.tail(runId, { afterSeq: view.seq })) {
  seqs.push(event.seq);
  view = reduce(view, event);
  if (!kept && view.pieces.length === 2) {
    sessionStorage.setItem("kept", JSON.stringify({ view, seqs }));
    location.reload();
    await new Promise(() => undefined);
  }
}
await tell({ before: kept.seqs, after: seqs, status, view });
"""

EVENT_SOURCE = """
const { Client } = await import(`${known.url}/sdk/client.mjs`);
const client = new Client({ url: known.url, token: known.token });
const run = await client.run("demo", "count 3");
const types = [];
const source = new EventSource(client.eventsUrl({ runId: run.id }));
const hear = ({ type }) => types.push(type);
source.addEventListener("agent_stream_delta", hear);
source.addEventListener("run_done", async (event) => {
  hear(event);
  source.close();
  const { text } = await run.result();
  await tell({ types, text, sessionId: run.sessionId });
});
"""

LOAD = """
import(`${known.url}/sdk/client.mjs`).then(() => tell("loaded"), () => tell("refused"));
"""


@pytest.fixture
def own_site() -> Iterator[Site]:
    with site() as served:
        yield served


@pytest.fixture
def known(start_server: Callable[..., Running], own_site: Site, demo_agent: str) -> dict[str, str]:
    """Start a server with keys that `own_site` may call; return its address and a token."""
    admin = secrets.token_urlsafe(32)
    server = start_server(ADMIN_KEY=admin, CORS_ORIGINS=own_site.url)
    bearer = {"Authorization": f"Bearer {admin}"}
    card = {"agent_id": "demo", "name": "Demo", "endpoint": demo_agent}
    told = request("POST", f"{server.url}/v1/agents/register", card, bearer)
    assert told.status == 200, told.body
    made = request("POST", f"{server.url}/v1/sessions/a-page/tokens", {}, bearer)
    assert made.status == 201, made.body
    return {"url": server.url, "token": made.json()["token"]}


def shown(program: Callable[[str], Path], own_site: Site, folder: Path) -> Any:
    """Show the site's page and return what it tells."""
    with browsing(program("chromium"), f"{own_site.url}/", folder) as log:
        try:
            return own_site.hear()
        except Exception:
            print(log.read_text(errors="replace"))
            raise


def test_a_page_that_is_reloaded_goes_on_where_it_was(
    program: Callable[[str], Path], own_site: Site, known: dict[str, str], tmp_path: Path
) -> None:
    own_site.pages["/"] = page(FOLLOW, known)
    told = shown(program, own_site, tmp_path)
    assert "error" not in told, told
    assert told["status"] == "RUNNING"  # so it was reloaded in the middle
    last = told["view"]["seq"]
    assert told["before"] + told["after"] == list(range(1, last + 1))
    assert told["before"]
    assert told["after"]
    view = told["view"]
    assert (view["status"], view["text"], view["holes"]) == (
        "DONE",
        "tick tick tick tick done ",
        [],
    )
    assert view["final_message"] == "tick tick tick tick done"


def test_an_event_source_shows_its_token_in_the_address(
    program: Callable[[str], Path], own_site: Site, known: dict[str, str], tmp_path: Path
) -> None:
    own_site.pages["/"] = page(EVENT_SOURCE, known)
    told = shown(program, own_site, tmp_path)
    assert told == {
        "types": [*["agent_stream_delta"] * 3, "run_done"],
        "text": "1 2 3",
        "sessionId": "a-page",
    }


def test_a_page_of_an_origin_that_is_not_named_gets_nothing(
    program: Callable[[str], Path], own_site: Site, known: dict[str, str], tmp_path: Path
) -> None:
    own_site.pages["/"] = page(LOAD, known)
    with site() as other:
        other.pages["/"] = page(LOAD, known)
        for asked, answer in ((own_site, "loaded"), (other, "refused")):
            folder = tmp_path / answer
            folder.mkdir()
            assert shown(program, asked, folder) == answer
