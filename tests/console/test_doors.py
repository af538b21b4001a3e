"""Who may look: keys and tokens of one tab, prefixes and proxies, and what the shells hold."""

import asyncio
import re
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from orchestrator.api.routes import ROUTES
from orchestrator.console import ROUTES as PAGES

from ..processes import ROOT, free_port, nginx_configuration, request, spawn, until
from .devtools import Tab
from .stage import DONE, Stage, staged

OUTPUT = "document.getElementById('output').textContent"
CONSOLE = ROOT / "src" / "orchestrator" / "console"
NGINX = """
server {{
    listen 127.0.0.1:{port};
    location /agents/plane/ {{ proxy_pass {target}; }}
}}
"""


async def type_key(tab: Tab, key: str) -> None:
    await tab.see("document.getElementById('door').getClientRects().length")
    assert await tab.ask("document.activeElement.id") == "door-key"
    await tab.type(key)
    await tab.press("Enter")


async def test_a_key_is_asked_for_once_and_kept_in_the_tab(
    tmp_path: Path, program: Callable[[str], Path]
) -> None:
    admin = secrets.token_urlsafe(32)
    bearer = {"Authorization": f"Bearer {admin}"}
    async with staged(tmp_path, program("chromium"), bearer, ADMIN_KEY=admin) as stage:
        run_id = await stage.start("x", session_id="seen")
        other = await stage.start("y", session_id="unseen")
        stage.words("x", "secret words")
        made = await stage.call("POST", "/v1/sessions/seen/tokens", {})
        token = made.json()["token"]
        async with stage.tab() as tab:
            await tab.open(stage.page(run_id))
            await tab.see("document.getElementById('door').getClientRects().length")
            assert "secret" not in await tab.ask("document.documentElement.innerHTML")
            await type_key(tab, "ok_wrong")
            await tab.see("document.getElementById('door-why').textContent.includes('key')")
            await type_key(tab, f" {admin} ")
            await tab.see(f"{OUTPUT} === 'secret words'")
            assert admin not in await tab.ask("location.href + document.documentElement.innerHTML")
            assert await tab.ask("document.cookie + JSON.stringify(localStorage)") == "{}"
            await tab.open(stage.page(other))
            await tab.see("document.getElementById('state').textContent === 'running'")
            await tab.click("#forget")
            await type_key(tab, token)
            await tab.see("document.getElementById('notice').textContent.includes('not found')")
            await tab.open(stage.page(run_id))
            await tab.see(f"{OUTPUT} === 'secret words'")
            await tab.open(f"{stage.url}/runs")
            await tab.see("document.querySelectorAll('tbody tr').length === 1")
            tab.problems[:] = [one for one in tab.problems if not re.search("40[14]", one)]
        assert admin not in stage.server.said()


async def test_what_can_be_no_key_is_not_sent(
    tmp_path: Path, program: Callable[[str], Path]
) -> None:
    async with staged(tmp_path, program("chromium"), AUTH_MODE="off") as stage, stage.tab() as tab:
        await tab.open(f"{stage.url}/runs")
        await tab.see("!document.getElementById('list').hidden")
        await tab.ask("document.getElementById('door').hidden = false")
        box = "document.getElementById('door-key')"
        await tab.ask(f"{box}.focus()")
        await type_key(tab, "“ok_quoted”")
        assert await tab.ask(f"[{box}.value, {box}.validity.valid]") == ["“ok_quoted”", False]
        await tab.ask(f"{box}.value = ' ok_plain '")
        assert await tab.ask(f"{box}.validity.valid") is True


async def test_a_key_that_ends_is_asked_for_again(
    tmp_path: Path, program: Callable[[str], Path]
) -> None:
    admin = secrets.token_urlsafe(32)
    bearer = {"Authorization": f"Bearer {admin}"}
    async with staged(tmp_path, program("chromium"), bearer, ADMIN_KEY=admin) as stage:
        run_id = await stage.start("x")
        stage.words("x", "before ")
        made = (await stage.call("POST", "/v1/keys", {"name": "v", "role": "viewer"})).json()
        async with stage.tab() as tab:
            await tab.open(stage.page(run_id))
            await type_key(tab, made["key"])
            await tab.see(f"{OUTPUT} === 'before '")
            await stage.call("POST", f"/v1/keys/{made['info']['key_id']}:revoke")
            await type_key(tab, admin)
            stage.words("x", "after")
            stage.say("x", DONE)
            await tab.see("document.getElementById('state').textContent === 'done'")
            assert await tab.ask(OUTPUT) == "before after"
            tab.problems[:] = [one for one in tab.problems if "401" not in one]


@contextmanager
def nginx(folder: Path, program: Path, target: str) -> Iterator[str]:
    """Run nginx with a prefix in front of a server; hand out the address below the prefix."""
    port = free_port()
    configuration = nginx_configuration(NGINX.format(port=port, target=target))
    (folder / "nginx.conf").write_text(configuration)
    command = [str(program), "-p", str(folder), "-c", str(folder / "nginx.conf")]
    process = spawn(command, folder, folder / "nginx.log", {})
    url = f"http://127.0.0.1:{port}/agents/plane"
    try:
        until(lambda: answers(url), "nginx answers")
        yield url
    finally:
        process.kill()
        process.wait(10)


def answers(url: str) -> bool:
    try:
        return request("GET", f"{url}/health").status == 200
    except OSError:
        return False


@pytest.mark.parametrize("stripped", [True, False], ids=["stripped", "kept"])
async def test_pages_work_below_a_prefix_behind_nginx(
    tmp_path: Path, program: Callable[[str], Path], *, stripped: bool
) -> None:
    chromium, front = program("chromium"), program("nginx")
    prefix = "/agents/plane"
    async with staged(tmp_path, chromium, BASE_PATH=prefix, AUTH_MODE="off") as stage:
        run_id = await stage.start("x")
        stage.words("x", "through ", "nginx")
        target = f"{stage.url}/" if stripped else stage.url
        with nginx(tmp_path, front, target) as url:
            async with stage.tab() as tab:
                await tab.open(f"{url}/")
                await tab.see("document.querySelector('tbody a')?.textContent.startsWith('run_')")
                assert await tab.ask("location.pathname") == f"{prefix}/runs"
                await tab.click("tbody a")
                await tab.see(f"{OUTPUT} === 'through nginx'")
                assert await tab.ask("location.href") == f"{url}/runs/{run_id}"
                stage.say("x", DONE)
                await tab.see("document.getElementById('state').textContent === 'done'")
                await tab.click("nav a.home")
                await tab.see("document.querySelector('.state.done')")
                assert await tab.ask("location.href") == f"{url}/runs"


async def test_the_list_is_kept_up_to_date_and_filtered(stage: Stage, tab: Tab) -> None:
    await tab.open(f"{stage.url}/runs")
    await tab.see("document.getElementById('empty').textContent.startsWith('No runs yet')")
    first = await stage.start("first", session_id="a")
    ids = "[...document.querySelectorAll('tbody th')].map((cell) => cell.textContent).join()"
    await tab.see(f"{ids} === '{first}'")
    assert await tab.text("tbody .state") == "running"
    second = await stage.start("second", session_id="b")
    await tab.see(f"{ids} === '{second},{first}'")
    stage.say("first", DONE)
    await tab.see("document.querySelector('tbody .state.done')")
    await tab.ask("[...document.querySelectorAll('[data-name=session] a')].at(-1).click()")
    await tab.see(f"{ids} === '{first}' && location.search === '?session_id=a'")
    await tab.click("#filters a")
    await tab.see(f"{ids} === '{second},{first}' && location.search === ''")


async def test_older_runs_come_on_demand(stage: Stage, tab: Tab) -> None:
    await stage.register(max_concurrency=1)
    for number in range(60):
        await stage.start(f"run {number}")
    await tab.open(f"{stage.url}/runs")
    await tab.see("document.querySelectorAll('tbody tr').length === 50")
    await tab.click("#older")
    await tab.see("document.querySelectorAll('tbody tr').length === 60")
    await tab.see("document.getElementById('older').hidden")


async def test_shells_hold_no_data_and_their_policy_is_strict(stage: Stage) -> None:
    run_id = await stage.start("x")
    paths = ["/runs", f"/runs/{run_id}", *(f"/console/{file.name}" for file in files("static"))]
    for path in paths:
        told = await stage.call("GET", path)
        assert told.status == 200
        policy = told.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; ")
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
        assert told.headers["x-content-type-options"] == "nosniff"
        assert run_id.encode() not in told.body
        again = await asyncio.to_thread(
            request, "GET", f"{stage.url}{path}", None, {"If-None-Match": told.headers["etag"]}
        )
        assert (again.status, again.body) == (304, b"")
    home = await stage.call("GET", "/")
    assert (home.status, home.headers["location"]) == (307, "/runs")
    for path in ("/console/nothing.mjs", "/console/..%2Froutes.py", "/console/run.html"):
        assert (await stage.call("GET", path)).status == 404


def files(folder: str) -> list[Path]:
    return sorted((CONSOLE / folder).iterdir())


def test_nothing_is_inline_or_from_elsewhere() -> None:
    for page in files("templates"):
        text = page.read_text()
        assert not re.search(r"<style|style=|\son\w+=|javascript:|://", text), page
        assert re.findall(r"<script[^>]*>(.*?)</script>", text, re.DOTALL) == [""], page
    for module in files("static"):
        assert not re.search(r"innerHTML|insertAdjacent|document\.write|eval\(", module.read_text())


def test_both_tables_have_names_and_paths_of_their_own() -> None:
    both = (*ROUTES, *PAGES)
    assert len({route.name for route in both}) == len(both)
    paths = [(route.method, path) for route in both for path in (route.path, *route.also)]
    assert len(set(paths)) == len(paths)
    assert {route.permission for route in PAGES} == {"open"}
