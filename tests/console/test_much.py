"""Much to show: a megabyte of words, ten thousand events, long names, small screens."""

from typing import Any

import pytest

from orchestrator.testing.fake_agent import event

from .devtools import Tab
from .stage import DONE, Stage

OUTPUT = "document.getElementById('output').textContent"
ROWS = "document.querySelectorAll('.event:not(.headings)').length"
OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
CONTRASTS = """
(() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgb = (colours) => {
    canvas.clearRect(0, 0, 1, 1);
    for (const colour of colours) { canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1); }
    return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const light = (colours) => {
    const parts = rgb(colours).map((part) => part / 255)
      .map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4));
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2];
  };
  const behind = (element) => element
    ? [...behind(element.parentElement), getComputedStyle(element).backgroundColor] : ["white"];
  const found = {};
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    if (!own || !element.getClientRects().length || element.closest(".unseen, .skip")) continue;
    const [one, other] = [[getComputedStyle(element).color], behind(element)].map(light);
    const ratio = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
    const name = `${element.tagName}.${element.className}#${element.id}`;
    found[name] = Math.min(found[name] ?? 99, ratio);
  }
  return found;
})()
"""
"""What the text of each element has for contrast with what is behind it, by the rule of WCAG."""


async def test_ten_thousand_events_are_a_capped_table(stage: Stage, tab: Tab) -> None:
    run_id = await stage.start("x")
    for block in range(10):
        stage.say("x", *(event("state", state=f"s{block * 1000 + n}") for n in range(1000)))
    await tab.open(stage.page(run_id))
    last = "document.getElementById('rows').lastChild.innerText"
    await tab.see(f"{last}.includes('state=s9999')", timeout_s=60)
    assert 400 <= await tab.ask(ROWS) <= 500
    stage.say("x", event("state", state="more"))
    await tab.see(f"{last}.includes('state=more')")
    assert 400 <= await tab.ask(ROWS) <= 500
    assert await tab.text("#events-count") == "10,004"
    assert "show all 10,004" in await tab.text("#events-all")
    seqs = "[...document.querySelectorAll('.event:not(.headings) .seq')].map((s) => +s.textContent)"
    shown = await tab.ask(seqs)
    assert shown == list(range(10_004 - len(shown) + 1, 10_005))
    await tab.click("#events-all")
    await tab.see(f"{ROWS} === 10004")
    assert await tab.ask(seqs) == list(range(1, 10_005))
    stage.say("x", DONE)
    await tab.see(f"{ROWS} === 10006")
    labels = "[...document.querySelectorAll('#types label')]"
    await tab.ask(f"{labels}.find((one) => one.innerText.startsWith('agent_state')).click()")
    await tab.see(f"{ROWS} === 5")


async def test_a_megabyte_of_words_is_there_whole(stage: Stage, tab: Tab) -> None:
    line = "x" * 300_000  # without any place to break
    prose = "All work and no play. " * 10_000
    page = "\n".join(f"line {n}" for n in range(50_000))
    pieces = [prose, "\n", line, " ", page]
    stage.words("x", *pieces)
    stage.say("x", DONE)
    run_id = await stage.start("x")
    await tab.open(stage.page(run_id))
    whole = "".join(pieces)
    assert len(whole) > 1_000_000
    await tab.see(f"{OUTPUT}.length === {len(whole)}", timeout_s=60)
    assert await tab.ask(OUTPUT) == whole
    blocks = await tab.ask(
        "[...document.querySelectorAll('.block')].map((b) => b.textContent.length)"
    )
    assert max(blocks) <= 33_000, "one endless block would be laid out again with every word"
    output = "document.getElementById('output')"
    end = f"{output}.scrollHeight - {output}.clientHeight - {output}.scrollTop"
    await tab.see(f"{end} < 48", "the end of what comes is seen")


async def test_a_reader_who_has_scrolled_up_is_left_alone(stage: Stage, tab: Tab) -> None:
    run_id = await stage.start("x")
    stage.words("x", *(f"line {n}\n" for n in range(500)))
    await tab.open(stage.page(run_id))
    await tab.see(f"{OUTPUT}.includes('line 499')")
    await tab.ask("document.getElementById('output').scrollTop = 100")
    stage.words("x", "the end\n")
    await tab.see(f"{OUTPUT}.includes('the end')")
    assert await tab.ask("document.getElementById('output').scrollTop") == 100


@pytest.mark.parametrize("width", [390, 760, 1280])
async def test_long_names_and_texts_do_not_overflow(stage: Stage, tab: Tab, width: int) -> None:
    await tab.look(width, 844)
    name, session = "n" * 128, "s" * 256
    await stage.register(name)
    stage.words("m" * 3000, "w" * 5000)
    stage.say("m" * 3000, event("error", code="c" * 100, message="e" * 3000))
    run_id = await stage.start("m" * 3000, name, session_id=session)
    await tab.open(stage.page(run_id))
    await tab.see(f"{OUTPUT}.length === 5000")
    await tab.see("document.getElementById('failure-text').textContent.length === 3000")
    await tab.ask("document.querySelector('details').open = true")
    await tab.ask("[...document.querySelectorAll('.event button')].forEach((b) => b.click())")
    assert await tab.ask(OVERFLOW) == 0
    await tab.open(f"{stage.url}/runs")
    await tab.see("document.querySelector('tbody tr')")
    assert await tab.ask(OVERFLOW) == 0


def too_faint(found: dict[str, Any]) -> dict[str, Any]:
    return {name: ratio for name, ratio in found.items() if ratio < 4.5}


@pytest.mark.parametrize("dark", [False, True])
async def test_every_text_can_be_read(stage: Stage, tab: Tab, *, dark: bool) -> None:
    await tab.look(1280, 900, dark=dark)
    open_run = await stage.start("open")
    stage.words("open", "lost ")
    stage.say("open", b"")
    stage.say("open", event("state", state="thinking"))
    stage.say("failed", event("error", code="bad", message="words"))
    failed = await stage.start("failed")
    cancelled = await stage.start("cancelled")
    await stage.call("POST", f"/v1/runs/{cancelled}:cancel", {})
    for run_id in (open_run, failed, cancelled):
        await tab.open(stage.page(run_id))
        seen = "agent_state" if run_id == open_run else "run_"
        await tab.see(f"document.getElementById('rows').innerText.includes('{seen}')")
        await tab.ask("document.querySelector('.event:not(.headings) button').click()")
        found = await tab.ask(CONTRASTS)
        assert len(found) > 20
        assert too_faint(found) == {}
    await tab.open(f"{stage.url}/runs")
    await tab.see("document.querySelectorAll('tbody tr').length === 3")
    assert too_faint(await tab.ask(CONTRASTS)) == {}
    await tab.ask("document.getElementById('door').hidden = false")
    assert too_faint(await tab.ask(CONTRASTS)) == {}
