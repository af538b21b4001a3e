"""Agents that call agents through the platform, as any agent may, and note when they are left."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import msgspec

from orchestrator.testing.fake_agent import HungUp, Peer, Received, event, head

from .load import CUT


@dataclass
class Called:
    """One invocation of an agent: `left_at` is when its connection closed, by the loop's clock."""

    agent_id: str
    run_id: str
    body: dict[str, Any]
    left_at: float | None = None


@dataclass
class Relative:
    """An agent that calls others, each once per invocation, and ends when all of them have.

    Without others it stays until it is left, or with `answers` is done after `thinks_s`.
    """

    agent_id: str
    calls: Sequence[str] = ()
    answers: bool = False
    thinks_s: float = 0.0
    called: list[Called] = field(default_factory=list)

    async def __call__(self, peer: Peer) -> None:
        """Play one connection."""
        asked = await peer.request()
        if asked.method == "GET":
            await peer.send(head(404))
            return
        body = asked.json()
        noted = Called(self.agent_id, body["run_id"], body)
        self.called.append(noted)
        try:
            await peer.send(head() + event("delta", text=f"{self.agent_id} "))
            await self._work(peer, asked, body)
            await peer.send(event("done", usage={}))
        except HungUp:
            pass
        finally:
            noted.left_at = await peer.hung_up()

    async def _work(self, peer: Peer, asked: Received, body: dict[str, Any]) -> None:
        async with asyncio.TaskGroup() as tasks:
            for number, agent_id in enumerate(self.calls):
                tasks.create_task(_until_left(peer, call_child(asked, body, agent_id, f"{number}")))
            if not self.calls and not self.answers:
                await peer.hung_up()
            await asyncio.sleep(self.thinks_s)


async def _until_left(peer: Peer, work: Any) -> None:
    """Do what is asked, and give it up when the caller has gone."""
    async with asyncio.TaskGroup() as tasks:
        working = tasks.create_task(work)
        leaving = tasks.create_task(peer.hung_up())
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        working.cancel()
        leaving.cancel()


async def call_child(asked: Received, body: dict[str, Any], agent_id: str, key: str) -> bytes:
    """Call an agent as a child of the run that is asked for; return all that it says."""
    base = urlsplit(asked.headers["x-platform-base-url"])
    wanted = {
        "parent_run_id": body["run_id"],
        "idempotency_key": key,
        "input_message": {"role": "user", "content": body["input_message"]["content"]},
    }
    data = msgspec.json.encode(wanted)
    lines = (
        f"POST /v1/agents/{agent_id}:invoke HTTP/1.1", f"Host: {base.netloc}",
        "Connection: close", "Content-Type: application/json", f"Content-Length: {len(data)}",
        f"X-Run-Token: {asked.headers.get('x-run-token', '')}",
    )  # fmt: skip
    said = b""
    with suppress(*CUT):
        reader, writer = await asyncio.open_connection(base.hostname, base.port)
        try:
            writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + data)
            while more := await reader.read(1 << 16):
                said += more
        finally:
            writer.close()
    return said
