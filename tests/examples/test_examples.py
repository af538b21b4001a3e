"""Every example is started by the commands in its first comment, and does what that says."""

import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest

from ..processes import Running, request, until
from .stage import EXAMPLES, FILES, Stage, body, commands, opening, stage, third_party

MAX_LINES = 60
BY_PIECES = "its words come piece by piece"  # a probe cannot tell where they are few
ANSWERED = "an ordinary message is answered, not failed"
PARTS = "it understands content that is a list of parts"
HEALTH = "GET /health says how it is (optional)"


class Agent(NamedTuple):
    """An agent of an example: where it answers, what it is asked, what it says.

    `unsure` are the rules that a probe cannot decide for it.
    """

    file: str
    agent_id: str
    endpoint: str
    asked: str
    says: str
    unsure: frozenset[str] = frozenset()
    protocol: str = "native"


AGENTS = (
    Agent("echo_agent.py", "echo", "http://localhost:8001", "Hi", "You said: Hi"),
    Agent("team.py", "counter", "http://localhost:8002", "a b A", "3 a 2"),
    # No probe brings the colleague, without whom it fails as an agent should.
    Agent("team.py", "editor", "http://localhost:8003", "so so",
          "Of 2 words I would cut one: you say “so” 2 times.", frozenset({ANSWERED, PARTS})),
    Agent("langgraph_agent.py", "weather", "http://localhost:8004", "And in Oslo?",
          "In Oslo it is 21 degrees and sunny."),
    Agent("openai_agent.py", "parrot", "http://localhost:8005", "Hi",
          "Message 1 of this conversation was: Hi", frozenset({HEALTH}), "openai"),
    Agent("fastapi_service.py", "storeroom", "http://localhost:8006/agents/storeroom",
          "Plums?", "I know of apples and pears."),
    Agent("node_agent.mjs", "countdown", "http://localhost:8007", "2", "2 1 lift-off"),
    Agent("plain_agent.py", "backwards", "http://localhost:8008", "b a", "a b"),
)  # fmt: skip
every_agent = pytest.mark.parametrize("agent", AGENTS, ids=[agent.agent_id for agent in AGENTS])


def played(here: Stage, name: str) -> None:
    """Return once an example runs, started unless it was, and the server knows its agents."""
    agents = [agent for agent in AGENTS if agent.file == name]
    first, *others = commands(name)
    if name not in here.started:
        running = here.start(first.text, name)
        here.answers(agents[0].endpoint, running)
        for command in others[:-1]:
            here.run(command.text)
    known = {agent.agent_id for agent in agents}
    until(lambda: known <= statuses(here).keys(), f"{known} are registered", 30)


def statuses(here: Stage) -> dict[str, str]:
    """Return what the server says of its agents."""
    found = request("GET", here.here("http://localhost:8080/v1/agents")).json()["agents"]
    return {one["agent_id"]: one["status"] for one in found}


def run(here: Stage, agent_id: str, text: str, **more: Any) -> dict[str, Any]:
    """Run an agent to its end and return what the API says of the run."""
    asked = {"agent_id": agent_id, "input_message": {"role": "user", "content": text}}
    url = here.here("http://localhost:8080/v1/runs")
    answer = request("POST", url, {"wait": True, **asked, **more})
    assert answer.status < 300, answer.body
    found: dict[str, Any] = answer.json()
    return found


def events(here: Stage, run_id: str) -> list[Any]:
    """Return the events of a run as (type, payload)."""
    url = here.here(f"http://localhost:8080/v1/runs/{run_id}/events?limit=1000")
    return [(one["type"], one["payload"]) for one in request("GET", url).json()["events"]]


def states(log: list[Any]) -> list[str]:
    return [payload["state"] for kind, payload in log if kind == "agent_state"]


@pytest.mark.parametrize("name", FILES)
def test_an_example_is_short_and_says_how_it_is_run(name: str) -> None:
    assert len((EXAMPLES / name).read_text().splitlines()) < MAX_LINES
    assert opening(name).partition("\n")[0].endswith(".")
    assert 2 <= len(commands(name)) <= 3
    assert name.removesuffix(".py") in opening(name)


def test_the_shortest_agent_has_ten_lines_at_most() -> None:
    assert len(body("echo_agent.py")) <= 10


def test_every_example_is_played_and_in_the_table() -> None:
    page = (EXAMPLES / "README.md").read_text()
    needs = dict(re.findall(r"^\| \[([\w.]+)\]\(\1\) \| .+ \| (.+) \|$", page, re.MULTILINE))
    assert needs.keys() == {*FILES, "demo_agent.py"}
    assert {*FILES} == {agent.file for agent in AGENTS} | {"browser.html"}
    for name in (name for name in needs if name.endswith(".py")):
        libraries = third_party(name) - {"langchain_core"}  # a part of langgraph
        assert libraries == set(re.findall(r"`(\w+)`", needs[name])), name


@pytest.mark.parametrize("name", sorted({agent.file for agent in AGENTS}))
def test_the_commands_print_what_the_file_says(playing: Stage, name: str) -> None:
    played(playing, name)
    last = commands(name)[-1]
    assert last.prints
    assert playing.run(last.text) == f"{last.prints}\n"


@every_agent
def test_an_agent_answers_through_the_api(playing: Stage, agent: Agent) -> None:
    played(playing, agent.file)
    found = run(playing, agent.agent_id, agent.asked)
    assert (found["status"], found["final_message"]) == ("DONE", agent.says)


@every_agent
def test_an_agent_breaks_no_rule(playing: Stage, agent: Agent) -> None:
    played(playing, agent.file)
    probe = f"./orchestrator probe {agent.endpoint} --protocol {agent.protocol} --json"
    verdicts = [msgspec.json.decode(line) for line in playing.run(probe).splitlines()]
    assert len(verdicts) >= 9
    assert [one for one in verdicts if one["good"] is False] == []
    unsure = {one["rule"] for one in verdicts if one["good"] is None}
    assert unsure - {BY_PIECES} == agent.unsure, verdicts


def test_the_team_is_a_run_and_its_child(playing: Stage) -> None:
    played(playing, "team.py")
    found = run(playing, "editor", "well, well")
    log = events(playing, found["run_id"])
    assert states(log) == ["counting"]
    (child,) = [payload for kind, payload in log if kind == "agent_called_child"]
    url = playing.here(f"http://localhost:8080/v1/runs/{child['child_run_id']}")
    told = request("GET", url).json()
    assert (told["agent_id"], told["status"]) == ("counter", "DONE")
    assert told["parent_run_id"] == found["run_id"]


def test_the_nodes_of_the_graph_are_states_and_its_tokens_words(playing: Stage) -> None:
    played(playing, "langgraph_agent.py")
    log = events(playing, run(playing, "weather", "Oslo")["run_id"])
    assert states(log) == ["look_up", "tell"]
    assert sum(kind == "agent_stream_delta" for kind, _ in log) > 5


def test_the_model_gets_the_conversation(playing: Stage) -> None:
    played(playing, "openai_agent.py")
    run(playing, "parrot", "one", session_id="talk")
    found = run(playing, "parrot", "two", session_id="talk")
    assert found["final_message"] == "Message 2 of this conversation was: two"
    url = playing.here("http://localhost:8005/v1/chat/completions")
    whole = request("POST", url, {"messages": [{"role": "user", "content": "alone"}]})
    assert whole.json()["choices"][0]["message"]["content"].endswith("was: alone")


def test_the_route_that_the_service_had_still_answers(playing: Stage) -> None:
    played(playing, "fastapi_service.py")
    answer = request("GET", playing.here("http://localhost:8006/stock/pears"))
    assert (answer.status, answer.json()) == (200, {"pears": 7})


def test_the_countdown_ends_when_its_run_is_cancelled(playing: Stage) -> None:
    played(playing, "node_agent.mjs")
    run_id = run(playing, "countdown", "1000", wait=False)["run_id"]
    until(lambda: len(events(playing, run_id)) > 6, "it has begun to count")
    url = playing.here(f"http://localhost:8080/v1/runs/{run_id}")
    assert request("POST", f"{url}:cancel", {}).status == 200
    until(lambda: request("GET", url).json()["status"] == "CANCELLED", "it is cancelled")
    agent = playing.started["node_agent.mjs"]
    until(lambda: "not counting on from 1000: cancelled" in agent.said(), "the agent hears of it")
    said = [payload["text"] for kind, payload in events(playing, run_id) if "text" in payload]
    assert said[0] == "1000 "
    assert "lift-off" not in said


@pytest.mark.parametrize(
    ("name", "sign"),
    [
        ("echo_agent.py", signal.SIGINT),
        ("team.py", signal.SIGTERM),
        ("fastapi_service.py", signal.SIGINT),
        ("node_agent.mjs", signal.SIGINT),
    ],
)
def test_an_agent_that_is_stopped_takes_no_more_runs(
    name: str, sign: signal.Signals, start_server: Callable[..., Running], tmp_path: Path, node: str
) -> None:
    folder = tmp_path / "stage"
    folder.mkdir()
    with stage(folder, node, start_server().url) as here:
        agents = [agent.agent_id for agent in AGENTS if agent.file == name]
        running = here.start(commands(name)[0].text, name)
        until(lambda: statuses(here) == dict.fromkeys(agents, "healthy"), "they are there", 30)
        until(running.said, "it has started")
        running.stop(sign)
        assert statuses(here) == dict.fromkeys(agents, "draining"), running.said()
