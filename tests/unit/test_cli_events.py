"""What a conversation shows of a run's events."""

from typing import Any

import msgspec
import pytest

from orchestrator.cli.events import follow
from orchestrator.cli.output import Output
from orchestrator.clients.sse import SSEEvent


def told(kind: str, seq: int, **payload: Any) -> SSEEvent:
    body = {"event_id": "e", "run_id": "run_1", "seq": seq, "ts": 1, "type": kind}
    return SSEEvent(kind, msgspec.json.encode(body | {"payload": payload}).decode(), str(seq))


@pytest.mark.parametrize(
    "final", ["all at once", [{"type": "text", "text": "all at "}, {"text": "once"}]]
)
def test_an_answer_that_came_without_words_is_shown_at_its_end(
    final: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    done = told("agent_invoke_done", 1, final_message=final)
    follow([done, told("run_done", 2, final_message=final)], Output(json=False), talk=True)
    assert capsys.readouterr().out == "all at once\n"


def test_an_answer_whose_words_were_shown_is_not_shown_again(
    capsys: pytest.CaptureFixture[str],
) -> None:
    events = [
        told("agent_stream_delta", 1, text="a word"),
        told("agent_invoke_done", 2, final_message="a word"),
        told("run_done", 3),
    ]
    follow(events, Output(json=False), talk=True)
    assert capsys.readouterr().out == "a word\n"
