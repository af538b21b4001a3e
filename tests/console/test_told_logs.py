"""Logs that a server of ours does not write unasked: after a power loss, with models and tools."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.testing.fake_agent import FakeAgent, Peer, head

from ..processes import ROOT
from .devtools import Tab, browser

CONSOLE = ROOT / "src" / "orchestrator" / "console"
KINDS = {".mjs": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
OUTPUT = "document.getElementById('output').textContent"
SEQS = "[...document.querySelectorAll('.seq')].slice(1).map((one) => one.textContent).join()"
AT = 1_700_000_000_000
BEGUN: list[tuple[str, dict[str, Any]]] = [
    ("run_started", {"session_id": "s", "agent_id": "planner"}),
    ("user_input", {"message_id": "msg_1", "content": "Plan it"}),
    ("agent_invoke_started", {"agent_id": "planner", "endpoint": "http://a", "attempt": 1}),
    ("agent_stream_delta", {"text": "one "}),
]


def logged(
    payloads: Iterable[tuple[str, dict[str, Any]]], after: int = 0, generation: str = ""
) -> bytes:
    """Return the frames of events, a second apart."""
    frames = []
    for seq, (kind, payload) in enumerate(payloads, after + 1):
        event = {
            "event_id": f"evt_{seq}", "run_id": "run_1", "seq": seq, "ts": AT + 1000 * seq,
            "type": kind, "payload": payload,
        }  # fmt: skip
        frames.append(f"id: {seq}{generation}\nevent: {kind}\ndata: {json.dumps(event)}\n\n")
    return "".join(frames).encode()


@dataclass
class Script:
    """A server of one run, whose page is ours and whose streams say what is put into `streams`."""

    tab: Tab
    run: dict[str, Any] = field(default_factory=dict)
    streams: list[asyncio.Queue[bytes]] = field(default_factory=list)
    resumed: list[str | None] = field(default_factory=list)

    async def play(self, peer: Peer) -> None:
        """Answer one request; a stream ends with an empty piece."""
        asked = await peer.request()
        path = asked.path.partition("?")[0]
        if path.endswith("/events/stream"):
            self.resumed.append(asked.headers.get("last-event-id"))
            stream = self.streams[len(self.resumed) - 1]
            await peer.send(head())
            while piece := await stream.get():
                await peer.send(piece)
            return
        if path.startswith("/v1/"):
            tree = {"run": self.run, "children": [], "has_more": True}
            said = json.dumps(tree if path.endswith("/tree") else self.run).encode()
            await peer.send(head(content_type="application/json") + said)
            return
        name = path.rpartition("/")[2]
        folder = {"console": CONSOLE / "static", "sdk": ROOT / "sdk" / "js"}.get(path.split("/")[1])
        file = folder / name if folder else CONSOLE / "templates" / "run.html"
        kind = KINDS.get(file.suffix, "text/html")
        await peer.send(head(content_type=kind) + file.read_bytes())


@asynccontextmanager
async def scripted(folder: Path, program: Path, status: str) -> AsyncIterator[Script]:
    """Serve a run of a status and open its page."""
    async with browser(program, folder) as tab:
        script = Script(tab, streams=[asyncio.Queue() for _ in range(2)])
        script.run = {
            "run_id": "run_1", "session_id": "s", "agent_id": "planner", "status": status,
            "created_at": AT + 1000, "ended_at": None, "parent_run_id": None,
        }  # fmt: skip
        async with FakeAgent(script.play) as server:
            await tab.look(1280, 900)
            await tab.open(f"{server.url}/runs/run_1")
            try:
                yield script
            finally:
                for stream in script.streams:
                    stream.put_nowait(b"")
            assert tab.problems == []


async def test_what_a_power_loss_took_is_taken_back(
    tmp_path: Path, program: Callable[[str], Path]
) -> None:
    async with scripted(tmp_path, program("chromium"), "RUNNING") as script:
        first, second = script.streams
        lost = [("agent_stream_delta", {"text": "two "}), ("agent_state", {"state": "in vain"})]
        first.put_nowait(logged([*BEGUN, *lost]))
        tab = script.tab
        await tab.see(f"{OUTPUT} === 'one two ' && {SEQS} === '1,2,3,6'")
        await tab.see("document.getElementById('doing').textContent === 'in vain'")
        first.put_nowait(b"")
        second.put_nowait(b'event: log_reset\ndata: {"after_seq":4}\n\n')
        await tab.see(f"{OUTPUT} === 'one ' && {SEQS} === '1,2,3'")
        assert script.resumed == [None, "6"], "the page has seen what was lost"
        assert await tab.ask("document.getElementById('doing').hidden")
        done = [("agent_stream_delta", {"text": "three"}), ("run_done", {"final_message": ""})]
        second.put_nowait(logged(done, after=4, generation=".1"))
        await tab.see("document.getElementById('state').textContent === 'done'")
        assert await tab.ask(OUTPUT) == "one three"
        assert await tab.ask(SEQS) == "1,2,3,6"
        assert await tab.text("#events-count") == "4 of 6"


async def test_models_tools_and_who_is_waited_for_are_seen(
    tmp_path: Path, program: Callable[[str], Path]
) -> None:
    model = {"request_id": "llm_1", "model": "gpt", "stream": True}
    tool = {"tool_call_id": "tc_1"}
    async with scripted(tmp_path, program("chromium"), "PAUSED_WAITING_APPROVAL") as script:
        events = [
            *BEGUN,
            ("llm_call_started", model),
            ("llm_call_done", {**model, "latency_ms": 1000, "total_tokens": 1234}),
            ("tool_call_created", {**tool, "tool_name": "book", "kind": "server", "args": {}}),
            (
                "policy_decision",
                {**tool, "decision": "require_approval", "reason": "", "rules": []},
            ),
            ("approval_required", {**tool, "approval_id": "ap_1", "tool_name": "book"}),
            ("run_paused", {"state": "PAUSED_WAITING_APPROVAL"}),
            ("agent_state", {"state": "asking", "detail": {"whom": "Ana"}}),
        ]
        script.streams[0].put_nowait(logged(events))
        tab = script.tab
        doing = "document.getElementById('doing').textContent"
        await tab.see(f'{doing} === \'asking · {{"whom":"Ana"}}\'')
        assert await tab.text("#state") == "paused, waiting approval"
        rows = "[...document.querySelectorAll('#tree li:not(.axis)')]"
        await tab.see(f"{rows}.length === 3")
        assert await tab.ask(f"{rows}.map((row) => row.className)") == [
            "wait open", "llm", "wait open",
        ]  # fmt: skip
        told = "(row) => [...row.querySelectorAll('.name, .note')].map((one) => one.textContent)"
        assert await tab.ask(f"{rows}.map({told})") == [
            ["planner", "paused, waiting approval"], ["gpt", "1,234 tokens"],
            ["book", "waiting, approval"],
        ]  # fmt: skip
        assert "there are more runs than these" in await tab.text("#tree-span")
