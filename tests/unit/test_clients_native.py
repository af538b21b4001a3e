"""The native dialect, byte for byte and without a connection."""

from collections.abc import Iterable, Iterator
from typing import Any

import msgspec
import pytest

from orchestrator.clients.dial import Target
from orchestrator.clients.exchange import ExchangeFailed
from orchestrator.clients.native import Native, NativeDecoder
from orchestrator.clients.streaming import encode
from orchestrator.core.errors import AgentFailure
from orchestrator.core.frames import Delta, Done, Failed, Frame, Other, Paused, State, singly
from orchestrator.core.secret import Secret
from orchestrator.testing.fake_agent import calling

GOOD = (
    "\ufeff: hello\n"
    'event: delta\nid: 1\ndata: {"text": "Hé\\n", "run_id": "run_001"}\n\n'
    'event: state\ndata: {"state": "thinking",\ndata:  "detail": {"step": 1}}\n\n'
    "data: just words\n\n"
    'event: metrics\ndata: {"gpu": [1, 2.5, null]}\n\n'
    'event: delta\ndata: {"text": "a\u2028b\u0085c 😀"}\n\n'
    'event: done\ndata: {"final_message": "bye", "usage": {"tokens": 10, "x": {}}}\n\n'
)
FRAMES: list[Frame] = [
    Delta("Hé\n"),
    State("thinking", {"step": 1}),
    Other("message", "just words"),
    Other("metrics", {"gpu": [1, 2.5, None]}),
    Delta("a\u2028b\u0085c 😀"),
    Done("bye", {"tokens": 10, "x": {}}),
]


def decoded(pieces: Iterable[bytes]) -> Iterator[Frame]:
    """Yield the frames of a whole answer."""
    decoder = NativeDecoder()
    for piece in pieces:
        yield from singly(decoder.feed(piece))
    yield from decoder.close()


def up_to_the_end(pieces: Iterable[bytes]) -> list[Frame]:
    """Return the frames up to the ending one, as the engine reads them."""
    frames: list[Frame] = []
    for frame in decoded(pieces):
        frames.append(frame)
        if isinstance(frame, Done | Failed | Paused):
            break
    return frames


def event(name: str, data: str) -> bytes:
    """Return one event with data that need not be JSON."""
    return f"event: {name}\ndata: {data}\n\n".encode()


@pytest.mark.parametrize("newline", ["\n", "\r", "\r\n"])
def test_the_frames_are_the_same_wherever_the_bytes_are_split(newline: str) -> None:
    answer = GOOD.replace("\n", newline).encode()
    for size in range(1, len(answer) + 1):
        pieces = [answer[at : at + size] for at in range(0, len(answer), size)]
        assert up_to_the_end(pieces) == FRAMES, size
    for at in range(len(answer)):
        assert up_to_the_end([answer[:at], answer[at:]]) == FRAMES, at


@pytest.mark.parametrize(
    ("name", "data", "frame"),
    [
        ("delta", '{"text":""}', Delta("")),
        ("delta", '{"text":"\\ud83d!"}', Delta("\ufffd!")),
        ("delta", '{"text":"\\ud83d\\ude00"}', Delta("😀")),
        ("done", "{}", Done(None, {})),
        ("done", '{"final_message":null,"usage":null}', Done(None, {})),
        (
            "done",
            '{"final_message":[{"type":"text","text":"x"}]}',
            Done([{"type": "text", "text": "x"}]),
        ),
        ("done", '{"more":1}', Done()),
        ("error", '{"code":"quota","message":"no more"}', Failed("quota", "no more")),
        (
            "pause",
            '{"wait_for":["tc_1","tc_2"],"state":{"at":3}}',
            Paused(("tc_1", "tc_2"), {"at": 3}),
        ),
        ("Delta", '{"text":1}', Other("Delta", {"text": 1})),
        ("ping", "not json", Other("ping", "not json")),
        ("ping", "NaN", Other("ping", "NaN")),
        ("ping", '"\\ud83d"', Other("ping", "\ufffd")),
    ],
)
def test_an_event_becomes_a_frame(name: str, data: str, frame: Frame) -> None:
    assert next(decoded([event(name, data)])) == frame


def test_an_error_event_needs_neither_code_nor_message() -> None:
    frame = next(decoded([event("error", "{}")]))
    assert isinstance(frame, Failed)
    assert frame.code == "agent_error"


MALFORMED = [
    (name, data)
    for name in ("delta", "state", "done", "error", "pause")
    for data in ("{", "", "nope", "[1]", '"text"', "null", "{}x")
] + [
    ("delta", "{}"),
    ("delta", '{"text":null}'),
    ("delta", '{"text":7}'),
    ("state", '{"detail":1}'),
    ("done", '{"final_message":7}'),
    ("done", '{"final_message":["x"]}'),
    ("done", '{"usage":[]}'),
    ("error", '{"code":500}'),
    ("pause", "{}"),
    ("pause", '{"wait_for":"tc_1"}'),
    ("pause", '{"wait_for":[1]}'),
]


@pytest.mark.parametrize(("name", "data"), MALFORMED)
def test_a_malformed_frame_of_the_five_fails(name: str, data: str) -> None:
    with pytest.raises(AgentFailure, match=name) as caught:
        next(decoded([event(name, data)]))
    assert (caught.value.code, caught.value.retryable) == ("agent_protocol", False)


def test_values_that_no_store_could_keep_stay_text() -> None:
    deep = "[" * 100_000
    huge = "1" * 100_000
    for data in (deep, huge):
        frame = next(decoded([event("odd", data)]))
        assert frame == Other("odd", data)
        with pytest.raises(AgentFailure, match="malformed state"):
            next(decoded([event("state", f'{{"state":"x","detail":{data}}}')]))


def test_bytes_that_are_not_utf8_become_replacement_characters() -> None:
    frame = next(decoded([b'event: delta\ndata: {"text":"a\xff\xc3b"}\n\n']))
    assert frame == Delta("a\ufffd\ufffdb")


def test_a_last_event_needs_no_blank_line_if_its_json_is_complete() -> None:
    assert up_to_the_end([b'event: done\ndata: {"usage":{"tokens":1}}']) == [
        Done(None, {"tokens": 1})
    ]
    with pytest.raises(AgentFailure) as caught:
        up_to_the_end([b'event: done\ndata: {"usage":{"tok'])
    assert caught.value.code == "agent_eof"


def test_an_end_without_done_may_be_tried_again() -> None:
    with pytest.raises(AgentFailure) as caught:
        list(decoded([event("delta", '{"text":"x"}')]))
    assert (caught.value.code, caught.value.retryable) == ("agent_eof", True)


@pytest.mark.parametrize(("over", "fits"), [(0, True), (1, False)])
def test_a_line_may_have_a_mebibyte(over: int, fits: bool) -> None:
    frame = b'data: {"text":"%b"}'
    size = (1 << 20) - len(frame % b"") + over
    answer = b"event: delta\n" + frame % (b"x" * size) + b"\n\n"
    if fits:
        assert next(decoded([answer])) == Delta("x" * size)
        return
    with pytest.raises(AgentFailure, match="line is over 1048576") as caught:
        next(decoded([answer]))
    assert (caught.value.code, caught.value.retryable) == ("agent_protocol", False)


def told(**changes: Any) -> tuple[dict[str, str], Any]:
    """Return headers and decoded body of an invocation."""
    request = Native().request(calling("http://agent:8000/base/", **changes))
    assert (request.method, request.url) == ("POST", "http://agent:8000/base/invoke")
    return dict(request.headers), msgspec.json.decode(request.body or b"")


def test_the_request_is_the_contracts() -> None:
    headers, body = told(
        attempt=3,
        messages=[{"role": "user", "content": "earlier"}],
        context={"user_id": "u1"},
        credential=Secret("secret"),
        run_token=Secret("rt_1"),
    )
    assert headers == {
        "Content-Type": "application/json",
        "Accept": "text/event-stream",
        "X-Session-ID": "sess_001",
        "X-Run-ID": "run_001",
        "X-Attempt": "3",
        "X-Platform-Base-URL": "http://127.0.0.1:8080",
        "Idempotency-Key": "run_001",
        "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "X-Run-Token": "rt_1",
        "Authorization": "Bearer secret",
    }
    assert body == {
        "agent_id": "demo_agent",
        "session_id": "sess_001",
        "run_id": "run_001",
        "input_message": {"role": "user", "content": "Hello, how are you?"},
        "messages": [{"role": "user", "content": "earlier"}],
        "context": {"user_id": "u1"},
    }


def test_what_is_not_there_is_not_sent() -> None:
    headers, body = told()
    assert not {"X-Run-Token", "Authorization"} & headers.keys()
    assert "resume" not in body
    assert body["messages"] == []
    resume = {"state": None, "results": [{"tool_call_id": "tc_1", "status": "succeeded"}]}
    assert told(resume=resume)[1]["resume"] == resume


def test_a_session_may_be_called_anything_its_rule_allows() -> None:
    target = Target.of("http://agent/invoke")
    names = "сессия ☂\u2028"
    sent = encode(Native().request(calling("http://agent", session_id=names)), target)
    assert f"X-Session-ID: {names}\r\n".encode() in sent
    forged = calling("http://agent", session_id="s\r\nX-Forged: 1")
    with pytest.raises(ExchangeFailed):
        encode(Native().request(forged), target)
