"""Whatever bytes an agent sends, however it leaves: one right failure, bounded memory, a closed socket."""

import asyncio
import socket
from collections.abc import Sequence
from pathlib import Path

import pytest

from orchestrator.clients import HTTPClient, agent_clients
from orchestrator.core.errors import AgentFailure
from orchestrator.core.frames import Delta, Done, Frame, Other
from orchestrator.ports import AgentCall
from orchestrator.testing.fake_agent import (
    FakeAgent,
    Peer,
    Script,
    answering,
    answering_json,
    calling,
    chunk,
    event,
    head,
)
from orchestrator.testing.open_egress import OpenEgress
from orchestrator.world import RealWorld

MIB = 1 << 20
CHUNKED = (("Transfer-Encoding", "chunked"),)
HI = event("delta", text="hi")
BYE = event("done", usage={"tokens": 1})
SAID: list[Frame] = [Delta("hi"), Done(usage={"tokens": 1})]


class Names:
    """The real world with a phone book of the test's own."""

    def __init__(self, **book: list[str]) -> None:
        real = RealWorld()
        self.now, self.monotonic, self.noise = real.now, real.monotonic, real.noise
        self.sleep = real.sleep
        self._book = book

    async def resolve(self, host: str, port: int) -> list[tuple[int, str]]:
        """Return the addresses of a name of the book."""
        if host not in self._book:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        families = (socket.AF_INET, socket.AF_INET6)
        return [(int(families[":" in address]), address) for address in self._book[host]]


def client(egress: OpenEgress | None = None, world: Names | RealWorld | None = None) -> HTTPClient:
    """Return an HTTP client that may dial whatever the test does not forbid."""
    return HTTPClient(world or RealWorld(), egress or OpenEgress())


async def frames_of(http: HTTPClient, call: AgentCall, protocol: str = "native") -> list[Frame]:
    """Return every frame of one invocation."""
    frames: list[Frame] = []
    async with agent_clients(http)[protocol].open(call) as stream:
        async for batch in stream:
            frames += batch
    return frames


async def failure_of(http: HTTPClient, call: AgentCall) -> AgentFailure:
    """Return how an invocation fails."""
    with pytest.raises(AgentFailure) as caught:
        await frames_of(http, call)
    return caught.value


def resident() -> int:
    """Return the bytes of memory this process holds now."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * 4096


# ------------------------------------------------------------- one failure each

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
        "agent_eof",
        True,
        "hung up",
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


# ------------------------------------------------------------- not there, not allowed


async def test_nobody_listens() -> None:
    async with FakeAgent(answering()) as agent:
        endpoint = agent.url
    async with client() as http:
        failure = await failure_of(http, calling(endpoint))
    assert (failure.code, failure.retryable) == ("agent_unavailable", True)
    assert f"no connection to {endpoint}" in failure.message


async def test_the_name_leads_nowhere() -> None:
    for world in (Names(), Names(agent=[])):
        async with client(world=world) as http:
            failure = await failure_of(http, calling("http://agent:80"))
        assert (failure.code, failure.retryable) == ("agent_unavailable", True)
        assert "no connection to http://agent" in failure.message


async def test_no_tls_where_tls_was_asked_for() -> None:
    async def script(peer: Peer) -> None:
        await peer.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await peer.hung_up()

    async with FakeAgent(script) as agent, client() as http:
        failure = await failure_of(http, calling(agent.url.replace("http", "https")))
        assert (failure.code, failure.retryable) == ("agent_unavailable", True)
    assert agent.connections == 1


async def test_forbidden_addresses_are_not_dialled() -> None:
    egress = OpenEgress(forbidden=["127.0.0.1"])
    world = Names(agent=["127.0.0.1"])
    async with FakeAgent(answering(head(), BYE)) as agent, client(egress, world) as http:
        for host in ("127.0.0.1", "agent"):
            failure = await failure_of(http, calling(f"http://{host}:{agent.port}"))
            assert (failure.code, failure.retryable) == ("agent_unavailable", False)
            assert f"{host} leads to 127.0.0.1, which this test forbids" in failure.message
        for host in ("2130706433", "127.1", "0x7f.1"):
            failure = await failure_of(http, calling(f"http://{host}:{agent.port}"))
            assert failure.code == "agent_unavailable"
    assert agent.connections == 0


async def test_of_several_addresses_each_is_judged_and_each_allowed_one_tried() -> None:
    egress = OpenEgress(forbidden=["127.0.0.2"])
    world = Names(agent=["127.0.0.2", "::1", "127.0.0.3", "127.0.0.1"])
    async with FakeAgent(answering(head(), HI, BYE)) as agent, client(egress, world) as http:
        assert await frames_of(http, calling(f"http://agent:{agent.port}")) == SAID
    addresses = ("127.0.0.2", "::1", "127.0.0.3", "127.0.0.1")
    assert egress.judged == [("agent", address) for address in addresses]


async def test_every_dial_is_judged_again() -> None:
    egress = OpenEgress()
    async with FakeAgent(answering(head(), BYE)) as agent:
        world = Names(agent=["127.0.0.1"])
        async with client(egress, world) as http:
            call = calling(f"http://agent:{agent.port}")
            await frames_of(http, call)
            egress.forbidden = frozenset(["127.0.0.1"])
            assert (await failure_of(http, call)).code == "agent_unavailable"
    assert agent.connections == 1


async def test_the_environments_proxy_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    async with FakeAgent(answering(head(), HI, BYE)) as agent, FakeAgent(answering()) as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        monkeypatch.setenv("http_proxy", proxy.url)
        async with client() as http:
            assert await frames_of(http, calling(agent.url)) == SAID
    assert proxy.connections == 0


async def test_a_credential_that_cannot_be_a_header_is_refused() -> None:
    async with FakeAgent(answering(head(), BYE)) as agent, client() as http:
        failure = await failure_of(http, calling(agent.url, credential="a\r\nX-Evil: b"))
        assert (failure.code, failure.retryable) == ("agent_unavailable", False)
    assert agent.requests == []


# ------------------------------------------------------------- odd but good


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
    async with FakeAgent(answering(head(headers=CHUNKED), chunk(HI))) as agent, client() as http:
        async with agent_clients(http)["native"].open(calling(agent.url)) as stream:
            await agent.peers[0].hung_up()  # the break comes long before anybody reads
            await asyncio.sleep(0.05)
            assert await anext(stream) == [Delta("hi")]
            with pytest.raises(AgentFailure) as caught:
                await anext(stream)
    assert caught.value.code == "agent_eof"


async def test_a_comment_is_a_sign_of_life() -> None:
    async with FakeAgent(answering(head(), b": one\n\n", BYE)) as agent, client() as http:
        async with agent_clients(http)["native"].open(calling(agent.url)) as stream:
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

    async with FakeAgent(script) as agent, client() as http:
        for _ in range(3):
            assert await frames_of(http, calling(agent.url), "json") == [Delta("hi"), Done("hi")]
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


# ------------------------------------------------------------- leaving


async def test_leaving_closes_the_connection_at_once() -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(head() + HI)
        await peer.hung_up()

    async with FakeAgent(script) as agent, client() as http:
        async with agent_clients(http)["native"].open(calling(agent.url)) as stream:
            assert await anext(stream) == [Delta("hi")]
            assert agent.peers[0].closed_at is None
        async with asyncio.timeout(1):
            await agent.peers[0].hung_up()


async def test_done_closes_the_connection_though_the_agent_goes_on() -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(head() + HI + BYE)
        await peer.hung_up()

    async with FakeAgent(script) as agent, client() as http:
        assert await frames_of(http, calling(agent.url)) == SAID
        async with asyncio.timeout(1):
            await agent.peers[0].hung_up()


@pytest.mark.parametrize(
    "sent", [[], [b"HTTP/1.1 200 OK\r\nX: "], [head()], [head() + HI], [head(500)]]
)
async def test_cancelling_closes_the_connection_at_once(sent: Sequence[bytes]) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(*sent)
        await peer.hung_up()

    async with FakeAgent(script) as agent, client() as http:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await frames_of(http, calling(agent.url))
        async with asyncio.timeout(1):
            await agent.peers[0].hung_up()
    assert len(agent.requests) == 1


async def test_cancelling_does_not_wait_for_an_agent_that_does_not_read() -> None:
    deaf = asyncio.Event()

    async def script(peer: Peer) -> None:
        peer.transport.pause_reading()
        await deaf.wait()
        peer.transport.resume_reading()
        await peer.hung_up()

    size = 32 * MIB
    async with FakeAgent(script) as agent, client() as http:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await frames_of(http, calling(agent.url, content="x" * size))
        deaf.set()
        async with asyncio.timeout(2):
            await agent.peers[0].hung_up()
        assert agent.peers[0].unread < size, "the rest of the request was given up"


async def test_closing_the_client_closes_what_is_idle() -> None:
    async with FakeAgent(answering_json("hi")) as agent:
        async with client() as http:
            await frames_of(http, calling(agent.url), "json")
            assert agent.peers[0].closed_at is None
        async with asyncio.timeout(1):
            await agent.peers[0].hung_up()


# ------------------------------------------------------------- bounded memory


async def test_a_gigabyte_without_a_newline_costs_little() -> None:
    piece = b"x" * (256 * 1024)

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(head(), *[piece] * 4096)

    before = resident()
    async with FakeAgent(script) as agent, client() as http:
        failure = await failure_of(http, calling(agent.url))
        grown = resident() - before
    assert failure.code == "agent_protocol"
    assert MIB < agent.peers[0].sent < 64 * MIB, "given up long before the gigabyte"
    assert grown < 32 * MIB


async def test_a_slow_reader_stops_a_fast_agent() -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(head(), *[HI * 4096] * 100_000)

    before = resident()
    async with FakeAgent(script) as agent, client() as http:
        async with agent_clients(http)["native"].open(calling(agent.url)) as stream:
            await anext(stream)
            async with asyncio.timeout(10):
                while not agent.peers[0].stuck:  # noqa: ASYNC110  # nothing tells when
                    await asyncio.sleep(0.01)
            await asyncio.sleep(0.2)
            assert agent.peers[0].stuck, "the agent has to wait"
            assert resident() - before < 32 * MIB
            frames = 0
            async for batch in stream:
                frames += len(batch)
                if frames > 300_000:
                    break
            assert resident() - before < 32 * MIB


async def test_endless_interim_answers_can_be_cancelled() -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        while True:
            await peer.send(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" * 100)

    before = resident()
    async with FakeAgent(script) as agent, client() as http:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                await frames_of(http, calling(agent.url))
        async with asyncio.timeout(1):
            await agent.peers[0].hung_up()
        assert resident() - before < 32 * MIB
    assert agent.peers[0].sent > 10_000
