"""Agents as they were written for the first platform: `agent_sdk`, by the contract alone."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from agent_sdk import (
    Agent,
    FunctionAgent,
    InvokeContext,
    Message,
    PlatformClient,
    PlatformError,
    SSEResponse,
    ToolResult,
    Usage,
    create_agent,
    format_sse_event,
    register_agent,
    stream_text,
)
from orchestrator_sdk import AsyncClient, serving

from .python_rig import answer, eventually, invocation, is_healthy, served, up

USAGE = {"tokens": 3}


class Echo(Agent):
    """The agent of the old documentation: frames from SSEResponse."""

    def __init__(self) -> None:
        super().__init__("echo", "Echo", capabilities=["talk"])
        self.lived: list[str] = []

    async def on_startup(self) -> None:
        self.lived.append("up")

    async def on_shutdown(self) -> None:
        self.lived.append("down")

    async def invoke(self, ctx: InvokeContext) -> AsyncIterator[str]:
        sse = SSEResponse(ctx.run_id)
        yield sse.state("thinking")
        yield sse.delta("You said ")
        yield sse.delta(ctx.input_message.text)
        yield sse.done(f"You said {ctx.input_message.content}", Usage(tokens=3))


async def test_a_subclass_answers_in_frames() -> None:
    echo = Echo()
    async with serving(echo.core()) as url:
        assert echo.lived == ["up"]
        assert await answer(url) == [
            ("state", {"state": "thinking"}),
            ("delta", {"text": "You said ", "run_id": "run_1"}),
            ("delta", {"text": "Hello", "run_id": "run_1"}),
            ("done", {"final_message": "You said Hello", "usage": USAGE}),
        ]
    assert echo.lived == ["up", "down"]


async def test_the_app_is_any_asgi_application() -> None:
    transport = httpx.ASGITransport(app=Echo().create_app())
    async with httpx.AsyncClient(transport=transport, base_url="http://app") as http:
        assert (await http.get("/health")).json()["capabilities"] == ["talk"]
        found = await http.post("/invoke", json=invocation())
    assert found.headers["content-type"].startswith("text/event-stream")
    assert found.text.endswith("\n\n")


async def test_a_function_is_an_agent() -> None:
    @create_agent("shouts", "Shouts", capabilities=["loud"])
    async def shouts(ctx: InvokeContext) -> AsyncIterator[str]:
        yield ctx.input_message["content"].upper()
        yield format_sse_event("citation", {"url": "x"})
        yield 'event: delta\ndata: {"text": "!"}\n\n'

    async def whole(ctx: InvokeContext) -> str:
        return f"{ctx.input_message.get('role')} said {len(ctx.messages)}"

    assert isinstance(shouts, FunctionAgent)
    assert (shouts.agent_id, shouts.name, shouts.capabilities) == ("shouts", "Shouts", ["loud"])
    async with serving(shouts.core()) as url:
        assert await answer(url) == [
            ("delta", {"text": "HELLO"}), ("citation", {"url": "x"}), ("delta", {"text": "!"}),
            ("done", {}),
        ]  # fmt: skip
    earlier = [{"role": "user", "content": "x"}]
    async with serving(FunctionAgent("whole", "Whole", whole).core()) as url:
        frames = await answer(url, invocation(messages=earlier))
    assert frames == [("delta", {"text": "user said 1"}), ("done", {})]


async def test_errors_end_the_run_with_their_code() -> None:
    @create_agent("fails")
    async def fails(ctx: InvokeContext) -> AsyncIterator[str]:
        yield SSEResponse(ctx.run_id).error("no_weather", "the sky is closed")
        raise AssertionError("nothing is read behind the end")

    @create_agent("breaks")
    async def breaks(_: InvokeContext) -> AsyncIterator[str]:
        yield ""
        raise ValueError("hunter2")

    async with serving(fails.core()) as url:
        said = {"code": "no_weather", "message": "the sky is closed"}
        assert await answer(url) == [("error", said)]
    async with serving(breaks.core()) as url:
        [(event, data)] = await answer(url)
    assert (event, data["code"]) == ("error", "agent_error")
    assert "hunter2" not in data["message"]


async def test_the_context_has_the_fields_of_the_contract() -> None:
    seen: list[InvokeContext] = []

    @create_agent("looks")
    async def looks(ctx: InvokeContext) -> AsyncIterator[str]:
        seen.append(ctx)
        yield ""

    headers = {"traceparent": "00-1-2-01", "X-Platform-Base-URL": "http://p", "X-Run-Token": "ort"}
    async with serving(looks.core()) as url:
        await answer(url, invocation(context={"user_id": "ann"}), headers)
    [ctx] = seen
    assert (ctx.agent_id, ctx.session_id, ctx.run_id) == ("a", "sess_1", "run_1")
    assert ctx.input_message == Message("user", "Hello")
    assert (ctx.messages, ctx.context) == ([], {"user_id": "ann"})
    assert (ctx.traceparent, ctx.platform_base_url) == ("00-1-2-01", "http://p")


async def test_a_text_is_streamed_in_pieces() -> None:
    async def words() -> AsyncIterator[str]:
        yield "abcd"
        yield "e"

    frame = 'event: delta\ndata: {"text":"%s","run_id":"run_1"}\n\n'
    assert [f async for f in stream_text("abcde", "run_1", chunk_size=2)] == [
        frame % part for part in ("ab", "cd", "e")
    ]
    assert [f async for f in stream_text(words(), "run_1", chunk_size=3)] == [
        frame % part for part in ("abc", "d", "e")
    ]


def test_the_small_values() -> None:
    assert format_sse_event("x", {"a": "ü\n"}) == 'event: x\ndata: {"a":"ü\\n"}\n\n'
    assert Usage(tokens=0, duration_ms=5).to_dict() == {"tokens": 0, "duration_ms": 5}
    assert Message("user", "x").to_dict() == {"role": "user", "content": "x"}
    done, waits, lost = (ToolResult(status=s) for s in ("succeeded", "pending", "failed"))
    assert [(r.succeeded, r.pending, r.failed) for r in (done, waits, lost)] == [
        (True, False, False), (False, True, False), (False, False, True),
    ]  # fmt: skip


# ------------------------------------------------------------ with a real server


async def test_an_old_agent_runs_calls_and_reads_on_the_new_platform(server: str) -> None:
    @create_agent("old", "Old")
    async def old(ctx: InvokeContext) -> AsyncIterator[str]:
        platform = PlatformClient(ctx.platform_base_url, ctx.run_id)
        names = [a["agent_id"] for a in await platform.agents.list_agents()]
        yield ",".join(name for name in names if name in {"old", "echo"}) + ": "
        async for frame in platform.agents.invoke("echo", ctx.input_message.content):
            if frame["event"] == "delta":
                yield frame["data"]["text"]
        for whole in (ctx.input_message, {"role": "user", "content": "Hello"}):
            frames = [frame async for frame in platform.agents.invoke("echo", whole)]
            assert frames[-1]["data"]["final_message"] == "You said Hello"
        messages = await platform.sessions.get_messages(ctx.session_id)
        yield f" ({messages[-1]['content']})"
        try:
            async for _ in platform.agents.invoke("nobody", "x"):
                pass
        except PlatformError as error:
            yield f" {error.code} {error.status}"

    async with served(server) as here:
        await here.add(Echo().core())
        handle = await here.run(old.core(), "Hello")
        text = await handle.text()
        events = (await here.client.events(handle.run_id)).events
    assert text == "echo,old: You said Hello (Hello) agent_not_found 404"
    assert "agent_called_child" in {event.type for event in events}


async def test_an_agent_that_streams_nothing_is_heard_at_its_end(server: str) -> None:
    @create_agent("late", "Late")
    async def late(ctx: InvokeContext) -> AsyncIterator[str]:
        yield SSEResponse(ctx.run_id).done("All at once")

    async with served(server) as here:
        handle = await here.run(late.core())
        assert [words async for words in handle.deltas()] == ["All at once"]
        found = here.client.attach(handle.run_id)
        events = [event async for event in found]
        assert not any(event.text for event in events), "the log has no word of it"
        later = here.client.attach(handle.run_id, after_seq=1)
        assert [words async for words in later.deltas()] == [], "it may have spoken before"


async def test_an_agent_is_registered_by_hand(server: str) -> None:
    async with serving(Echo().core()) as url:
        said = await register_agent(server, "by-hand", "By hand", url, capabilities=["x"])
        assert said["ok"] is True
        await PlatformClient(server, "").register_agent("by-hand", "Again", url)
        async with AsyncClient(server) as client:
            [found] = [a for a in await client.agents() if a.agent_id == "by-hand"]
            assert found.name == "Again"
            assert await (await client.run("by-hand", "Hi")).text() == "You said Hi"
    with pytest.raises(PlatformError, match="name is required") as refused:
        await register_agent(server, "x", "", url)
    assert (refused.value.code, refused.value.status) == ("invalid_request", 400)


async def test_an_agent_registers_itself_when_it_runs(server: str) -> None:
    async with (
        serving(Echo().core(), orchestrator_url=server),
        AsyncClient(server) as client,
    ):
        await eventually(lambda: is_healthy(client, "echo"), "it is there")


# ------------------------------------------------------------ models and tools, by the contract


class Platform:
    """Answers the routes of models and tools as the contract has them."""

    def __init__(self, thinks_s: float = 0.0) -> None:
        self.asked: list[tuple[str, Any, dict[str, str]]] = []
        self.polls = 0
        self._thinks_s = thinks_s
        self.app = Starlette(
            routes=[
                Route("/v1/chat/completions", self.chat, methods=["POST"]),
                Route("/v1/tools/{name}/invoke", self.invoke, methods=["POST"]),
                Route("/v1/tool_calls/{id}/wait", self.wait, methods=["POST"]),
                Route("/v1/tool_calls/{id}", self.status, methods=["GET"]),
            ]
        )

    async def chat(self, request: Request) -> Response:
        body = await self._noted(request)
        if body["model"] == "missing":
            error = {"message": "no model", "type": "x", "param": "model", "code": "no_model"}
            return JSONResponse({"error": error}, 404)
        if not body.get("stream"):
            return JSONResponse({"choices": [{"message": {"content": "Hi"}}]})
        end = "data: [DONE]\n\n" if body["model"] != "broken" else ""
        chunks = "".join(
            f'data: {{"choices":[{{"delta":{{"content":"{part}"}}}}]}}\n\n' for part in ("H", "i")
        )
        return StreamingResponse(
            iter([chunks[:30], chunks[30:], end]), media_type="text/event-stream"
        )

    async def invoke(self, request: Request) -> Response:
        await self._noted(request)
        match request.path_params["name"]:
            case "add":
                return JSONResponse({"status": "succeeded", "tool_call_id": "tc_1", "result": 3})
            case "pay":
                said = {"status": "pending", "tool_call_id": "tc_2", "reason": "waiting_approval"}
                return JSONResponse(said)
            case "blocked":
                error = {"code": "blocked", "message": "not you", "retryable": False}
                return JSONResponse({"status": "failed", "tool_call_id": "tc_3", "error": error})
            case _:
                return JSONResponse({"error": "not found", "code": "tool_not_found"}, 404)

    async def wait(self, request: Request) -> Response:
        await self._noted(request)
        self.polls += 1
        if request.path_params["id"] == "tc_for_ever" or self.polls < 3:
            return JSONResponse({"status": "pending", "reason": "waiting_approval"})
        return JSONResponse({"status": "succeeded", "tool_call_id": "tc_2", "result": {"ok": 1}})

    async def status(self, request: Request) -> Response:
        await self._noted(request)
        times = {"created_at": 1, "started_at": None, "completed_at": None}
        said = {"status": "pending", "state": "WAITING_APPROVAL", "timestamps": times}
        return JSONResponse({"tool_call_id": request.path_params["id"], **said})

    async def _noted(self, request: Request) -> Any:
        body = await request.json() if request.method == "POST" else None
        self.asked.append((request.url.path, body, dict(request.headers)))
        await asyncio.sleep(self._thinks_s)
        return body


async def test_models_are_asked_through_the_platform() -> None:
    platform = Platform()
    async with up(platform.app) as url:
        client = PlatformClient(url, "run_1", run_token="ort_1")
        messages = [Message("user", "Hello"), {"role": "user", "content": "?"}]
        whole = await client.llm.chat_completions("m", messages, temperature=0)
        parts = [c async for c in client.llm.chat_completions_stream("m", messages)]
        for model, code in (("missing", "no_model"), ("broken", "llm_error")):
            with pytest.raises(PlatformError) as failed:
                [c async for c in client.llm.chat_completions_stream(model, messages)]
            assert failed.value.code == code
    assert whole["choices"][0]["message"]["content"] == "Hi"
    assert [c["choices"][0]["delta"]["content"] for c in parts] == ["H", "i"]
    (path, body, headers), (_, streamed, _), *_ = platform.asked
    assert path == "/v1/chat/completions"
    assert body == {
        "model": "m", "temperature": 0,
        "messages": [{"role": "user", "content": "Hello"}, {"role": "user", "content": "?"}],
    }  # fmt: skip
    assert streamed["stream"] is True
    assert (headers["x-run-token"], headers["x-run-id"]) == ("ort_1", "run_1")


async def test_tools_are_invoked_and_waited_for() -> None:
    platform = Platform()
    async with up(platform.app) as url:
        tools = PlatformClient(url, "run_1").tools
        added = await tools.invoke("add", {"a": 1}, idempotency_key="k", timeout_ms=5)
        paid = await tools.invoke_and_wait("pay", {"amount": 5})
        blocked = await tools.invoke_and_wait("blocked")
        looked = await tools.get_status("tc_9")
        with pytest.raises(PlatformError) as missing:
            await tools.invoke("nothing")
    assert (added.succeeded, added.result, added.tool_call_id) == (True, 3, "tc_1")
    assert (paid.succeeded, paid.result, platform.polls) == (True, {"ok": 1}, 3)
    assert (blocked.failed, blocked.error) == (
        True, {"code": "blocked", "message": "not you", "retryable": False},
    )  # fmt: skip
    assert (looked.pending, looked.tool_call_id) == (True, "tc_9")
    assert (missing.value.code, missing.value.status) == ("tool_not_found", 404)
    path, body, _ = platform.asked[0]
    assert (path, body) == (
        "/v1/tools/add/invoke",
        {"run_id": "run_1", "args": {"a": 1}, "idempotency_key": "k", "timeout_ms": 5},
    )
    waits = [body["timeout_ms"] for path, body, _ in platform.asked if path.endswith("/wait")]
    assert waits == [50_000] * 3, "the platform holds no longer than that"


async def test_waiting_for_a_tool_ends_with_the_callers_patience() -> None:
    platform = Platform()
    async with up(platform.app) as url:
        tools = PlatformClient(url, "run_1").tools
        still = await tools.wait("tc_for_ever", 10)
        platform.polls = -(10**9)
        since = time.monotonic()
        paid = await tools.invoke_and_wait("pay", timeout_ms=50)
        assert time.monotonic() - since >= 0.05
    assert (still.pending, still.tool_call_id) == (True, "tc_for_ever")
    assert (paid.pending, paid.reason) == (True, "waiting_approval")


async def test_an_answer_that_is_held_back_is_no_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator_sdk.transport.SILENCE_S", 0.05)
    async with up(Platform(thinks_s=0.2).app) as url:
        client = PlatformClient(url, "run_1")
        with pytest.raises(PlatformError, match="ReadTimeout"):
            await client.tools.get_status("tc_1")
        assert (await client.tools.wait("tc_for_ever")).pending
        assert await client.llm.chat_completions("m", [])
        assert [c async for c in client.llm.chat_completions_stream("m", [])]


async def test_a_run_shows_its_token_by_itself_and_no_other_runs() -> None:
    platform = Platform()
    async with up(platform.app) as url:

        @create_agent("asks")
        async def asks(ctx: InvokeContext) -> AsyncIterator[str]:
            for run_id in (ctx.run_id, "run_of_another"):
                await PlatformClient(ctx.platform_base_url, run_id).tools.invoke("add")
            yield "done"

        headers = {"X-Run-Token": "ort_1", "X-Platform-Base-URL": url, "traceparent": "00-1-2-01"}
        async with serving(asks.core()) as agent:
            assert (await answer(agent, None, headers))[-1] == ("done", {})
    (_, _, own), (_, _, other) = platform.asked
    assert (own["x-run-token"], own["traceparent"]) == ("ort_1", "00-1-2-01")
    assert "x-run-token" not in other


async def test_a_platform_that_is_away_is_an_error_of_this_surface() -> None:
    async with serving(Echo().core()) as url:
        pass
    with pytest.raises(PlatformError) as away:
        await PlatformClient(url, "run_1").tools.invoke("add")
    assert (away.value.code, away.value.status) == ("unavailable", 0)
