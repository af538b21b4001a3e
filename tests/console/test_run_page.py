"""The page of a run in a real browser: it is seen live, and tells what went wrong."""

import asyncio
import secrets
from typing import Any

import pytest

from orchestrator.testing.fake_agent import event

from ..processes import start_server
from .devtools import Tab
from .stage import DONE, HANG_UP, Stage

OUTPUT = "document.getElementById('output').textContent"
STATE = "document.getElementById('state').textContent"


def within(text: str, where: str = OUTPUT) -> str:
    """Return the expression that a text is shown."""
    return f"{where}.includes({text!r})"


def unseen(selector: str) -> str:
    return f"document.querySelector({selector!r})?.getClientRects().length === 0"


async def test_words_are_seen_as_they_come_also_after_a_reload(stage: Stage, tab: Tab) -> None:
    run_id = await stage.start("Tell me a story")
    stage.words("Tell me a story", "Once ", "upon ")
    await tab.open(stage.page(run_id))
    await tab.see(within("Once upon "))
    assert await tab.text("#state") == "running"
    assert await tab.text("#title") == "Tell me a story"
    stage.words("Tell me a story", "a ", "time ")
    await tab.see(within("Once upon a time "))
    await tab.ask("globalThis.before = true")
    await tab.call("Page.reload")
    await tab.see("globalThis.before === undefined && " + within("Once upon a time "))
    assert await tab.text("#state") == "running"
    stage.words("Tell me a story", "there was.")
    stage.say("Tell me a story", event("done", usage={"total_tokens": 1234}))
    await tab.see(f"{STATE} === 'done'")
    assert await tab.ask(OUTPUT) == "Once upon a time there was."
    assert await tab.ask("document.title") == "done · Tell me a story"
    facts = await tab.text("#facts")
    for fact in (run_id, "agent demo", "session sess_", "tokens 1,234"):
        assert fact in facts
    assert await tab.ask(unseen("#failure"))


async def test_what_an_agent_does_is_said_and_its_last_word_where_it_differs(
    stage: Stage, tab: Tab
) -> None:
    run_id = await stage.start("x")
    stage.say("x", event("state", state="thinking", detail="it over"))
    await tab.open(stage.page(run_id))
    await tab.see("document.getElementById('doing').textContent === 'thinking · it over'")
    stage.words("x", "so ")
    await tab.see(within("so "))
    assert await tab.text("#doing") == "thinking · it over"
    stage.say("x", event("done", final_message="So it is."))
    await tab.see(within("So it is."))
    assert await tab.ask(unseen("#doing"))
    assert "final message" in await tab.text("#output")


async def test_a_queued_run_waits_and_says_so(stage: Stage, tab: Tab) -> None:
    await stage.start("first", session_id="s")
    run_id = await stage.start("second", session_id="s")
    await tab.open(stage.page(run_id))
    await tab.see("document.getElementById('doing').textContent === 'waiting for its turn'")
    assert await tab.text("#state") == "queued"
    await tab.see("document.querySelector('#tree li.wait.open .note')?.textContent === 'queued'")
    stage.say("first", DONE)
    stage.say("second", DONE)
    await tab.see(f"{STATE} === 'done'")
    assert await tab.ask(unseen("#doing"))
    await tab.see("document.querySelector('#tree li.run')")


async def test_a_failed_run_says_what_failed(stage: Stage, tab: Tab) -> None:
    run_id = await stage.start("x")
    stage.words("x", "I am ")
    stage.say("x", event("error", code="no_budget", message="raise it, or\nask for less"))
    await tab.open(stage.page(run_id))
    await tab.see(within("I am "))
    await tab.see(f"{STATE} === 'failed'")
    failure = await tab.text("#failure")
    for told in ("Failed: no_budget", "raise it, or", f"runs rerun {run_id}"):
        assert told in failure
    assert await tab.ask(OUTPUT) == "I am "


async def test_a_cancelled_run_says_why(stage: Stage, tab: Tab) -> None:
    run_id = await stage.start("x")
    await tab.open(stage.page(run_id))
    await tab.see(f"{STATE} === 'running'")
    await stage.call("POST", f"/v1/runs/{run_id}:cancel", {"reason": "enough of it"})
    await tab.see(f"{STATE} === 'cancelled'")
    assert "enough of it" in await tab.text("#failure")
    assert "Failed" not in await tab.text("#failure")


async def test_words_of_a_lost_attempt_are_struck_out_or_hidden(stage: Stage, tab: Tab) -> None:
    run_id = await stage.start("x")
    stage.words("x", "No, ")
    await tab.open(stage.page(run_id))
    await tab.see(within("No, "))
    stage.words("x", "never ")
    stage.say("x", HANG_UP)  # the agent hangs up, and is called again
    stage.words("x", "Yes.")
    stage.say("x", DONE)
    await tab.see(f"{STATE} === 'done'")
    lost = "document.querySelector('#output del')"
    assert await tab.ask(f"{lost}.textContent") == "No, never "
    assert "line-through" in await tab.ask(f"getComputedStyle({lost}).textDecorationLine")
    assert await tab.ask("document.querySelector('#output div.block').textContent") == "Yes."
    assert await tab.text("#output-size") == "4 characters"
    assert "attempts 2" in await tab.text("#facts")
    rows = await tab.text("#tree")
    assert "attempt 1" in rows
    assert "agent_eof" in rows
    await tab.click("#lost-switch input")
    assert await tab.ask(f"{lost}.getClientRects().length") == 0
    assert "Yes." in await tab.text("#output")
    await tab.call("Page.reload")
    await tab.see(f"{lost}?.textContent === 'No, never '", "a replay strikes them out as well")


async def test_the_tree_leads_to_the_runs_below_and_back(stage: Stage, tab: Tab) -> None:
    await stage.register("helper")
    run_id = await stage.start("big question")
    stage.words("big question", "Let me ask. ")
    await tab.open(stage.page(run_id))
    await tab.see(within("Let me ask. "))
    async with asyncio.TaskGroup() as tasks:
        asking = tasks.create_task(stage.child(run_id, "small question", "helper"))
        await tab.see("document.querySelector('#tree a')?.textContent === 'helper'")
        assert await tab.ask("document.querySelector('#tree a').closest('li').className") == (
            "child open"
        )
        stage.words("small question", "Forty-two.")
        stage.say("small question", DONE)
        await asking
    await tab.see("document.querySelector('#tree a').closest('li').className === 'child'")
    stage.say("big question", DONE)
    await tab.see(f"{STATE} === 'done'")
    await tab.click("#tree a")
    await tab.see(within("Forty-two."))
    await tab.see(f"[...document.links].some((link) => link.textContent === '{run_id}')")
    await tab.ask(f"[...document.links].find((link) => link.textContent === '{run_id}').click()")
    await tab.see(within("Let me ask. "))


async def test_events_are_filtered_and_opened(stage: Stage, tab: Tab) -> None:
    stage.words("x", "one ", "two ")
    stage.say("x", event("weather", degrees=21.5), DONE)
    run_id = await stage.start("x")
    await tab.open(stage.page(run_id))
    await tab.see(within("run_done", "document.getElementById('rows').textContent"))
    types = "[...document.querySelectorAll('.event:not(.headings) button')].map((b) => b.innerText)"
    log = (await stage.call("GET", f"/v1/runs/{run_id}/events")).json()["events"]
    kinds = [one["type"] for one in log]
    assert await tab.ask(types) == [kind for kind in kinds if kind != "agent_stream_delta"]
    await tab.ask("[...document.querySelectorAll('#types input')].forEach((box) => box.click())")
    assert await tab.ask(types) == ["agent_stream_delta"] * 2
    assert '"one "' in await tab.text("#rows")
    await tab.ask("[...document.querySelectorAll('#types input')]"
                  ".filter((box) => !box.checked).forEach((box) => box.click())")  # fmt: skip
    assert await tab.ask(types) == kinds
    await tab.ask("[...document.querySelectorAll('.event button')]"
                  ".find((b) => b.innerText === 'agent_event').click()")  # fmt: skip
    shown = await tab.ask("JSON.parse(document.querySelector('.json pre').textContent)")
    assert shown == next(one for one in log if one["type"] == "agent_event")
    assert shown["payload"]["data"] == {"degrees": 21.5}


async def test_words_are_text_whatever_they_are(stage: Stage, tab: Tab) -> None:
    evil = "<img src=x onerror='globalThis.owned=1'><script>globalThis.owned=1</script>"
    stage.words(evil, evil)
    stage.say(evil, event("state", state=evil, detail=evil))
    stage.say(evil, event("error", code="evil", message=evil))
    run_id = await stage.start(evil, session_id=secrets.token_hex(4))
    await tab.open(stage.page(run_id))
    await tab.see(f"{OUTPUT} === {evil!r}")
    await tab.see("document.getElementById('failure-text').textContent")
    assert await tab.text("#failure-text") == evil
    assert await tab.ask("globalThis.owned") is None
    assert await tab.ask("document.querySelectorAll('main img, main script').length") == 0


async def test_a_server_that_restarts_is_waited_for(stage: Stage, tab: Tab) -> None:
    run_id = await stage.start("x")
    stage.words("x", "before ")
    await tab.open(stage.page(run_id))
    await tab.see(within("before "))
    stage.server.kill()
    await tab.see("document.getElementById('notice').textContent.includes('does not answer')")
    port = stage.url.rpartition(":")[2]
    stage.server = await asyncio.to_thread(start_server, stage.folder, HTTP_PORT=port)
    await tab.see(within("attempt 2"))
    await tab.see("document.getElementById('notice').hidden")
    stage.words("x", "after")
    stage.say("x", DONE)
    await tab.see(f"{STATE} === 'done'", timeout_s=60)
    assert await tab.ask("document.querySelector('#output del').textContent") == "before "
    tab.problems.clear()  # the browser tells of every connection that was refused


@pytest.mark.parametrize("path", ["run_nobody_knows", "%3Cb%3E"])
async def test_a_run_that_is_not_there(stage: Stage, tab: Tab, path: str) -> None:
    await tab.open(f"{stage.url}/runs/{path}")
    await tab.see("document.getElementById('notice').textContent.includes('not found')")
    assert await tab.ask(unseen("#run"))
    assert [problem for problem in tab.problems if "404" not in problem] == []
    tab.problems.clear()  # the browser tells of the 404


async def test_a_run_can_be_read_without_a_mouse(stage: Stage, tab: Tab) -> None:
    stage.words("x", "word")
    stage.say("x", DONE)
    run_id = await stage.start("x")
    await tab.open(stage.page(run_id))
    await tab.see(within("run_done", "document.getElementById('rows').textContent"))
    await tab.press("Tab")
    assert await tab.ask("document.activeElement.className") == "skip"
    await tab.press("Enter")
    assert await tab.ask("location.hash") == "#output"
    seen: list[Any] = []
    for _ in range(40):
        await tab.press("Tab")
        seen.append(await tab.ask("document.activeElement.innerText"))
        if seen[-1] == "run_started":
            break
    assert seen[-1] == "run_started", seen
    await tab.press("Enter")
    assert await tab.ask("document.activeElement.getAttribute('aria-expanded')") == "true"
    roles = "['header', 'nav', 'main', '#output[aria-live=polite]', '[role=table]']"
    assert await tab.ask(f"{roles}.every((found) => document.querySelector(found))")
