"""A thousand sessions with five messages at once each: in order, never mixed, and cheap."""

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from orchestrator.testing.fake_agent import FakeAgent

from ..rigs import Tally
from ..stores import BOTH, Kept
from .families import Relative
from .load import call
from .nursery import nursery

pytestmark = BOTH
AT_ONCE = 5
WIDTH = 100
"""How many requests are on their way at a time."""
THINKS_S = 0.05
"""How long an agent takes, so that messages meet a busy session."""
PER_SESSION = 64 << 10
"""Bytes of the server's memory that a session with its five runs may cost."""
MIB = 1 << 20
OPEN = "created,running,paused_waiting_tool,paused_waiting_approval"


async def registered(url: str, agent: Relative, stack: AsyncExitStack) -> None:
    """Serve an agent until the stack is left, and register it."""
    served = await stack.enter_async_context(FakeAgent(agent))
    body = {"agent_id": agent.agent_id, "name": agent.agent_id, "endpoint": served.url}
    assert (await call(url, "POST", "/v1/agents/register", body))[0] == 200


async def told(url: str, path: str) -> Any:
    status, answer = await call(url, "GET", path)
    assert status == 200, answer
    return answer


async def talk(url: str, session: str, room: asyncio.Semaphore) -> set[str]:
    """Send all messages of a session at once; return their runs."""

    async def one(n: int) -> str:
        body = {
            "session_id": session,
            "agent_id": "parent" if n == AT_ONCE - 1 else "talker",
            "input_message": {"role": "user", "content": f"{session} {n}"},
        }
        async with room:
            status, answer = await call(url, "POST", "/internal/invoke", body)
        assert status == 200, answer
        return str(answer["run_id"])

    async with asyncio.TaskGroup() as tasks:
        asked = [tasks.create_task(one(n)) for n in range(AT_ONCE)]
    return {task.result() for task in asked}


async def all_over(url: str) -> None:
    """Return when no run is open any more: nobody waits for somebody who waits for him."""
    async with asyncio.timeout(300):
        while (await told(url, f"/v1/runs?status={OPEN}&limit=1"))["runs"]:
            await asyncio.sleep(0.05)


async def judged(url: str, session: str, runs: set[str], agents: list[Relative]) -> int:
    """Compare a session's transcript, and what agents were told, with the order of acceptance."""
    found = (await told(url, f"/v1/runs?session_id={session}&limit=100"))["runs"][::-1]
    roots = [run for run in found if "parent_run_id" not in run]
    order = [run["run_id"] for run in roots]
    assert set(order) == runs
    assert {run["status"] for run in found} == {"DONE"}
    assert len(found) == AT_ONCE + 1, "one of them called a child"
    messages = (await told(url, f"/v1/sessions/{session}/messages"))["messages"]
    assert [m["run_id"] for m in messages] == [run_id for run_id in order for _ in "ua"]
    assert [m["role"] for m in messages] == ["user", "assistant"] * AT_ONCE
    calls = {one.run_id: one.body for agent in agents for one in agent.called}
    for at, run_id in enumerate(order):
        before = [{"role": m["role"], "content": m["content"]} for m in messages[: at * 2]]
        assert calls[run_id]["messages"] == before
        assert calls[run_id]["input_message"]["content"] == messages[at * 2]["content"]
    queued = 0
    for run_id in order:
        page = await told(url, f"/v1/runs/{run_id}/events?types=user_input")
        queued += page["events"][0]["payload"].get("queued", False)
    return queued


async def test_a_thousand_sessions_keep_their_order(
    tmp_path: Path, tally: Tally, rounds_of: Callable[[int], int], kept: Kept
) -> None:
    sessions = [f"s{n}" for n in range(rounds_of(1000))]
    tally.expect("messages queued", "children called")
    agents = [
        Relative("talker", answers=True, thinks_s=THINKS_S), Relative("parent", ["child"]),
        Relative("child", answers=True),
    ]  # fmt: skip
    with nursery() as nurse:
        server = await asyncio.to_thread(nurse.start(tmp_path, {}, **kept.settings).up)
        async with AsyncExitStack() as stack:
            for agent in agents:
                await registered(server.url, agent, stack)
            await talk(server.url, "before", asyncio.Semaphore(1))
            await all_over(server.url)
            before, room = server.peak(), asyncio.Semaphore(WIDTH)
            runs: dict[str, asyncio.Task[set[str]]] = {}
            async with asyncio.TaskGroup() as tasks:
                for session in sessions:
                    runs[session] = tasks.create_task(talk(server.url, session, room))
            await all_over(server.url)
            grown = server.peak() - before
            for session in sessions:
                queued = await judged(server.url, session, runs[session].result(), agents)
                tally.fire("messages queued", queued)
                tally.round()
            tally.fire("children called", len(agents[2].called) - 1)
        assert grown < 16 * MIB + len(sessions) * PER_SESSION, f"{grown / MIB:.0f} MiB"
    assert len(agents[2].called) == len(sessions) + 1
    asked = [one.run_id for agent in agents for one in agent.called]
    assert len(asked) == len(set(asked)) == (len(sessions) + 1) * (AT_ONCE + 1), "each once"
