"""What the tests of the Python SDK share: runs of served agents, raw invocations, programs."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import httpx
import msgspec
import uvicorn

from orchestrator_sdk import Agent, AsyncClient, AsyncRunHandle, serving
from orchestrator_sdk.sse import SSEEvent, SSEParser

from ..processes import ROOT, STOP_S, first_line, spawn, until

SDK = ROOT / "sdk" / "python"
PATIENCE_S = 20.0
SOON_S = 2.0
"""A second is promised; a busy machine gets another one."""


class Served:
    """A server that is there, and agents that are served for it."""

    def __init__(self, url: str, key: str | None, stack: AsyncExitStack) -> None:
        self.url = url
        self._key = key
        self._stack = stack
        self.client = AsyncClient(url, key)

    async def add(self, agent: Agent, **how: Any) -> str:
        """Serve an agent, return once the platform knows it; hand out its address."""
        wanted = {"orchestrator_url": self.url, "orchestrator_key": self._key, **how}
        return await self._stack.enter_async_context(registering(self.client, agent, **wanted))

    async def run(self, agent: Agent, text: str = "Hello", **how: Any) -> AsyncRunHandle:
        """Serve an agent and start a run of it."""
        await self.add(agent)
        return await self.client.run(agent.id, text, **how)


@asynccontextmanager
async def served(url: str, key: str | None = None) -> AsyncIterator[Served]:
    """Hand out what serves agents until the end of the body."""
    async with AsyncExitStack() as stack:
        found = Served(url, key, stack)
        await stack.enter_async_context(found.client)
        yield found


@asynccontextmanager
async def registering(client: AsyncClient, agent: Agent, **how: Any) -> AsyncIterator[str]:
    """Serve an agent and wait until its heartbeat was heard."""
    async with serving(agent, **how) as url:
        await eventually(lambda: is_healthy(client, agent.id), f"{agent.id} is healthy")
        yield url


async def is_healthy(client: AsyncClient, agent_id: str) -> bool:
    return (await status(client, agent_id)) == "healthy"


async def status(client: AsyncClient, agent_id: str) -> str:
    """Return the status of an agent, empty where it is not known."""
    return next((a.status for a in await client.agents() if a.agent_id == agent_id), "")


async def eventually(condition: Callable[[], Any], what: str) -> None:
    """Wait for a condition, which may be async."""
    try:
        async with asyncio.timeout(PATIENCE_S):
            while not await _truth(condition()):
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"{what}: not within {PATIENCE_S} s") from None


async def _truth(found: Any) -> bool:
    return bool(await found if asyncio.iscoroutine(found) else found)


def invocation(content: Any = "Hello", **more: Any) -> dict[str, Any]:
    """Return the body of an invocation."""
    said = {"role": "user", "content": content}
    ids = {"agent_id": "a", "session_id": "sess_1", "run_id": "run_1"}
    return {**ids, "input_message": said, "messages": [], "context": {}, **more}


async def answer(
    url: str,
    body: Any = None,
    headers: Mapping[str, str] = MappingProxyType({}),
) -> list[tuple[str, Any]]:
    """Invoke an agent and return its frames as (event, data)."""
    async with httpx.AsyncClient(timeout=PATIENCE_S) as http:
        found = await http.post(f"{url}/invoke", json=body or invocation(), headers=dict(headers))
    assert found.status_code == 200, found.text
    assert found.headers["content-type"].startswith("text/event-stream")
    return list(map(opened, SSEParser().feed(found.content)))


@asynccontextmanager
async def up(app: Any) -> AsyncIterator[str]:
    """Serve any ASGI application on a real socket while the body runs."""
    config = uvicorn.Config(app, port=0, log_config=None, ws="none", lifespan="off")
    server = uvicorn.Server(config)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(server._serve())
        await eventually(lambda: server.started, "it listens")
        try:
            yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        finally:
            server.should_exit = True


def opened(event: SSEEvent) -> tuple[str, Any]:
    return event.event, msgspec.json.decode(event.data)


@contextmanager
def program(folder: Path, source: str, **env: str):
    """Run a program that serves an agent; hand out the process, its log and its address."""
    path, log = folder / "program.py", folder / "program.log"
    path.write_text(source)
    paths = {"PYTHONPATH": str(SDK / "src")}
    process = spawn([sys.executable, str(path)], folder, log, {**paths, **env})
    try:
        line = until(lambda: first_line(log), "the agent says where it answers")
        assert "answers at" in line, log.read_text()
        yield process, log, line.split()[-1]
    finally:
        process.kill()
        process.wait(STOP_S)


async def broken_rules(url: str) -> list[Any]:
    """Return what the probe finds to mend, or cannot decide, in an agent."""
    command = [sys.executable, "-m", "orchestrator", "probe", url, "--json"]
    done = await asyncio.to_thread(
        subprocess.run, command, capture_output=True, text=True, timeout=60, check=False
    )
    verdicts = [msgspec.json.decode(line) for line in done.stdout.splitlines()]
    wrong = [verdict for verdict in verdicts if verdict["good"] is not True]
    assert done.returncode == 0, wrong or done.stderr
    assert len(verdicts) > 8
    return wrong
