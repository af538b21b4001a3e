"""The page among the examples, in a real browser: it streams words, and it cancels."""

from collections.abc import Callable
from pathlib import Path

from ..console.devtools import browser
from ..processes import request
from .stage import commands, opening, stage

NAME = "browser.html"
STATUS = "document.querySelector('#status').textContent"


async def test_the_page_runs_an_agent_streams_and_cancels(
    program: Callable[[str], Path], node: str, tmp_path: Path
) -> None:
    for folder in ("stage", "browser"):
        (tmp_path / folder).mkdir()
    address = next(word for word in opening(NAME).split() if word.endswith(NAME))
    with stage(tmp_path / "stage", node) as here:
        orchestrator, pages = (
            here.start(command.text, f"process-{number}")
            for number, command in enumerate(commands(NAME))
        )
        here.answers("http://localhost:8080/health", orchestrator)
        here.answers(address, pages)
        runs = here.here("http://localhost:8080/v1/runs")
        async with browser(program("chromium"), tmp_path / "browser") as tab:
            await tab.open(here.here(address))
            await tab.see("document.querySelector('#start')?.disabled === false")
            await tab.click("#start")
            await tab.see("answer.textContent.startsWith('tick ')", "words while the run goes on")
            run_id = (await tab.text("#status")).removeprefix("running ")
            assert request("GET", f"{runs}/{run_id}").json()["status"] == "RUNNING"
            await tab.click("#cancel")
            await tab.see(f"{STATUS} === 'cancelled: the button was pressed'")
            assert request("GET", f"{runs}/{run_id}").json()["status"] == "CANCELLED"
            assert "done" not in await tab.text("#answer")
            await tab.ask("document.querySelector('input').value = 'count 3'")
            await tab.click("#start")
            await tab.see(f"{STATUS} === 'done'")
            assert await tab.text("#answer") == "1 2 3"
            await tab.see("document.querySelector('#cancel').disabled")
            assert tab.problems == []
            assert orchestrator.stop() == 0, orchestrator.said()
            pages.kill()
