"""The demo agent keeps to the agent protocol, and does what its help says."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ..processes import ROOT, Frame, first_line, frames, request, spawn, until

PROGRAM = ROOT / "examples" / "demo_agent.py"


def ask(url: str, text: Any, *earlier: str, attempt: int = 1) -> list[Frame]:
    """Invoke the agent as the orchestrator does and return every frame of its answer."""
    transcript = [{"role": "user", "content": said} for said in earlier]
    body = {"input_message": {"role": "user", "content": text}, "messages": transcript}
    answer = request("POST", f"{url}/invoke", body, {"X-Attempt": str(attempt)})
    assert answer.status == 200
    assert answer.headers["content-type"] == "text/event-stream"
    return list(frames(iter(answer.body.splitlines(keepends=True))))


def spoken(answer: list[Frame]) -> str:
    """Return the joined deltas."""
    return "".join(frame.data["text"] for frame in answer if frame.event == "delta")


def test_it_streams_an_echo_and_closes_with_done(demo_agent: str) -> None:
    answer = ask(demo_agent, "Hello, how are you?")
    assert "Hello, how are you?" in spoken(answer)
    assert answer[-1].event == "done"
    assert answer[-1].data["final_message"] == spoken(answer).strip()
    assert answer[-1].data["usage"]["tokens"] == len(answer) - 1 > 10


def test_its_help_names_every_behaviour(demo_agent: str) -> None:
    said = spoken(ask(demo_agent, "help"))
    words = {line.split()[0] for line in said.splitlines() if line.startswith("  ")}
    assert words == {
        "help", "count", "slow", "think", "remember", "json", "fail", "crash", "flaky", "hang",
    }  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), [("count 3", "1 2 3"), ("slow 1", "done")])
def test_numbers_are_taken_from_the_message(demo_agent: str, text: str, expected: str) -> None:
    assert ask(demo_agent, text)[-1].data["final_message"] == expected


def test_parts_are_read_as_their_text(demo_agent: str) -> None:
    parts = [{"type": "text", "text": "count "}, {"type": "text", "text": "2"}]
    assert ask(demo_agent, parts)[-1].data["final_message"] == "1 2"


def test_thinking_shows_states_before_the_answer(demo_agent: str) -> None:
    answer = ask(demo_agent, "think")
    assert [frame.data["state"] for frame in answer[:3]] == ["thinking"] * 3
    assert answer[3].event == "delta"


def test_it_remembers_by_the_transcript(demo_agent: str) -> None:
    assert "“blue”" in spoken(ask(demo_agent, "remember", "blue"))
    assert "nothing yet" in spoken(ask(demo_agent, "remember"))


def test_an_event_of_its_own(demo_agent: str) -> None:
    assert ask(demo_agent, "json")[0].event == "weather"


def test_failing_ends_with_error_and_no_done(demo_agent: str) -> None:
    answer = ask(demo_agent, "fail")
    assert answer[-1].data["code"] == "demo_failure"
    assert all(frame.event != "done" for frame in answer)


def test_crashing_ends_without_a_word(demo_agent: str) -> None:
    assert {frame.event for frame in ask(demo_agent, "crash")} == {"delta"}
    assert {frame.event for frame in ask(demo_agent, "flaky")} == {"delta"}
    assert ask(demo_agent, "flaky", attempt=2)[-1].event == "done"


def test_hanging_says_nothing(demo_agent: str) -> None:
    body = {"input_message": {"role": "user", "content": "hang"}}
    with pytest.raises(TimeoutError):
        request("POST", f"{demo_agent}/invoke", body, timeout_s=0.3)


def test_what_is_no_invocation_is_refused(demo_agent: str) -> None:
    bodies: tuple[Any, ...] = (b"{", {}, [], {"input_message": "text"})
    for body in bodies:
        assert request("POST", f"{demo_agent}/invoke", body).status == 400
    assert request("GET", f"{demo_agent}/health").json()["status"] == "healthy"
    assert request("GET", f"{demo_agent}/elsewhere").status == 404


def test_it_does_not_outlive_its_parent(tmp_path: Path) -> None:
    log = tmp_path / "agent.log"
    command = [sys.executable, str(PROGRAM), "--port", "0", "--until-eof"]
    agent = spawn(command, tmp_path, log, {}, stdin=subprocess.PIPE)
    until(lambda: first_line(log), "its address")
    assert agent.poll() is None
    assert agent.stdin
    agent.stdin.close()
    assert agent.wait(10) == 0


def test_it_fits_on_a_few_screens_and_needs_nothing_installed() -> None:
    source = PROGRAM.read_text()
    assert source.count("\n") < 200
    imported = [line.split()[1].partition(".")[0] for line in source.splitlines()
                if line.startswith(("import ", "from "))]  # fmt: skip
    assert set(imported) <= sys.stdlib_module_names
