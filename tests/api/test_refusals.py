"""What the API refuses, and that it never answers 500 or in another form than its own."""

import asyncio
from typing import Any

import httptools
import msgspec
import pytest

from orchestrator.api.protocol import _out_of_memory
from orchestrator.core.values import NUMBER_MAX

from .conftest import Client, Database, answered_in_front, invocation, serving
from .test_runs_api import hang

AGENT = {"agent_id": "a", "name": "A", "endpoint": "http://localhost:1/"}
HUGE = ["9" * 30, "9" * 5000, str(1 << 64), "-1", "٣", "1e3", "x"]


async def raw(api: Client, request: bytes, *, finish: bool = True) -> tuple[int, dict[str, Any]]:
    """Send bytes as they are; return the status and the decoded body once the server closes."""
    host, port = api.netloc.split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(request)
        if finish:
            await writer.drain()
        async with asyncio.timeout(10):
            said = await reader.read()
    finally:
        writer.transport.abort()
    head, _, body = said.partition(b"\r\n\r\n")
    assert b"application/json" in head.lower(), said
    return int(head.split()[1]), msgspec.json.decode(body)


def get(api: Client, *headers: str, path: str = "/v1/agents") -> bytes:
    lines = "".join(f"{line}\r\n" for line in headers)
    return f"GET {path} HTTP/1.1\r\n{lines}Connection: close\r\n\r\n".encode()


@pytest.mark.parametrize("text", HUGE)
async def test_numbers_of_a_query_are_looked_at_before_they_are_read(
    api: Client, text: str
) -> None:
    run_id = (await api.post("/internal/invoke", invocation())).json["run_id"]
    quoted = text.replace("٣", "%D9%A3")
    for path in (
        "/v1/runs?limit=", "/v1/runs?cursor=", "/v1/runs?created_before=", "/v1/sessions?limit=",
        "/v1/sessions/s1/messages?limit=", f"/v1/runs/{run_id}/events?limit=",
        f"/v1/runs/{run_id}/events?after_ts=", f"/v1/runs/{run_id}/events?after_seq=",
        f"/v1/runs/{run_id}/events?cursor=", f"/v1/runs/{run_id}/events/stream?cursor=",
    ):  # fmt: skip
        answer = await api.get(path + quoted)
        assert (answer.status, answer.json["code"]) == (400, "invalid_request"), path


@pytest.mark.parametrize("number", [NUMBER_MAX + 1, 1 << 63, 1 << 64, 10**400, 0, -1])
async def test_numbers_of_a_body_have_bounds(api: Client, number: int) -> None:
    for field in ("invoke_ms", "first_byte_ms", "idle_ms"):
        answer = await api.post("/v1/agents/register", AGENT | {"timeouts": {field: number}})
        assert answer.status == 400, field
    for wrong in ({"max_concurrency": number}, {"retry": {"backoff_ms": number}}):
        assert (await api.post("/v1/agents/register", AGENT | wrong)).status == 400
    answer = await api.post("/internal/invoke", invocation(timeout_ms=number))
    assert answer.status == 400
    if abs(number) < 1 << 70:
        assert str(NUMBER_MAX) in answer.json["error"]


@pytest.mark.parametrize(
    ("wrong", "rule"),
    [
        ({"endpoint": "http://localhost:1/?token=x"}, "no query"),
        ({"endpoint": "http://localhost:1/#top"}, "no fragment"),
        ({"auth": {"token": "a\nb"}}, "printable ASCII"),
        ({"auth": {"token": "a\x00"}}, "printable ASCII"),
        ({"auth": {"token": "ä"}}, "printable ASCII"),
    ],
)
async def test_a_registration_that_could_not_be_called_is_refused(
    api: Client, wrong: dict[str, Any], rule: str
) -> None:
    answer = await api.post("/v1/agents/register", AGENT | wrong)
    assert (answer.status, rule in answer.json["error"]) == (400, True)


async def test_roles_are_named(api: Client) -> None:
    body = invocation()
    body["input_message"]["role"] = "robot"
    for path in ("/internal/invoke", "/v1/runs", "/v1/agents/demo:invoke"):
        answer = await api.post(path, body)
        assert (answer.status, "user, assistant, system, tool" in answer.json["error"]) == (
            400, True,
        )  # fmt: skip


@answered_in_front
@pytest.mark.parametrize(
    "lines",
    [
        ["Host: HERE", "Host: HERE"],
        ["Host: HERE", "Host: evil.example"],
        ["Host: HERE", "Origin: http://HERE", "Origin: http://HERE"],
        ["Host: localhost:80@evil.example"],
        ["Host: localhost:80:80"],
        ["Host: [::1]evil.example"],
        ["Host: [::1"],
        ["Host: HERE", "Origin: http://["],
        ["Host: HERE", "Origin: http://localhost:80@evil.example"],
        ["Host: HERE", "Origin: http://localhost.evil.example"],
        ["Host: HERE", "Origin: null"],
        ["Host: HERE", "Origin: localhost"],
        [],
    ],
)
async def test_hosts_and_origins_that_parsers_could_read_differently(
    api: Client, lines: list[str]
) -> None:
    status, said = await raw(api, get(api, *(line.replace("HERE", api.netloc) for line in lines)))
    assert (status, said["code"]) == (403, "forbidden")


@answered_in_front
@pytest.mark.parametrize("public_url", ["http://me@h.example", "http://bücher.example", ""])
async def test_a_public_url_of_an_odd_form_lets_nobody_in(
    database: Database, public_url: str
) -> None:
    async with serving(database, public_url=public_url) as api:
        for host in ("", "x y", "localhost:80@evil.example"):
            status, _ = await raw(api, get(api, f"Host: {host}"))
            assert status == 403


@answered_in_front
async def test_the_host_of_the_public_url_passes(database: Database) -> None:
    async with serving(database, public_url="https://H.example/base") as api:
        lines = ("Host: h.example:443", "Origin: https://h.example")
        assert (await raw(api, get(api, *lines)))[0] == 200


@answered_in_front
@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1:65535", "[::1]:8080"])
async def test_the_own_names_pass(api: Client, host: str) -> None:
    status, said = await raw(api, get(api, f"Host: {host}", f"Origin: http://{host}"))
    assert (status, set(said)) == (200, {"agents"})


@answered_in_front
@pytest.mark.parametrize(
    "request_",
    [b"nonsense\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00", b"GET / HTTP/1.1\r\nA b: c\r\n\r\n"],
)
async def test_what_is_not_http_is_answered_in_json(api: Client, request_: bytes) -> None:
    status, said = await raw(api, request_)
    assert (status, said["code"]) == (400, "malformed_request")


@answered_in_front
async def test_noise_behind_a_request_does_not_break_into_its_answer(database: Database) -> None:
    async with serving(database, hang) as api:
        run_id = (await api.post("/internal/invoke", invocation())).json["run_id"]
        host, port = api.netloc.split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        path = f"/v1/runs/{run_id}/events/stream"
        writer.write(f"GET {path} HTTP/1.1\r\nHost: {api.netloc}\r\n\r\n".encode())
        async with asyncio.timeout(10):
            await reader.readuntil(b"event: agent_stream_delta")
            writer.write(b"\x00\x00 nonsense\r\n\r\n")
            assert b"HTTP/1.1 400" not in await reader.read()
        writer.transport.abort()


async def test_keys_that_contradict_each_other(api: Client) -> None:
    body = msgspec.json.encode(invocation())
    start = f"POST /internal/invoke HTTP/1.1\r\nHost: {api.netloc}\r\nConnection: close\r\n"
    for second, expected in (("b", 400), ("a", 200)):
        keys = f"Idempotency-Key: a\r\nIdempotency-Key: {second}\r\n"
        request = f"{start}{keys}Content-Length: {len(body)}\r\n\r\n".encode() + body
        assert (await raw(api, request))[0] == expected


@answered_in_front
async def test_a_body_that_does_not_come_is_not_waited_for(database: Database) -> None:
    async with serving(database, body_idle_s=0.1) as api:
        start = (
            f"POST /internal/invoke HTTP/1.1\r\nHost: {api.netloc}\r\nContent-Length: 50\r\n\r\n"
        )
        status, said = await raw(api, start.encode() + b'{"session')
        assert (status, said["code"]) == (408, "body_too_slow")


@answered_in_front
async def test_after_too_large_a_body_the_connection_is_closed(database: Database) -> None:
    async with serving(database, body_limit=1000) as api:
        body = b" " * (4 << 20)
        start = f"POST /internal/invoke HTTP/1.1\r\nHost: {api.netloc}\r\n"
        whole = f"{start}Content-Length: {len(body)}\r\n\r\n".encode() + body
        assert (await raw(api, whole))[1]["code"] == "too_large"
        asking = f"{start}Expect: 100-continue\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        assert (await raw(api, asking))[1]["code"] == "too_large"
        answer = await api.post("/internal/invoke", b" " * 2000)
        assert (answer.status, answer.headers["connection"]) == (413, "close")


def test_a_parser_that_ran_out_of_memory_blames_nobody() -> None:
    class Full:
        def on_header(self, name: bytes, value: bytes) -> None:
            raise MemoryError

    with pytest.raises(httptools.HttpParserError) as caught:
        httptools.HttpRequestParser(Full()).feed_data(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    assert _out_of_memory(caught.value)
    with pytest.raises(httptools.HttpParserError) as caught:
        httptools.HttpRequestParser(Full()).feed_data(b"GET / HTTQ/1.1\r\n\r\n")
    assert not _out_of_memory(caught.value)
