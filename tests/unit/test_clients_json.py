"""The json dialect: whatever JSON comes, its text is found."""

from typing import Any

import msgspec
import pytest

from orchestrator.clients.json_agent import BODY_MAX, JSONAgent, JSONDecoder
from orchestrator.core.errors import AgentFailure
from orchestrator.core.frames import Delta, Done, Frame
from orchestrator.core.secret import Secret
from orchestrator.testing.fake_agent import calling


def decoded(*pieces: bytes) -> list[Frame]:
    """Return the frames of an answer that came in pieces."""
    decoder = JSONDecoder()
    for piece in pieces:
        assert list(decoder.feed(piece)) == []
    return list(decoder.close())


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ("words", "words"),
        ({"output": "o", "text": "t"}, "o"),
        ({"final_message": "f", "output": "o"}, "f"),
        ({"answer": "a"}, "a"),
        ({"content": "c"}, "c"),
        ({"message": {"role": "assistant", "content": "m"}}, "m"),
        ({"response": "r"}, "r"),
        ({"output": None, "response": ""}, ""),
        ({"output": 7, "text": "t"}, "t"),
        ({"sum": 7}, '{"sum":7}'),
        ([1, "two"], '[1,"two"]'),
        (None, "null"),
    ],
)
def test_the_text_is_found(answer: Any, text: str) -> None:
    assert decoded(msgspec.json.encode(answer)) == [Delta(text), Done(text, {})]


def test_usage_is_kept_when_it_is_an_object() -> None:
    usage = {"tokens": 3, "odd": [1]}
    assert decoded(b'{"text":"x","usage":', msgspec.json.encode(usage), b"}")[-1] == Done(
        "x", usage
    )
    assert decoded(b'{"text":"x","usage":7}')[-1] == Done("x", {})


def test_lone_surrogates_and_bad_bytes_are_replaced() -> None:
    assert decoded(b'"\\ud83d\xff"')[0] == Delta("\ufffd\ufffd")


@pytest.mark.parametrize("body", [b"", b"{", b"words", b"[" * 100_000])
def test_what_is_not_json_fails(body: bytes) -> None:
    with pytest.raises(AgentFailure, match="not JSON") as caught:
        decoded(body)
    assert (caught.value.code, caught.value.retryable) == ("agent_protocol", False)


def test_the_body_is_bounded() -> None:
    decoded(b'"' + b"x" * (BODY_MAX - 2) + b'"')
    with pytest.raises(AgentFailure, match="over 1048576 bytes") as caught:
        decoded(b'"' + b"x" * (BODY_MAX - 1) + b'"')
    assert caught.value.code == "agent_protocol"


def test_the_endpoint_is_used_as_it_is() -> None:
    request = JSONAgent().request(calling("http://agent/run/?mode=fast", credential=Secret("c")))
    assert (request.method, request.url) == ("POST", "http://agent/run/?mode=fast")
    assert request.headers["Accept"] == "application/json"
    assert request.headers["Authorization"] == "Bearer c"


@pytest.mark.parametrize(
    ("kind", "taken"),
    [
        ("application/json", True),
        ("application/problem+json", True),
        ("text/html", False),
        ("", False),
    ],
)
def test_only_json_is_taken(kind: str, taken: bool) -> None:
    assert (JSONAgent().decoder(kind) is not None) is taken
