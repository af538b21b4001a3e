"""The openai dialect: chunks, whole completions, and how servers end them."""

import json
from typing import Any

import msgspec
import pytest

from orchestrator.clients.openai_agent import OpenAIAgent, completions_url
from orchestrator.core.errors import AgentFailure
from orchestrator.core.frames import Delta, Done, Failed, Frame
from orchestrator.core.secret import Secret
from orchestrator.testing.fake_agent import calling

USAGE = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3, "details": {"cached": 1}}


def chunk(content: str | None = None, finish: str | None = None, **more: Any) -> bytes:
    """Return one chunk of a completion as an event."""
    choice = {"index": 0, "delta": {"content": content}, "finish_reason": finish}
    return b"data: " + json.dumps({"choices": [choice]} | more).encode() + b"\n\n"


def decoded(answer: bytes, kind: str = "text/event-stream", size: int = 10_000) -> list[Frame]:
    """Return the frames up to the first that ends the answer."""
    decoder = OpenAIAgent().decoder(kind)
    assert decoder is not None
    frames: list[Frame] = []
    for at in range(0, len(answer), size):
        frames += decoder.feed(answer[at : at + size])
    return (
        frames if any(isinstance(f, Done | Failed) for f in frames) else [*frames, *decoder.close()]
    )


def test_a_stream_of_chunks_becomes_deltas_and_done() -> None:
    answer = (
        chunk("")
        + chunk("Hello")
        + b": keep-alive\n\n"
        + chunk(" 😀")
        + chunk(finish="stop")
        + chunk(choices=[], usage=USAGE)
        + b"data: [DONE]\n\n"
    )
    for size in (1, 2, 3, 7, len(answer)):
        assert decoded(answer, size=size) == [Delta("Hello"), Delta(" 😀"), Done(usage=USAGE)]


def test_done_needs_no_finish_reason_and_a_finish_reason_no_done() -> None:
    assert decoded(chunk("a") + b"data: [DONE]\n\n") == [Delta("a"), Done()]
    assert decoded(chunk("a", "length", usage=USAGE)) == [Delta("a"), Done(usage=USAGE)]


def test_a_stream_that_just_stops_is_not_done() -> None:
    with pytest.raises(AgentFailure) as caught:
        decoded(chunk("a"))
    assert (caught.value.code, caught.value.retryable) == ("agent_eof", True)


@pytest.mark.parametrize(
    ("error", "frame"),
    [
        ({"message": "slow down", "code": "rate_limit"}, Failed("rate_limit", "slow down")),
        ({"message": "no", "type": "server_error", "code": None}, Failed("server_error", "no")),
        ("plain words", Failed("agent_error", "plain words")),
    ],
)
def test_an_error_object_fails_the_run(error: Any, frame: Failed) -> None:
    assert decoded(chunk("a") + chunk(error=error)) == [Delta("a"), frame]
    whole = json.dumps({"error": error}).encode()
    assert decoded(whole, "application/json") == [frame]


@pytest.mark.parametrize("data", [b"nope", b"[1]", b"{", b"7"])
def test_a_chunk_that_is_not_an_object_fails(data: bytes) -> None:
    with pytest.raises(AgentFailure, match="chunk") as caught:
        decoded(b"data: " + data + b"\n\n")
    assert caught.value.code == "agent_protocol"


@pytest.mark.parametrize(
    "answer", [{}, {"choices": []}, {"choices": [1]}, {"choices": [{"delta": {}}]}, []]
)
def test_a_completion_without_message_fails(answer: Any) -> None:
    with pytest.raises(AgentFailure, match="message") as caught:
        decoded(json.dumps(answer).encode(), "application/json")
    assert caught.value.code == "agent_protocol"


@pytest.mark.parametrize(
    "odd", [{"choices": None}, {"choices": [{}]}, {"usage": 1}, {"choices": {}}]
)
def test_odd_chunks_say_nothing(odd: dict[str, Any]) -> None:
    answer = b"data: " + json.dumps(odd).encode() + b"\n\ndata: [DONE]\n\n"
    assert decoded(answer) == [Done()]


def test_an_answer_that_does_not_stream_is_taken_too() -> None:
    message = {"role": "assistant", "content": "all at once"}
    whole = json.dumps({"choices": [{"message": message}], "usage": USAGE}).encode()
    assert decoded(whole, "application/json") == [Delta("all at once"), Done(usage=USAGE)]


@pytest.mark.parametrize(
    ("endpoint", "url"),
    [
        ("https://a.test", "https://a.test/v1/chat/completions"),
        ("https://a.test/", "https://a.test/v1/chat/completions"),
        ("https://a.test/v1", "https://a.test/v1/chat/completions"),
        ("https://a.test/api/v3/", "https://a.test/api/v3/chat/completions"),
        ("https://a.test/v1/chat/completions", "https://a.test/v1/chat/completions"),
    ],
)
def test_the_address_is_found(endpoint: str, url: str) -> None:
    assert completions_url(endpoint) == url


def test_the_request_is_a_streaming_completion() -> None:
    earlier = [{"role": "assistant", "content": "before"}]
    request = OpenAIAgent().request(
        calling("http://a.test", messages=earlier, credential=Secret("k"))
    )
    assert msgspec.json.decode(request.body or b"") == {
        "model": "demo_agent",
        "messages": [*earlier, {"role": "user", "content": "Hello, how are you?"}],
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    assert request.headers["Authorization"] == "Bearer k"
    chosen = OpenAIAgent().request(calling("http://a.test", context={"model": "big"}))
    assert msgspec.json.decode(chosen.body or b"")["model"] == "big"
