"""How the SDK reads a stream and waits, without a network: the same bytes, split anywhere."""

import random
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.clients.sse import SSEParser as Oracle
from orchestrator_sdk import ConnectionLost, Forbidden, ProtocolError, QueueFull, RunFailed, Secret
from orchestrator_sdk.errors import APIError, api_error
from orchestrator_sdk.following import Following, outcome
from orchestrator_sdk.shapes import RunInfo
from orchestrator_sdk.sse import LINE_MAX, SSEParser
from orchestrator_sdk.transport import MOST_S, RETRY_AFTER_MAX_S, Patience

STREAM = {"content-type": "text/event-stream; charset=utf-8"}
ASKED = {"Accept": "text/event-stream", "Accept-Encoding": "identity"}
PIECES = ["event: a", "event:", "data: x", "data:", "data: ü\u2028", "id: 7.1", "id", ":c",
          "retry: 5", "other: 1", "\n", "\r", "\r\n", "\n\n", "\r\r", "\ufeff"]  # fmt: skip


@given(st.lists(st.sampled_from(PIECES), max_size=20), st.integers(0, 2**32))
def test_bytes_are_events_as_the_standard_says_wherever_they_are_split(
    pieces: list[str], seed: int
) -> None:
    data, chance = "".join(pieces).encode(), random.Random(seed)
    expected = [(e.event, e.data, e.id) for e in Oracle().feed(data)]
    parser, found, at = SSEParser(), [], 0
    while at < len(data):
        size = chance.randint(1, 5)
        found += parser.feed(data[at : at + size])
        at += size
    assert [(e.event, e.data, e.id) for e in found] == expected


def test_an_endless_line_is_refused() -> None:
    parser = SSEParser()
    half = b"x" * (LINE_MAX // 2)
    assert parser.feed(half) == parser.feed(half) == []
    with pytest.raises(ProtocolError):
        parser.feed(b"x")


def frame(seq: int, type: str = "agent_stream_delta", mark: str = "", **payload: Any) -> bytes:  # noqa: A002  # the wire's
    event = {"event_id": f"evt_{seq}", "run_id": "run_1", "seq": seq, "ts": 1, "type": type}
    data = msgspec.json.encode({**event, "payload": payload})
    return b"id: %d%b\nevent: %b\ndata: %b\n\n" % (seq, mark.encode(), type.encode(), data)


def test_what_was_seen_does_not_come_again_and_the_cursor_is_the_servers() -> None:
    reader = Following("run_1")
    assert reader.request() == ({}, ASKED)
    assert reader.opened(200, STREAM)
    assert [e.text for e in reader.feed(frame(1, text="a") + frame(2, text="b")[:-1])] == ["a"]
    assert reader.request()[1]["Last-Event-ID"] == "1"
    reader.opened(200, STREAM)
    found = reader.feed(frame(1, text="a") + frame(2, mark=".3", text="b"))
    assert [e.text for e in found] == ["b"]
    assert reader.request() == ({}, ASKED | {"Last-Event-ID": "2.3"})


def test_a_bare_seq_is_asked_for_as_todays() -> None:
    assert Following("run_1", 5).request()[0] == {"after_seq": "5"}


def test_a_reset_log_is_told_and_read_again() -> None:
    reader = Following("run_1")
    reader.opened(200, STREAM)
    reader.feed(b"".join(frame(n, mark=".0", text=str(n)) for n in range(1, 6)))
    reader.opened(200, STREAM)
    again = b'event: log_reset\ndata: {"after_seq":3}\n\n' + frame(4, mark=".1", text="new")
    reset, event = reader.feed(again)
    assert (reset.type, reset.payload, reset.text) == ("log_reset", {"after_seq": 3}, "")
    assert (event.seq, event.text) == (4, "new")
    assert reader.request()[1]["Last-Event-ID"] == "4.1"
    reader.opened(200, STREAM)
    reader.feed(b'event: log_reset\ndata: {"after_seq":2}\n\n')
    assert reader.request()[0] == {"after_seq": "2"}


def test_the_terminal_event_ends_it_and_204_says_that_it_was_seen() -> None:
    reader = Following("run_1")
    reader.opened(200, STREAM)
    reader.feed(frame(1, "agent_invoke_done", final_message="yes", usage={}))
    reader.feed(frame(2, "run_done", usage={"tokens": 1}) + frame(3, text="more"))
    assert (reader.ended, reader.seq) == (True, 2)
    result = reader.result()
    assert result is not None
    assert (result.text, result.usage) == ("yes", {"tokens": 1})
    late = Following("run_1", 2)
    assert not late.opened(204, {})
    assert (late.ended, late.result()) == (True, None)
    with pytest.raises(RunFailed, match="why"):
        outcome(_run("FAILED", error={"code": "c", "message": "why"}))
    with pytest.raises(ProtocolError):
        outcome(_run("RUNNING"))


def _run(status: str, **more: Any) -> RunInfo:
    return RunInfo(run_id="run_1", session_id="s", agent_id="a", status=status, **more)


@pytest.mark.parametrize(
    "data", [b"data: nonsense\n\n", b"data: {}\n\n", b"event: log_reset\ndata: [\n\n"]
)
def test_a_stream_that_is_none_of_ours_is_refused(data: bytes) -> None:
    reader = Following("run_1")
    with pytest.raises(ProtocolError):
        reader.opened(200, {"content-type": "text/html"})
    with pytest.raises(ProtocolError, match="answered in gzip"):
        reader.opened(200, STREAM | {"content-encoding": "gzip"})
    reader.opened(200, STREAM)
    with pytest.raises(ProtocolError):
        reader.feed(data)


def test_waits_grow_are_bounded_and_follow_the_servers_wish(
    caplog: pytest.LogCaptureFixture,
) -> None:
    patience = Patience(1000.0)
    waits = [patience.after(OSError("refused")) for _ in range(30)]
    assert waits[0] <= 0.1 < waits[6]
    assert max(waits) <= MOST_S
    assert min(waits[10:]) >= MOST_S / 2
    [told] = caplog.messages
    assert told.startswith("the orchestrator did not answer for ")
    assert told.endswith(" (OSError: refused); trying again for 1000 s")
    caplog.clear()
    page = api_error(502, {}, b"<html>bad gateway</html>")
    down = Patience(1000.0)
    assert [down.after(page) for _ in range(9)]
    assert [text.partition("(")[2] for text in caplog.messages] == [
        "502 error); trying again for 1000 s"
    ]
    patience.progressed()
    assert patience.after(OSError()) <= 0.1
    busy = api_error(429, {"retry-after": "7"}, b'{"error":"full","code":"queue_full"}')
    assert isinstance(busy, QueueFull)
    assert (busy.retryable, patience.after(busy)) == (True, 7.0)
    for_ever = api_error(503, {"retry-after": "999999"}, b"")
    assert patience.after(for_ever) == RETRY_AFTER_MAX_S
    with pytest.raises(QueueFull):
        Patience(1.0).after(busy)
    with pytest.raises(ConnectionLost):
        Patience(0.0).after(OSError("refused"))
    with pytest.raises(Forbidden):
        patience.after(api_error(403, {}, b'{"error":"no","code":"forbidden"}'))


def test_refusals_are_told_apart_by_code_then_by_status() -> None:
    assert type(api_error(404, {}, b'{"error":"x","code":"brand_new"}')).__name__ == "NotFound"
    assert api_error(404, {}, b'{"error":"x","code":"brand_new"}').code == "brand_new"
    openai = b'{"error":{"message":"no model","type":"t","param":null,"code":"model_not_found"}}'
    found = api_error(404, {}, openai)
    assert (found.message, found.code) == ("no model", "model_not_found")
    html = api_error(502, {}, b"<html>bad gateway</html>")
    assert (type(html), html.retryable, html.message) == (
        APIError,
        True,
        "<html>bad gateway</html>",
    )
    assert api_error(500, {}, b"").message == "the server answered 500"
    moved = api_error(301, {"location": "https://there/"}, b"<html>moved</html>")
    assert "redirects to https://there/" in moved.message


def test_a_secret_shows_itself_only_when_asked() -> None:
    secret = Secret("canary")
    assert (repr(secret), f"{secret}", secret.reveal()) == ("Secret(…)", "Secret(…)", "canary")
    assert secret.matches("canary")
    assert not secret.matches("canari")
