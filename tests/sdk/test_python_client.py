"""The callers' side of the Python SDK, against a real server that is also killed under it."""

import asyncio
import contextlib
import signal
import threading
from collections.abc import AsyncIterator, Callable
from secrets import token_hex
from typing import Any, Self

import msgspec
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from orchestrator_sdk import (
    Agent,
    AgentNotFound,
    APIError,
    AsyncClient,
    Client,
    ConnectionLost,
    Context,
    IdempotencyKeyReused,
    InvalidRequest,
    ProtocolError,
    RunCancelled,
    RunEnded,
    RunEvent,
    RunFailed,
    RunNotFound,
    Timeouts,
    Unauthorized,
    serving,
)

from ..processes import Running, free_port, request
from .python_rig import eventually, registering, served, up

WORDS = [f"word{n} " for n in range(40)]
AT_ONCE = Timeouts(give_up=0.0)


async def _echo(ctx: Context) -> AsyncIterator[str]:
    for word in ("You said ", ctx.text):
        yield word


async def _fails(_: Context) -> str:
    raise ValueError


# ------------------------------------------------------------ a good day


async def test_a_run_and_its_session_from_asyncio(server: str) -> None:
    async with served(server) as here:
        handle = await here.run(
            Agent("echo", _echo), labels={"team": "a"}, context={"user_id": "u"}
        )
        assert [word async for word in handle.deltas()] == ["You said ", "Hello"]
        assert await handle.text() == "You said Hello"
        assert [event async for event in handle] == [], "what was read is gone"
        run = await here.client.get(handle.run_id)
        assert (run.status, run.labels, run.agent_id) == ("DONE", {"team": "a"}, "echo")
        second = await here.client.run("echo", "again", session=handle.session_id)
        assert (await second.result()).text == "You said again"
        page = await here.client.messages(handle.session_id)
        assert [(m.role, m.text) for m in page] == [
            ("user", "Hello"), ("assistant", "You said Hello"),
            ("user", "again"), ("assistant", "You said again"),
        ]  # fmt: skip
        newest = await here.client.messages(handle.session_id, limit=1)
        assert (newest.has_more, newest.messages[0].text) == (True, "You said again")
        earlier = await here.client.messages(
            handle.session_id, before=newest.messages[0].message_id
        )
        assert len(earlier.messages) == 3


async def test_the_same_without_asyncio(server: str) -> None:
    def calls() -> None:
        with Client(server) as client:
            handle = client.run("echo", [{"type": "text", "text": "Hello"}], session="plain")
            events = list(handle)
            assert [event.seq for event in events] == list(range(1, len(events) + 1))
            assert "".join(event.text for event in events) == "You said Hello"
            assert str(handle.result()) == "You said Hello"
            assert client.run("echo", "x").text() == "You said x"
            assert list(client.run("echo", "y").deltas()) == ["You said ", "y"]
            assert [m.role for m in client.messages("plain")] == ["user", "assistant"]
            assert client.get(handle.run_id).status == "DONE"
            page = client.events(handle.run_id, after_seq=3, limit=2)
            assert [event.seq for event in page] == [4, 5]
            assert page.has_more
            assert client.attach(handle.run_id, len(events)).text() == "You said Hello"
            client.register("other", "Other", "http://127.0.0.1:1", capabilities=["rest"])
            [found] = client.agents(capability="rest")
            assert (found.agent_id, found.name) == ("other", "Other")
            client.heartbeat("other")
            client.drain("other")
            assert client.agents(status="draining")[0].agent_id == "other"

    async with served(server) as here:
        await here.add(Agent("echo", _echo))
        await asyncio.to_thread(calls)


async def test_a_handle_of_a_run_that_is_over_knows_how_it_ended(server: str) -> None:
    async with served(server) as here:
        handle = await here.run(Agent("fails", _fails))
        events = [event async for event in handle]
        assert events[-1].type == "run_failed"
        for one in (handle, here.client.attach(handle.run_id),
                    here.client.attach(handle.run_id, events[-1].seq)):  # fmt: skip
            with pytest.raises(RunFailed) as failed:
                await one.result()
            assert (failed.value.code, failed.value.run_id) == ("agent_error", handle.run_id)


# ------------------------------------------------------------ what is refused


async def test_refusals_are_errors_of_their_own(server: str) -> None:
    async with served(server) as here:
        client = here.client
        await here.add(Agent("echo", _echo))
        with pytest.raises(AgentNotFound) as missing:
            await client.run("nobody", "x")
        assert (missing.value.code, missing.value.status) == ("agent_not_found", 404)
        first = await client.run("echo", "x", session="s", request_id="r")
        again = await client.run("echo", "x", session="s", request_id="r")
        assert again.run_id == first.run_id
        with pytest.raises(IdempotencyKeyReused) as reused:
            await client.run("echo", "y", session="s", request_id="r")
        assert first.run_id in str(reused.value.details)
        with pytest.raises(InvalidRequest, match="on_busy must be one of enqueue"):
            await client.run("echo", "x", on_busy="whatever")
        misspelt: dict[str, Any] = {"sesion": "s"}
        with pytest.raises(TypeError, match="takes no sesion; it takes context, labels, on_busy"):
            await client.run("echo", "x", **misspelt)
        with pytest.raises(RunNotFound):
            await client.attach("run_none").result()
        await first.result()
        with pytest.raises(RunEnded):
            await first.cancel()


async def test_a_key_is_shown_and_asked_for(start_server: Callable[..., Running]) -> None:
    root = token_hex(32)
    server = start_server(ADMIN_KEY=root)
    async with AsyncClient(server.url, root) as client:
        assert await client.agents() == []
    async with AsyncClient(server.url) as client:
        with pytest.raises(Unauthorized):
            await client.agents()
        with pytest.raises(Unauthorized):
            await client.attach("run_none").result()


async def test_nobody_there_is_said_once_patience_is_over() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    async with AsyncClient(url, timeouts=AT_ONCE) as client:
        with pytest.raises(ConnectionLost):
            await client.agents()
        with pytest.raises(ConnectionLost):
            await client.attach("run_none").result()
    secret = url.replace("//", "//me:hunter2@")
    with Client(secret, timeouts=AT_ONCE) as plain, pytest.raises(ConnectionLost) as lost:
        plain.attach("run_none").result()
    assert f"the orchestrator at {url} did not answer" in str(lost.value)
    assert "hunter2" not in str(lost.value)


async def test_another_server_is_recognised_and_a_bad_address_refused() -> None:
    async def page(_: Context) -> str:
        return ""

    async with serving(Agent("other", page)) as url, AsyncClient(url, timeouts=AT_ONCE) as client:
        with pytest.raises(APIError) as other:
            await client.agents()
        assert other.value.status == 404
        assert other.value.code == "not_found"
        with pytest.raises(ProtocolError):
            await client.ask(_health_as_run())
    for bad in ("localhost:8080", "http://", "ftp://there", "http://there/?a=b", "http://[::1"):
        with pytest.raises(ValueError, match="is not the address of an orchestrator"):
            Client(bad)


async def test_a_key_from_a_file_is_taken_and_none_at_all_is_shown_to_nobody() -> None:
    with Client("http://there", "ok_1\n") as client:
        assert client.http.headers["authorization"] == "Bearer ok_1"
    for bad in ("canary\nok_2", "cänary"):
        with pytest.raises(ValueError, match="the key has a character") as refused:
            Client("http://there", bad)
        assert "nary" not in str(refused.value)


def _health_as_run() -> Any:
    from orchestrator_sdk import asking, shapes

    return asking.Ask("GET", "/health", shapes.RunInfo)


# ------------------------------------------------------------ bad days


class Story:
    """An agent that tells its words one by one and waits in the middle of its first attempt."""

    def __init__(self) -> None:
        self.middle = asyncio.Event()
        self.agent = Agent(
            "story",
            self.tell,
            options={"on_lost": "retry", "retry": {"max_attempts": 3, "backoff_ms": 1}},
        )

    async def tell(self, ctx: Context) -> AsyncIterator[str]:
        for number, word in enumerate(WORDS):
            if ctx.attempt == 1 and number == len(WORDS) // 2:
                self.middle.set()
                await asyncio.Event().wait()
            yield word
            await asyncio.sleep(0)


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "stopped"])
async def test_each_event_comes_once_though_the_server_is_restarted(
    start_server: Callable[..., Running], sign: signal.Signals
) -> None:
    port, story = str(free_port()), Story()
    server = start_server(HTTP_PORT=port, DRAIN_TIMEOUT_MS="1")
    async with (
        AsyncClient(server.url) as client,
        registering(client, story.agent, orchestrator_url=server.url),
    ):
        handle = await client.run("story", "Tell me")
        plain = _Plain(server.url, handle.run_id)
        events: list[RunEvent] = []
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(_gather(handle, events))
            await story.middle.wait()
            half = len(WORDS) // 2
            await eventually(lambda: _told(events) == half, "half of it was read")
            await eventually(lambda: _told(plain.events) == half, "by both")
            await asyncio.to_thread(server.stop, sign)
            again = await asyncio.to_thread(start_server, HTTP_PORT=port)
            assert again.process.pid != server.process.pid
        await asyncio.to_thread(plain.thread.join)
        log = (await client.events(handle.run_id, limit=1000)).events
    assert [e.seq for e in events] == list(range(1, len(events) + 1)), "each once, in order"
    assert events == log == plain.events
    assert "agent_invoke_retrying" in {e.type for e in events}, "it really was cut"
    assert events[-1].type == "run_done"
    assert (await handle.result()).text == "".join(WORDS)


async def _gather(handle: Any, events: list[RunEvent]) -> None:
    async for event in handle:
        events.append(event)  # noqa: PERF401  # others look at it meanwhile


def _told(events: list[RunEvent]) -> int:
    return sum(bool(event.text) for event in events)


class _Plain:
    """A reader in a thread, with the client that is not async."""

    def __init__(self, url: str, run_id: str) -> None:
        self.events: list[RunEvent] = []
        self.thread = threading.Thread(target=self._read, args=(url, run_id))
        self.thread.start()

    def _read(self, url: str, run_id: str) -> None:
        with Client(url) as client:
            for event in client.attach(run_id):
                self.events.append(event)  # others look at it meanwhile


async def test_an_invocation_whose_answer_is_lost_is_not_made_twice(server: str) -> None:
    async with served(server) as here, Lossy(server, losing=2) as lossy:
        await here.add(Agent("lossy", _echo))
        async with AsyncClient(lossy.url) as client:
            handle = await client.run("lossy", "Hello", session="lossy-async")
            assert await handle.text() == "You said Hello"
        assert lossy.lost == 2, "the answers were really lost"
        lossy.lost = 0
        text = await asyncio.to_thread(_plainly, lossy.url)
        assert (text, lossy.lost) == ("You said Hello", 2)
    runs = request("GET", f"{server}/v1/runs?agent_id=lossy").json()["runs"]
    assert len(runs) == 2


def _plainly(url: str) -> str:
    with Client(url) as client:
        return client.run("lossy", "Hello", session="lossy-plain").text()


class Lossy:
    """Passes bytes to the server and back, but eats the first answers and hangs up instead."""

    def __init__(self, upstream: str, losing: int) -> None:
        host, _, port = upstream.removeprefix("http://").partition(":")
        self._upstream = (host, int(port))
        self._losing = losing
        self.lost = 0
        self.url = ""

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._pass, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(*self._upstream)
        with contextlib.suppress(ConnectionError):
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(_copy(reader, back))
                first = await there.read(65536)
                if self.lost < self._losing:
                    self.lost += 1
                else:
                    writer.write(first)
                    await _copy(there, writer)
                writer.close()
                back.close()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    with contextlib.suppress(OSError):
        writer.write_eof()


class Interrupted:
    """Serves a log of six events two at a time, and between them ends cleanly or says not now."""

    def __init__(self) -> None:
        self.asked: list[str | None] = []
        path = "/v1/runs/run_1/events/stream"
        self.app = Starlette(routes=[Route(path, self.stream), Route("/v1/runs/run_1", self.run)])

    async def stream(self, request: Request) -> Response:
        seen = request.headers.get("last-event-id")
        self.asked.append(seen)
        if len(self.asked) % 2 == 0:
            said = {"error": "busy", "code": "unavailable"}
            return JSONResponse(said, 503, {"Retry-After": "0"})
        first = int(seen or 0) + 1
        if first > 6:
            return Response(status_code=204)
        frames = b"".join(self._frame(seq) for seq in (first, first + 1))
        return Response(frames, media_type="text/event-stream")

    def _frame(self, seq: int) -> bytes:
        data = {"run_id": "run_1", "seq": seq, "type": "agent_state", "payload": {}}
        return b"id: %d\ndata: %b\n\n" % (seq, msgspec.json.encode(data))

    async def run(self, _: Request) -> Response:
        ids = {"run_id": "run_1", "session_id": "s", "agent_id": "a"}
        return JSONResponse({**ids, "status": "DONE", "final_message": "yes"})


async def test_a_stream_that_ends_early_is_asked_for_again_until_204() -> None:
    log = Interrupted()
    wanted = [None, "2", "2", "4", "4", "6", "6"]
    async with up(log.app) as url:
        async with AsyncClient(url) as client:
            handle = client.attach("run_1")
            assert [event.seq async for event in handle] == [1, 2, 3, 4, 5, 6]
            assert await handle.text() == "yes"
        assert log.asked == wanted
        log.asked.clear()
        assert await asyncio.to_thread(_attached, url) == ([1, 2, 3, 4, 5, 6], "yes")
        assert log.asked == wanted


def _attached(url: str) -> tuple[list[int], str]:
    with Client(url) as client:
        handle = client.attach("run_1")
        return [event.seq for event in handle], handle.text()


async def test_a_reader_that_is_cut_short_goes_on_where_it_was(server: str) -> None:
    """A caller's own timeout in the middle of a wait loses nothing either."""
    go = asyncio.Event()

    async def waits(_: Context) -> AsyncIterator[str]:
        yield "first"
        await go.wait()
        yield " second"

    async with served(server) as here:
        handle = await here.run(Agent("waits-for-go", waits))
        seen = [await anext(handle) for _ in range(4)]
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await handle.result()
        go.set()
        seen += [event async for event in handle]
        assert [event.seq for event in seen] == list(range(1, len(seen) + 1))
        assert await handle.text() == "first second"
        await handle.aclose()


async def test_open_streams_keep_nobody_from_a_connection(server: str) -> None:
    """A client of httpx has a hundred connections unless it is told otherwise."""
    over = asyncio.Event()

    async def waits(_: Context) -> AsyncIterator[str]:
        yield "first"
        await over.wait()

    async with served(server) as here, AsyncClient(server, timeouts=AT_ONCE) as client:
        await here.add(Agent("waits-for-all", waits))
        handles = [await client.run("waits-for-all", "x") for _ in range(110)]
        for handle in handles:
            assert await anext(handle.deltas()) == "first"
        assert (await client.get(handles[0].run_id)).status == "RUNNING"
        over.set()
        assert {await handle.text() for handle in handles} == {"first"}


async def test_cancel_from_another_client(server: str) -> None:
    async def waits(_: Context) -> str:
        return str(await asyncio.Event().wait())

    def cancels(run_id: str) -> None:
        with Client(server) as client:
            handle = client.attach(run_id)
            handle.cancel("not needed")
            with pytest.raises(RunCancelled, match="not needed"):
                handle.result()

    async with served(server) as here:
        handle = await here.run(Agent("waits", waits))
        await asyncio.to_thread(cancels, handle.run_id)
        with pytest.raises(RunCancelled) as cancelled:
            await handle.text()
    assert cancelled.value.code == "cancelled"
