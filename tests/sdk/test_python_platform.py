"""Agents of the Python SDK beside a real server: registration, leaving, children, keys."""

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from secrets import token_hex
from typing import Any

import pytest

from orchestrator_sdk import (
    Agent,
    AsyncClient,
    Context,
    Done,
    Event,
    RunCancelled,
    RunFailed,
    State,
    Timeouts,
    serving,
)

from ..processes import STOP_S, Running, free_port, request
from .python_rig import SOON_S, Served, eventually, is_healthy, program, registering, served, status

ROLL_CALL = """
import asyncio
from orchestrator_sdk import agent

@agent("worker")
async def worker(ctx):
    yield "a word"
    await asyncio.sleep(float(ctx.text))
    yield " and another"

worker.run(port=0)
"""


async def test_a_run_holds_all_that_the_agent_said(server: str) -> None:
    async def says(ctx: Context) -> AsyncIterator[Any]:
        yield State("thinking", {"step": 1})
        yield Event("citation", {"url": "x"})
        yield f"You said {ctx.text}"
        yield Done(usage={"tokens": 3})

    async with served(server) as here:
        handle = await here.run(Agent("says", says))
        events = [event async for event in handle]
        result = await handle.result()
    assert [event.type for event in events] == [
        "run_started", "user_input", "agent_invoke_started", "agent_state", "agent_event",
        "agent_stream_delta", "agent_invoke_done", "run_done",
    ]  # fmt: skip
    assert [event.seq for event in events] == list(range(1, 9))
    assert events[4].payload == {"name": "citation", "data": {"url": "x"}}
    assert (result.text, result.usage) == ("You said Hello", {"tokens": 3})


async def test_an_agent_registers_lives_and_leaves(
    start_server: Callable[..., Running], tmp_path: Path
) -> None:
    server = start_server()
    env = {"ORCHESTRATOR_URL": server.url}
    with program(tmp_path, ROLL_CALL, **env) as (process, _, url):
        async with AsyncClient(server.url) as client:
            await eventually(lambda: is_healthy(client, "worker"), "it is healthy")
            shown = request("GET", f"{server.url}/v1/agents/worker").json()
            assert shown["endpoint"] == url
            assert shown["instances"][0]["instance_id"].startswith("inst_")
            handle = await client.run("worker", "1")
            assert await anext(handle.deltas()) == "a word"
            process.send_signal(signal.SIGTERM)
            await eventually(lambda: _is(client, "draining"), "it has left")
            assert await handle.text() == "a word and another", "what was under way is finished"
            assert await asyncio.to_thread(process.wait, STOP_S) == 0


async def _is(client: AsyncClient, wanted: str) -> bool:
    return await status(client, "worker") == wanted


async def test_heartbeats_go_on_and_a_forgotten_agent_registers_again(server: str) -> None:
    async def beat_after(client: AsyncClient, ts: int) -> bool:
        [found] = [a for a in await client.agents() if a.agent_id == "beats"]
        return (found.last_heartbeat_at or 0) > ts

    async with served(server) as here:
        await here.add(Agent("beats", _says("x"), capabilities=["talk"]), heartbeat_s=0.1)
        [first] = await here.client.agents(capability="talk")
        seen = first.last_heartbeat_at
        assert seen is not None
        await eventually(lambda: beat_after(here.client, seen), "another heartbeat")
        assert request("DELETE", f"{server}/v1/agents/beats").status == 200
        await eventually(lambda: is_healthy(here.client, "beats"), "it is back")


async def test_an_agent_answers_while_the_platform_is_away_and_registers_when_it_comes(
    start_server: Callable[..., Running],
) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    async with serving(Agent("early", _says("x")), orchestrator_url=url, heartbeat_s=0.2):
        await asyncio.to_thread(start_server, HTTP_PORT=str(port))
        async with AsyncClient(url) as client:
            await eventually(lambda: is_healthy(client, "early"), "it is registered")
            assert await (await client.run("early", "Hi")).text() == "x"


async def test_a_cancelled_run_cancels_its_agent(server: str) -> None:
    cleaned: list[float] = []

    async def waits(_: Context) -> AsyncIterator[str]:
        try:
            yield "a word"
            await asyncio.Event().wait()
        finally:
            cleaned.append(time.monotonic())

    async with served(server) as here:
        handle = await here.run(Agent("waits", waits))
        assert await anext(handle.deltas()) == "a word"
        await handle.cancel("enough")
        since = time.monotonic()
        with pytest.raises(RunCancelled, match="enough"):
            await handle.result()
        await eventually(lambda: cleaned, "the agent cleans up")
        assert cleaned[0] - since <= SOON_S
        await handle.cancel()


async def test_who_does_not_end_in_time_is_cancelled_at_the_end(server: str) -> None:
    cleaned: list[str] = []

    async def for_ever(_: Context) -> AsyncIterator[str]:
        try:
            yield "a word"
            await asyncio.Event().wait()
        finally:
            cleaned.append("up")

    async with AsyncClient(server) as client:
        async with registering(
            client, Agent("for-ever", for_ever), orchestrator_url=server, drain_s=1
        ):
            handle = await client.run("for-ever", "x")
            assert await anext(handle.deltas()) == "a word"
        assert cleaned == ["up"]
        with pytest.raises(RunFailed):
            await handle.result()


# ------------------------------------------------------------ children


def _says(*words: str) -> Any:
    async def says(_: Context) -> AsyncIterator[str]:
        for word in words:
            yield word

    return says


async def test_an_agent_calls_another_and_reads_its_words_or_its_message(server: str) -> None:
    async def asks(ctx: Context) -> AsyncIterator[Any]:
        yield await ctx.call("answers", "one")
        child = ctx.call("answers", "two", context={"why": "test"})
        async for word in child:
            yield word
        yield Done(usage={"child": child.run_id, **child.usage})

    async def answers(ctx: Context) -> AsyncIterator[Any]:
        yield ctx.text
        yield "!"
        yield Done(usage={"tokens": 2})

    async with served(server) as here:
        await here.add(Agent("answers", answers))
        handle = await here.run(Agent("asks", asks))
        result = await handle.result()
        events = (await here.client.events(handle.run_id)).events
        children = [e.payload["child_run_id"] for e in events if e.type == "agent_called_child"]
        child = await here.client.get(result.usage["child"])
    assert result.text == "one!two!"
    assert result.usage == {"child": children[1], "tokens": 2}
    assert (child.parent_run_id, child.status) == (handle.run_id, "DONE")
    assert child.session_id == handle.session_id


async def test_a_failed_child_raises_its_code(server: str) -> None:
    said: list[str] = []

    async def asks(ctx: Context) -> str:
        try:
            return await ctx.call("fails", "x")
        except RunFailed as error:
            said.append(f"{error.code}, {error.run_id[:4]}")
        return await ctx.call("nobody-there", "x")

    async def fails(_: Context) -> str:
        raise ValueError

    async with served(server) as here:
        await here.add(Agent("fails", fails))
        handle = await here.run(Agent("asks-in-vain", asks))
        with pytest.raises(RunFailed) as failed:
            await handle.result()
    assert said == ["agent_error, run_"]
    assert failed.value.code == "agent_error"
    assert "AgentNotFound" in failed.value.message


async def test_leaving_a_child_before_its_end_cancels_it(server: str) -> None:
    left: list[str] = []
    seen = asyncio.Event()

    async def leaves(ctx: Context) -> str:
        child = ctx.call("talks-on", "x")
        async for word in child:
            left.append(word)
            break
        left.append(child.run_id)
        await seen.wait()
        return "went on"

    async def talks_on(_: Context) -> AsyncIterator[str]:
        yield "a word"
        await asyncio.Event().wait()

    async with served(server) as here:
        await here.add(Agent("talks-on", talks_on))
        handle = await here.run(Agent("leaves", leaves))
        await eventually(lambda: len(left) > 1, "it has left")
        with pytest.raises(RunCancelled, match="hung up"):
            await here.client.attach(left[1]).result()
        seen.set()
        assert await handle.text() == "went on"
    assert left[0] == "a word"


async def test_another_attempt_meets_the_same_children(server: str) -> None:
    """The first child was done and is not run again; the second died with its parent and is."""
    asked: list[str] = []
    heard = asyncio.Event()

    async def counts(ctx: Context) -> AsyncIterator[str]:
        asked.append(ctx.text)
        yield f"{ctx.text}{asked.count(ctx.text)} "
        if asked.count("slow") == 1 and ctx.text == "slow":
            heard.set()
            await asyncio.Event().wait()

    async def twice(ctx: Context) -> AsyncIterator[str]:
        yield await ctx.call("counts", "quick")
        if ctx.attempt == 1:
            async with asyncio.TaskGroup() as tasks:
                slow = tasks.create_task(_whole(ctx.call("counts", "slow")))
                await heard.wait()
                slow.cancel()
            raise ConnectionResetError
        async for word in ctx.call("counts", "slow"):
            yield word

    retry = {"max_attempts": 2, "backoff_ms": 1, "codes": ["agent_error"]}
    async with served(server) as here:
        await here.add(Agent("counts", counts))
        handle = await here.run(Agent("twice", twice, options={"retry": retry}))
        assert await handle.text() == "quick1 slow2 "
        assert (await here.client.get(handle.run_id)).attempt == 2
    assert asked == ["quick", "slow", "slow"]


async def _whole(child: Any) -> str:
    return str(await child)


# ------------------------------------------------------------ keys


async def test_with_keys_agents_register_and_call_with_what_they_were_given(
    start_server: Callable[..., Running],
) -> None:
    root, token = token_hex(32), token_hex(16)
    server = start_server(ADMIN_KEY=root, EGRESS_ALLOW="loopback")

    async def asks(ctx: Context) -> str:
        return await ctx.call("below", ctx.text)

    async with served(server.url, root) as here:
        key = _agent_key(server.url, root, "above")
        await here.add(Agent("below", _says("below"), auth_token=token))
        above = Agent("above", asks)
        await here.add(above, orchestrator_key=key)
        assert await (await here.client.run("above", "x")).text() == "below"
        await _is_unknown_to_strangers(server.url, here)


def _agent_key(url: str, root: str, agent_id: str) -> str:
    wanted = {"name": agent_id, "role": "agent", "agent_id": agent_id}
    made = request("POST", f"{url}/v1/keys", wanted, {"Authorization": f"Bearer {root}"})
    assert made.status == 201, made.body
    return str(made.json()["key"])


async def _is_unknown_to_strangers(url: str, here: Served) -> None:
    """An agent with a wrong key answers, but the platform does not take it."""
    stranger = Agent("stranger", _says("x"))
    async with (
        serving(stranger, orchestrator_url=url, orchestrator_key="ok_live_no", heartbeat_s=0.05),
        AsyncClient(url, "ok_live_no", timeouts=Timeouts(give_up=0.0)) as client,
    ):
        with pytest.raises(Exception, match="key"):
            await client.agents()
        assert await status(here.client, "stranger") == ""
