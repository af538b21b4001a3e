"""Whatever bytes an agent sends: one right failure, or the frames that it meant."""

import asyncio
from collections.abc import Sequence

import pytest

from orchestrator.core.errors import AgentFailure
from orchestrator.core.frames import Delta, Done, Other
from orchestrator.testing.fake_agent import (
    FakeAgent,
    Peer,
    Script,
    answering,
    answering_json,
    calling,
    chunk,
    head,
)

from .calls import (
    BYE,
    CHUNKED,
    HI,
    MIB,
    SAID,
    Names,
    client,
    failure_of,
    frames_of,
    opened,
)

pytestmark = pytest.mark.usefixtures("driver")

_FLOOD = "".join(f"X-{n}: {'y' * 50}\r\n" for n in range(1000))
FAILURES: dict[str, tuple[Sequence[bytes], str, bool, str]] = {
    "500": ([head(500), b"boom\x00\n"], "agent_status", True, "answered 500: boom"),
    "503": ([head(503)], "agent_status", True, "answered 503"),
    "408": ([head(408)], "agent_status", True, "answered 408"),
    "404": ([head(404), b"no such\xff"], "agent_status", False, "answered 404: no such\ufffd"),
    "401": ([head(401)], "agent_status", False, "answered 401"),
    "204": ([head(204)], "agent_status", False, "answered 204"),
    "201": ([head(201), HI, BYE], "agent_status", False, "answered 201"),
    "redirect": (
        [head(307, headers=[("Location", "/other"), ("Content-Length", "0")])],
        "agent_status",
        False,
        "307 to /other; redirects are not followed",
    ),
    "html": ([head(content_type="text/html"), HI, BYE], "agent_protocol", False, "text/html"),
    "no type": ([head(content_type=""), HI, BYE], "agent_protocol", False, "(none)"),
    "gzip": (
        [head(headers=[("Content-Encoding", "gzip")]), HI, BYE],
        "agent_protocol",
        False,
        "compressed its answer (gzip)",
    ),
    "not http": ([b"SSH-2.0-OpenSSH_9.9\r\n"], "agent_protocol", False, "did not answer in HTTP"),
    "too many headers": (
        [b"HTTP/1.1 200 OK\r\n" + _FLOOD.encode() + b"\r\n"],
        "agent_protocol",
        False,
        "did not answer in HTTP",
    ),
    "too long a header": (
        [b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100_000 + b"\r\n\r\n"],
        "agent_protocol",
        False,
        "did not answer in HTTP",
    ),
    "no answer at all": ([], "agent_eof", True, "hung up"),
    "half a head": ([b"HTTP/1.1 200 OK\r\nContent-Ty"], "agent_eof", True, "hung up"),
    "no done": ([head(), HI], "agent_eof", True, "without a done event"),
    "empty body": ([head()], "agent_eof", True, "without a done event"),
    "length short": (
        [head(headers=[("Content-Length", "9999")]), HI],
        "agent_eof",
        True,
        "hung up",
    ),
    "chunks short": ([head(headers=CHUNKED), chunk(HI)], "agent_eof", True, "hung up"),
    "chunk cut": ([head(headers=CHUNKED), chunk(HI)[:-5]], "agent_eof", True, "hung up"),
    "chunk malformed": (
        [head(headers=CHUNKED), chunk(HI), b"zz\r\n"],
        "agent_protocol",
        False,
        "did not answer in HTTP",
    ),
    "bad json": (
        [head(), HI, b"event: state\ndata: {\n\n", BYE],
        "agent_protocol",
        False,
        "malformed state event",
    ),
    "text is a number": (
        [head(), b'event: delta\ndata: {"text":1}\n\n'],
        "agent_protocol",
        False,
        "malformed delta event",
    ),
    "long line": (
        [head(), b"data: " + b"x" * MIB + b"\n\n", BYE],
        "agent_protocol",
        False,
        "line is over 1048576 bytes",
    ),
}


@pytest.mark.parametrize("case", FAILURES)
async def test_each_bad_answer_has_its_one_failure(case: str) -> None:
    pieces, code, retryable, words = FAILURES[case]
    async with FakeAgent(answering(*pieces)) as agent, client() as http:
        failure = await failure_of(http, calling(agent.url))
    assert (failure.code, failure.retryable) == (code, retryable)
    assert words in failure.message
    assert failure.hung_up is (words == "hung up"), "which speaks against the instance"
    assert len(agent.requests) == 1, "asked exactly once"


async def test_an_agents_wish_to_wait_is_kept_and_its_words_are_bounded() -> None:
    headers = [("Retry-After", "7"), ("Connection", "close")]
    script = answering(head(429, headers=headers), b"\xff" * 5000)
    async with FakeAgent(script) as agent, client() as http:
        failure = await failure_of(http, calling(agent.url))
    assert (failure.retryable, failure.retry_after_ms) == (True, 7000)
    assert 2000 < len(failure.message.encode()) < 2100


async def test_a_reset_is_an_end_without_done() -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(head() + HI)
        peer.reset()

    async with FakeAgent(script) as agent, client() as http:
        failure = await failure_of(http, calling(agent.url))
    assert (failure.code, failure.retryable) == ("agent_eof", True)


@pytest.mark.parametrize(
    "pieces",
    [
        [b"HTTP/1.0 200 OK\r\nContent-Type: text/event-stream\r\n\r\n", HI, BYE],
        [b"HTTP/1.1 100 Continue\r\n\r\n" * 3 + head(), HI, BYE],
        [head(content_type="Text/Event-Stream; charset=utf-8"), HI + BYE],
        [head(headers=[("Content-Encoding", "identity")]), HI + BYE],
        [head(headers=CHUNKED), *(chunk(bytes([byte])) for byte in HI + BYE), chunk(b"")],
        [head(), b"\xef\xbb\xbf" + HI, b": still here\n\n", BYE],
        [head(), HI, BYE.rstrip(b"\n")],
        [head(), HI, BYE, HI, b"event: delta\ndata: {\n\n"],
        [head(), HI + BYE + b"event: error\ndata: {}\n\n"],
        [head(headers=CHUNKED), chunk(HI), chunk(BYE)],
        [head(headers=[("Content-Length", "9999")]), HI, BYE],
    ],
)
async def test_what_can_be_understood_is(pieces: Sequence[bytes]) -> None:
    async with FakeAgent(answering(*pieces)) as agent, client() as http:
        assert await frames_of(http, calling(agent.url)) == SAID


@pytest.mark.parametrize("newline", [b"\n", b"\r", b"\r\n"])
@pytest.mark.parametrize("size", [1, 2, 3, 7, 64])
async def test_split_bytes_are_the_same_frames(newline: bytes, size: int) -> None:
    text = "a\u2028b\u0085 😀"
    said = f'\ufeffevent: delta\ndata: {{"text":"{text}"}}\n\n'.encode()
    answer = (said + b"data: \xff\n\n" + BYE).replace(b"\n", newline)
    pieces = [answer[at : at + size] for at in range(0, len(answer), size)]
    async with FakeAgent(answering(head(), *pieces)) as agent, client() as http:
        frames = await frames_of(http, calling(agent.url))
    assert frames == [Delta(text), Other("message", "\ufffd"), SAID[-1]]


async def test_what_was_said_before_the_break_still_counts() -> None:
    broken = answering(head(headers=CHUNKED), chunk(HI))
    async with FakeAgent(broken) as agent, client() as http, opened(http, agent) as stream:
        await agent.peers[0].hung_up()  # the break comes long before anybody reads
        await asyncio.sleep(0.05)
        assert await anext(stream) == [Delta("hi")]
        with pytest.raises(AgentFailure) as caught:
            await anext(stream)
    assert caught.value.code == "agent_eof"


async def test_what_was_said_before_a_malformed_event_still_counts() -> None:
    bad = answering(head(), HI * 2 + b"event: done\ndata: {\n\n")
    async with FakeAgent(bad) as agent, client() as http, opened(http, agent) as stream:
        assert await anext(stream) == [Delta("hi"), Delta("hi")]
        for _ in range(2):
            with pytest.raises(AgentFailure, match="malformed done"):
                await anext(stream)


async def test_a_comment_is_a_sign_of_life() -> None:
    living = answering(head(), b": one\n\n", BYE)
    async with FakeAgent(living) as agent, client() as http, opened(http, agent) as stream:
        batches = [list(batch) async for batch in stream]
    assert batches[-1] == [SAID[-1]]
    assert [] in batches


@pytest.mark.parametrize(
    ("protocol", "script", "path"),
    [
        ("json", answering_json({"output": "hi", "usage": {"tokens": 1}}), "/base/"),
        (
            "openai",
            answering_json({"choices": [{"message": {"content": "hi"}}], "usage": {"tokens": 1}}),
            "/base/v1/chat/completions",
        ),
        (
            "openai",
            answering(
                head(),
                b'data: {"choices":[{"delta":{"content":"hi"}}]}\n\n',
                b'data: {"choices":[],"usage":{"tokens":1}}\n\ndata: [DONE]\n\n',
            ),
            "/base/v1/chat/completions",
        ),
    ],
)
async def test_the_other_protocols_end_to_end(protocol: str, script: Script, path: str) -> None:
    async with FakeAgent(script) as agent, client() as http:
        frames = await frames_of(http, calling(agent.url + "/base/"), protocol)
    assert frames[0] == Delta("hi")
    assert isinstance(frames[-1], Done)
    assert frames[-1].usage == {"tokens": 1}
    assert agent.requests[0].path == path


async def test_connections_are_used_again_and_carry_no_cookies() -> None:
    async def script(peer: Peer) -> None:
        while True:
            await peer.request()
            size = ("Content-Length", "4")
            await peer.send(head(200, "application/json", [size, ("Set-Cookie", "a=b")]) + b'"hi"')

    world = Names(agent=["127.0.0.1"])
    async with FakeAgent(script) as agent, client(world=world) as http:
        for _ in range(3):
            call = calling(f"http://agent:{agent.port}")
            assert await frames_of(http, call, "json") == [Delta("hi"), Done("hi")]
    assert (agent.connections, len(agent.requests)) == (1, 3)
    assert all("cookie" not in request.headers for request in agent.requests)
    assert all(request.headers["accept-encoding"] == "identity" for request in agent.requests)


async def test_a_request_that_may_have_been_sent_is_not_sent_again() -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(head(200, "application/json", [("Content-Length", "4")]) + b'"hi"')
        await peer.request()
        peer.reset()

    async with FakeAgent(script) as agent, client() as http:
        await frames_of(http, calling(agent.url), "json")
        with pytest.raises(AgentFailure) as caught:
            await frames_of(http, calling(agent.url), "json")
    assert caught.value.code == "agent_eof"
    assert (agent.connections, len(agent.requests)) == (1, 2)
