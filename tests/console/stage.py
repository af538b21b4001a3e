"""What the tests of the pages play on: a server, an agent that says what it is told, a browser."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.parse import quote

from orchestrator.testing.fake_agent import FakeAgent, HungUp, Peer, event, head

from ..processes import Answer, Running, request, start_server
from .devtools import Tab, browser

DONE = event("done", final_message=None)
HANG_UP = b""


@dataclass
class Stage:
    """A server at `url` with the agent `demo`; `told` are what it still has to say, by message."""

    folder: Path
    program: Path
    server: Running
    headers: Mapping[str, str] = field(default_factory=dict)
    told: dict[str, asyncio.Queue[bytes]] = field(
        default_factory=lambda: defaultdict(asyncio.Queue)
    )
    endpoint: str = ""

    @property
    def url(self) -> str:
        """Return the server's address."""
        return self.server.url

    async def play(self, peer: Peer) -> None:
        """Answer one invocation: frames as they are told for its message, to HANG_UP."""
        received = await peer.request()
        if received.method == "GET":
            return
        queue = self.told[received.json()["input_message"]["content"]]
        await peer.send(head())
        async with asyncio.TaskGroup() as tasks:
            gone = tasks.create_task(peer.hung_up())
            while not gone.done():
                told = tasks.create_task(queue.get())
                await asyncio.wait({told, gone}, return_when=asyncio.FIRST_COMPLETED)
                frame = told.result() if told.done() else b""
                told.cancel()
                if not frame:
                    gone.cancel()
                    break
                with suppress(HungUp):
                    await peer.send(frame)

    def say(self, message: str, *frames: bytes) -> None:
        """Have the agent send frames to whom that message was given."""
        for frame in frames:
            self.told[message].put_nowait(frame)

    def words(self, message: str, *words: str) -> None:
        """Have the agent say words."""
        self.say(message, *(event("delta", text=word) for word in words))

    async def call(self, method: str, path: str, body: Any = None) -> Answer:
        """Make one request with the stage's key."""
        return await asyncio.to_thread(
            request, method, f"{self.url}{path}", body, dict(self.headers)
        )

    async def register(self, name: str = "demo", **more: Any) -> None:
        """Register the agent under a name."""
        card = {"agent_id": name, "name": name, "endpoint": self.endpoint, **more}
        told = await self.call("POST", "/v1/agents/register", card)
        assert told.status == 200, told.body

    async def start(self, message: str, agent: str = "demo", **more: Any) -> str:
        """Start a run and return its id."""
        body = {"agent_id": agent, "input_message": {"role": "user", "content": message}, **more}
        made = await self.call("POST", "/v1/runs", body)
        assert made.status == 201, made.body
        return str(made.json()["run_id"])

    async def child(self, parent: str, message: str, agent: str = "demo") -> None:
        """Call an agent for a run, and read the answer to its end."""
        body = {"parent_run_id": parent, "input_message": {"role": "user", "content": message}}
        told = await self.call("POST", f"/v1/agents/{agent}:invoke", body)
        assert told.status == 200, told.body

    def page(self, run_id: str) -> str:
        """Return the address of a run's page."""
        return f"{self.url}/runs/{quote(run_id, safe='')}"

    @asynccontextmanager
    async def tab(self, name: str = "browser") -> AsyncIterator[Tab]:
        """Open a browser; whatever it complained of fails the test."""
        folder = self.folder / name
        folder.mkdir()
        async with browser(self.program, folder) as tab:
            await tab.look(1280, 900)
            yield tab
            assert tab.problems == []


@asynccontextmanager
async def staged(
    folder: Path, program: Path, headers: Mapping[str, str] = MappingProxyType({}), **env: str
) -> AsyncIterator[Stage]:
    """Start a server and an agent that is registered as `demo`, once retried."""
    server = await asyncio.to_thread(start_server, folder, **env)
    stage = Stage(folder, program, server, headers)
    try:
        async with FakeAgent(stage.play) as agent:
            stage.endpoint = agent.url
            await stage.register(on_lost="retry", retry={"max_attempts": 2})
            yield stage
    finally:
        stage.server.kill()
