"""Hostile agents behind a real server: each run ends once, with its code, in bounded memory."""

import asyncio
import itertools
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path

import msgspec

from orchestrator.testing.fake_agent import FakeAgent, Peer, answering, event, head
from orchestrator.testing.history import violations

from ..processes import Running
from ..rigs import Tally
from .load import call, follow, invoke, register, whole
from .test_hostile_agents import FAILURES

Start = Callable[..., Running]
MIB = 1 << 20
FOREVER = event("delta", text="word " * 20)


async def ending(url: str, number: int) -> dict[str, object]:
    """Run the registered agent once and return the payload of the run's last event."""
    run_id = await invoke(url, f"s{number}")
    log: list[bytes] = []
    async with asyncio.timeout(60):
        while not await follow(url, run_id, log):
            pass
    assert violations(log, log, over=True) == []
    last = msgspec.json.decode(log[-1])
    assert last["type"] == "run_failed"
    return dict(last["payload"])


def peak(server: Running) -> int:
    """Return the most memory that the server has held, in bytes."""
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


async def test_every_bad_answer_is_one_failed_run(start_server: Start) -> None:
    server = await asyncio.to_thread(start_server)
    for number, (name, (pieces, code, _, words)) in enumerate(FAILURES.items()):
        async with FakeAgent(answering(*pieces)) as agent:
            await register(server.url, agent.url)
            payload = await ending(server.url, number)
        assert (payload["code"], name) == (code, name)
        assert words in str(payload["message"])
    assert "Traceback" not in server.said()


async def _one(url: str, case: str, number: int, limit: asyncio.Semaphore) -> tuple[str, str]:
    """Run the agent of a case once; return the case and the code that the run ended with."""
    message = {"role": "user", "content": "go"}
    body = {"session_id": f"crowd-{number}", "agent_id": case, "input_message": message}
    async with limit:
        status, answer = await call(url, "POST", "/internal/invoke", body)
        assert status == 200, answer
        log: list[bytes] = []
        await whole(url, answer["run_id"], log)
    assert violations(log, log, over=True) == []
    last = msgspec.json.decode(log[-1])
    return case, last["payload"].get("code", last["type"])


async def test_bad_agents_by_the_thousand_end_each_run_once(
    start_server: Start, tally: Tally, rounds_of: Callable[[int], int]
) -> None:
    count = rounds_of(4000)
    server = await asyncio.to_thread(start_server)
    codes = {name.replace(" ", "-"): failure[1] for name, failure in FAILURES.items()}
    async with AsyncExitStack() as agents:
        for case, (pieces, *_) in zip(codes, FAILURES.values(), strict=True):
            agent = await agents.enter_async_context(FakeAgent(answering(*pieces)))
            fields = {"agent_id": case, "name": case, "endpoint": agent.url}
            status, _ = await call(server.url, "POST", "/v1/agents/register", fields)
            assert status == 200
        limit = asyncio.Semaphore(64)
        async with asyncio.TaskGroup() as tasks:
            runs = [
                tasks.create_task(_one(server.url, case, number, limit))
                for number, case in zip(range(count), itertools.cycle(codes), strict=False)
            ]
    for run in runs:
        case, code = run.result()
        assert (case, code) == (case, codes[case])
        tally.fire(code)
    tally.round(count)
    assert "Traceback" not in server.said()


async def test_agents_that_never_end_cost_bounded_memory(start_server: Start) -> None:
    server = await asyncio.to_thread(start_server, MAX_RUN_BYTES="4MB", AGENT_TIMEOUT_MS="5000")
    before = peak(server)
    numbers = itertools.count()

    async def gigabyte_line(peer: Peer) -> None:
        await peer.request()
        await peer.send(head(), *[b"x" * MIB] * 1024)

    async def endless_words(peer: Peer) -> None:
        await peer.request()
        await peer.send(head(), *[FOREVER * 1000] * 100_000)

    async def endless_comments(peer: Peer) -> None:
        await peer.request()
        await peer.send(head())
        while True:
            await peer.send(b": still here\n\n" * 1000)

    for script, code in (
        (gigabyte_line, "agent_protocol"),
        (endless_words, "run_too_large"),
        (endless_comments, "agent_timeout"),
    ):
        async with FakeAgent(script) as agent:
            await register(server.url, agent.url)
            async with asyncio.TaskGroup() as tasks:
                runs = [tasks.create_task(ending(server.url, next(numbers))) for _ in range(4)]
        assert {run.result()["code"] for run in runs} == {code}
        assert sum(peer.sent for peer in agent.peers) > MIB, "it really sent much"
    assert peak(server) - before < 128 * MIB
