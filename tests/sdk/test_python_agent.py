"""Agents of the Python SDK, as a caller of the agent protocol meets them."""

import asyncio
import logging
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import msgspec
import pytest
from starlette.applications import Starlette

from orchestrator_sdk import (
    Agent,
    AgentError,
    CannotListen,
    Context,
    Done,
    Event,
    Pause,
    State,
    agent,
    mount,
    serving,
)
from orchestrator_sdk.frames import PIECE_MAX

from .python_rig import PATIENCE_S, SOON_S, answer, broken_rules, eventually, invocation

HELLO = "Hello, world"


@agent("words")
async def words(ctx: Context) -> AsyncIterator[str]:
    for word in ("You", " said", " ", ctx.text):
        yield word
        await asyncio.sleep(0.02)


async def test_words_become_deltas_and_the_end_is_said() -> None:
    async with serving(words) as url:
        frames = await answer(url)
    assert frames == [("delta", {"text": t}) for t in ("You", " said", " ", "Hello")] + [
        ("done", {})
    ]


async def test_a_returned_text_is_the_message_and_its_words() -> None:
    async def whole(ctx: Context) -> str:
        return ctx.text.upper()

    async def nothing(_: Context) -> None:
        return None

    async with serving(Agent("whole", whole)) as url:
        said = [("delta", {"text": "HELLO"}), ("done", {"final_message": "HELLO"})]
        assert await answer(url) == said
    parts = [{"type": "text", "text": "HEL"}, {"type": "image_url"}, {"type": "text", "text": "LO"}]

    async def in_parts(_: Context) -> Any:
        return parts

    async with serving(Agent("parts", in_parts)) as url:
        assert await answer(url) == [said[0], ("done", {"final_message": parts})]
    async with serving(Agent("nothing", nothing)) as url:
        assert await answer(url) == [("done", {})]


async def test_everything_an_agent_may_say() -> None:
    async def says(_: Context) -> AsyncIterator[Any]:
        yield State("thinking", {"step": 1})
        yield State("writing")
        yield Event("citation", {"url": "x"})
        yield "a"
        yield ""
        yield Done("b", {"tokens": 3})
        raise AssertionError("nothing is read behind the end")

    async def pauses(_: Context) -> AsyncIterator[Any]:
        yield Pause(["tc_1"], {"at": 2})

    async with serving(Agent("says", says)) as url:
        assert await answer(url) == [
            ("state", {"state": "thinking", "detail": {"step": 1}}),
            ("state", {"state": "writing"}),
            ("citation", {"url": "x"}),
            ("delta", {"text": "a"}),
            ("done", {"final_message": "b", "usage": {"tokens": 3}}),
        ]
    async with serving(Agent("pauses", pauses)) as url:
        assert await answer(url) == [("pause", {"wait_for": ["tc_1"], "state": {"at": 2}})]
    for bad in ("delta", "", "two\nlines"):
        with pytest.raises(ValueError, match="cannot name an event"):
            Event(bad)


async def test_errors_have_a_code_and_leak_nothing(caplog: pytest.LogCaptureFixture) -> None:
    async def refuses(_: Context) -> AsyncIterator[str]:
        yield "a"
        raise AgentError("no_weather", "the sky is closed")

    async def breaks(_: Context) -> AsyncIterator[str]:
        yield ""
        raise ValueError("the password is hunter2")

    async def mumbles(_: Context) -> AsyncIterator[Any]:
        yield 5

    def is_not_async(_: Context) -> Any:
        return 5

    async with serving(Agent("refuses", refuses)) as url:
        assert (await answer(url))[1:] == [
            ("error", {"code": "no_weather", "message": "the sky is closed"})
        ]
    with caplog.at_level(logging.ERROR, "orchestrator_sdk"):
        for wrong, named in ((breaks, "ValueError"), (mumbles, "TypeError"),
                             (is_not_async, "TypeError")):  # fmt: skip
            async with serving(Agent("wrong", wrong)) as url:
                [(event, data)] = await answer(url)
            assert (event, data["code"]) == ("error", "agent_error")
            assert named in data["message"]
            assert "hunter2" not in data["message"]
            assert "Traceback" not in data["message"]
    assert "hunter2" in caplog.text, "who runs the agent can read why"


async def test_what_is_no_ordinary_exception_ends_the_run_as_well(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def waits_in_vain(_: Context) -> str:
        never: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        never.cancel()
        return await never

    async def exits(_: Context) -> str:
        sys.exit(3)

    async def calls(ctx: Context) -> str:
        return await ctx.call("other", "x")

    wrong = {"CancelledError": waits_in_vain, "SystemExit": exits, "OrchestratorError": calls}
    for named, handler in wrong.items():
        async with serving(Agent("wrong", handler)) as url:
            [(event, data)] = await answer(url)
        assert (event, data["code"]) == ("error", "agent_error")
        assert named in data["message"]
    assert "did not come through the orchestrator" in caplog.text


async def test_the_context_carries_the_invocation() -> None:
    seen: list[Context] = []

    async def looks(ctx: Context) -> str:
        seen.append(ctx)
        return ""

    body = invocation(
        [{"type": "text", "text": "to"}, {"type": "image_url"}, {"type": "text", "text": "day"}],
        messages=[{"role": "assistant", "content": "before"}],
        context={"user_id": "ann"},
        resume={"state": {"at": 2}, "results": [{"tool_call_id": "tc_1", "status": "succeeded"}]},
    )
    headers = {
        "X-Run-ID": "run_1", "X-Session-ID": "sess_1", "X-Attempt": "2", "traceparent": "00-1-2-01",
        "X-Platform-Base-URL": "http://platform/", "X-Run-Token": "ort_canary",
    }  # fmt: skip
    async with serving(Agent("looks", looks)) as url:
        await answer(url, body, headers)
        minimal = {"input_message": {"content": "x"}}
        await answer(url, minimal, {"X-Run-ID": "run_2"})
    ctx, bare = seen
    assert (ctx.run_id, ctx.session_id, ctx.agent_id, ctx.attempt) == ("run_1", "sess_1", "a", 2)
    assert (ctx.text, ctx.messages[0].text, ctx.context) == ("today", "before", {"user_id": "ann"})
    assert (ctx.traceparent, ctx.platform_base_url) == ("00-1-2-01", "http://platform")
    assert ctx.resume is not None
    assert ctx.resume.state == {"at": 2}
    assert ctx.resume.results[0]["tool_call_id"] == "tc_1"
    assert ctx.run_token is not None
    assert ctx.run_token.reveal() == "ort_canary"
    assert "canary" not in f"{ctx} {ctx!r} {ctx.run_token} {ctx.run_token!r} {vars(ctx)}"
    with pytest.raises(TypeError):
        msgspec.json.encode(ctx.run_token)
    assert (bare.run_id, bare.agent_id, bare.attempt, bare.resume) == ("run_2", "looks", 1, None)


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"input_message": 5}', b"\xff"])
async def test_what_is_no_invocation_is_refused(body: bytes) -> None:
    async with serving(words) as url, httpx.AsyncClient() as http:
        found = await http.post(f"{url}/invoke", content=body)
        assert (found.status_code, found.json()["code"]) == (400, "invalid_request")
        assert (await http.get(f"{url}/invoke")).status_code == 405


async def test_an_agent_with_a_token_answers_nobody_else() -> None:
    async with serving(Agent("shy", words.handler, auth_token="s3cret")) as url:
        async with httpx.AsyncClient() as http:
            for shown in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "s3cret"}):
                found = await http.post(f"{url}/invoke", json=invocation(), headers=shown)
                assert found.status_code == 401
        assert (await answer(url, None, {"Authorization": "Bearer s3cret"}))[-1] == ("done", {})


async def test_what_one_line_cannot_hold_comes_in_pieces() -> None:
    long = "\x01" * (2 * PIECE_MAX + 1)

    async def whole(_: Context) -> str:
        return long

    async def both(_: Context) -> AsyncIterator[Any]:
        yield long
        yield Done(long)

    for handler in (whole, both):
        async with serving(Agent("long", handler)) as url:
            frames = await answer(url)
        assert [event for event, _ in frames] == ["delta"] * 3 + ["done"]
        assert "".join(data["text"] for _, data in frames[:-1]) == long
        assert frames[-1][1] == {}


async def test_half_a_surrogate_pair_is_no_failure() -> None:
    async def halves(_: Context) -> AsyncIterator[str]:
        yield "a\ud83d"
        yield "b"

    async with (
        serving(Agent("halves", halves)) as url,
        httpx.AsyncClient() as http,
    ):
        found = await http.post(f"{url}/invoke", json=invocation())
    assert b'{"text":"a\\ud83d"}' in found.content
    assert b"event: done" in found.content


async def test_a_comment_is_sent_while_the_agent_thinks() -> None:
    think = asyncio.Event()

    async def thinks(_: Context) -> str:
        await think.wait()
        return "now"

    found = b""
    async with (
        serving(Agent("thinks", thinks, keep_alive_s=0.05)) as url,
        httpx.AsyncClient() as http,
        http.stream("POST", f"{url}/invoke", json=invocation()) as reply,
    ):
        async for data in reply.aiter_raw():
            found += data
            if found.count(b": keep-alive\n\n") > 1:
                think.set()
    assert found.startswith(b": keep-alive\n\n")
    assert found.endswith(b'event: delta\ndata: {"text":"now"}\n\n'
                          b'event: done\ndata: {"final_message":"now"}\n\n')  # fmt: skip


async def test_hanging_up_cancels_the_agent_and_its_cleaning_up_runs() -> None:
    cleaned: list[float] = []

    async def generates(_: Context) -> AsyncIterator[str]:
        try:
            yield "a word"
            await asyncio.Event().wait()
        finally:
            cleaned.append(time.monotonic())

    async def waits(_: Context) -> str:
        try:
            return str(await asyncio.Event().wait())
        finally:
            cleaned.append(time.monotonic())

    handlers: list[Any] = [generates, waits]
    for number, handler in enumerate(handlers, 1):
        async with serving(Agent("a", handler, keep_alive_s=0.05)) as url:
            async with httpx.AsyncClient() as http:
                async with http.stream("POST", f"{url}/invoke", json=invocation()) as reply:
                    await anext(reply.aiter_raw())
                since = time.monotonic()
            await eventually(_has(cleaned, number), "the agent cleans up")
            assert cleaned[-1] - since <= SOON_S


def _has(cleaned: list[float], number: int) -> Callable[[], bool]:
    return lambda: len(cleaned) == number


async def test_health_tells_version_and_capabilities() -> None:
    well = Agent("well", words.handler, version="1.2", capabilities=["talk"])
    async with serving(well) as url, httpx.AsyncClient() as http:
        said = (await http.get(f"{url}/health")).json()
    assert said == {"status": "healthy", "version": "1.2", "capabilities": ["talk"]}


async def test_the_lifespan_is_around_serving_and_its_failure_is_told() -> None:
    lived: list[str] = []

    @asynccontextmanager
    async def life() -> AsyncIterator[None]:
        lived.append("up")
        yield
        lived.append("down")

    @asynccontextmanager
    async def stillborn() -> AsyncIterator[None]:
        _fail()
        yield

    def _fail() -> None:
        raise ValueError("no database")

    async with serving(Agent("a", words.handler, lifespan=life)):
        assert lived == ["up"]
    assert lived == ["up", "down"]
    with pytest.raises(Exception, match="lifespan failed"):
        async with serving(Agent("a", words.handler, lifespan=stillborn)):
            pass


async def test_a_busy_port_is_named() -> None:
    async with serving(words) as url:
        port = int(url.rpartition(":")[2])
        with pytest.raises(CannotListen, match=f"127.0.0.1:{port}"):
            async with serving(words, port=port):
                pass


async def test_an_error_of_the_body_leaves_as_it_is() -> None:
    with pytest.raises(ZeroDivisionError):
        async with serving(words):
            raise ZeroDivisionError


async def test_agents_are_mounted_into_an_application() -> None:
    app = Starlette()
    mount(app, words)
    mount(app, Agent("again", words.handler), path="/agents/again")
    await _is_mounted(app, "")
    await _is_mounted(app, "/agents/again")


async def test_an_agent_is_mounted_into_fastapi() -> None:
    from fastapi import FastAPI

    app = FastAPI()
    mount(app, words, path="/words/")
    await _is_mounted(app, "/words")


async def _is_mounted(app: Any, prefix: str) -> None:
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app=app), base_url="http://app", timeout=PATIENCE_S
    ) as http:
        found = await http.post(f"{prefix}/invoke", json=invocation())
        assert b"event: done" in found.content
        assert (await http.get(f"{prefix}/health")).json()["status"] == "healthy"


async def test_the_probe_finds_nothing_to_mend() -> None:
    async with serving(words) as url:
        assert await broken_rules(url) == []
