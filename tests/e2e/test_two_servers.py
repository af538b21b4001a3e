"""Two servers on one PostgreSQL database: what one does the other shows, and goes on with."""

import secrets
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ..processes import Running, demo_agent_process, frames, request, start_server, stream, until
from ..stores import new_database

HELLO = {"agent_id": "demo", "input_message": {"role": "user", "content": "think"}}


@dataclass
class Two:
    """Two servers and what both are told."""

    one: Running
    other: Running
    settings: dict[str, str]
    folder: Path


@pytest.fixture
def two(tmp_path: Path, postgres_server: str) -> Iterator[Two]:
    """Hand out two servers with an agent."""
    with ExitStack() as stack:
        settings = {
            "DATABASE_URL": stack.enter_context(new_database(postgres_server)),
            "SECRET_KEY": secrets.token_hex(32),
        }
        agent = stack.enter_context(demo_agent_process(tmp_path))
        started = []
        for name in ("one", "other"):
            folder = tmp_path / name
            folder.mkdir()
            started.append(start_server(folder, **settings))
            stack.callback(started[-1].stop)
        body = {"agent_id": "demo", "name": "Demo", "endpoint": agent, "on_lost": "retry"}
        assert request("POST", f"{started[0].url}/v1/agents/register", body).status == 200
        yield Two(started[0], started[1], settings, tmp_path)


def begin(server: Running, content: str) -> str:
    message = {"role": "user", "content": content}
    answer = request("POST", f"{server.url}/v1/runs", HELLO | {"input_message": message})
    assert answer.status == 201, answer.body
    return str(answer.json()["run_id"])


def read(server: Running, run_id: str) -> list[Any]:
    with stream(f"{server.url}/v1/runs/{run_id}/events/stream", timeout_s=60) as reply:
        return [frame.data for frame in frames(iter(reply.readline, b""))]


def test_a_run_of_one_is_read_at_the_other_word_for_word(two: Two) -> None:
    run_id = begin(two.one, "think")
    there = read(two.other, run_id)
    assert there[-1]["type"] == "run_done"
    assert [event["seq"] for event in there] == list(range(1, len(there) + 1))
    assert there == read(two.one, run_id)
    # The words came while the agent spoke, not all at its end.
    assert there[-1]["ts"] - there[3]["ts"] > 200


def test_an_instance_registered_at_one_gets_runs_of_the_other(two: Two) -> None:
    """Within about a second: the other server looks no more often."""
    read(two.other, begin(two.other, "hi"))
    agent = request("GET", f"{two.one.url}/v1/agents/demo").json()
    again = {"agent_id": "demo", "name": "Demo", "endpoint": agent["endpoint"]}
    registered = f"{two.one.url}/v1/agents/register"
    assert request("POST", registered, again | {"instance_id": "second"}).status == 200
    shown = request("GET", f"{two.other.url}/v1/agents/demo").json()
    assert [one["instance_id"] for one in shown["instances"]] == ["default", "second"]

    def called() -> set[str]:
        events = [event for _ in range(4) for event in read(two.other, begin(two.other, "hi"))]
        started = [e["payload"] for e in events if e["type"] == "agent_invoke_started"]
        return {payload["instance_id"] for payload in started}

    until(lambda: called() == {"default", "second"}, "the other calls both")
    gone = f"{two.one.url}/v1/agents/demo?instance_id=default"
    assert request("DELETE", gone).status == 200
    until(lambda: called() == {"second"}, "the other calls only who is left")
    assert request("POST", f"{two.other.url}/v1/agents/demo/heartbeat").status == 200
    beat = f"{two.one.url}/v1/agents/demo"
    until(lambda: request("GET", beat).json()["status"] == "healthy", "one sees the heartbeat")


def test_a_cancel_at_the_other_closes_the_agents_stream(two: Two) -> None:
    run_id = begin(two.one, "hang")
    until(
        lambda: request("GET", f"{two.one.url}/v1/runs/{run_id}").json()["last_seq"] >= 3, "it runs"
    )
    assert request("POST", f"{two.other.url}/v1/runs/{run_id}:cancel", {}).status == 200
    metrics = f"{two.one.url}/metrics"
    until(lambda: b"runs_in_flight 0.0" in request("GET", metrics).body, "it is let go of", 10)
    assert read(two.one, run_id)[-1]["type"] == "run_cancelled"


def test_what_a_killed_server_had_begun_goes_on_at_the_other(two: Two) -> None:
    run_id = begin(two.one, "slow 5")
    until(
        lambda: request("GET", f"{two.other.url}/v1/runs/{run_id}").json()["last_seq"] > 4, "words"
    )
    two.one.kill()
    events = read(two.other, run_id)
    types = [event["type"] for event in events]
    assert types[-1] == "run_done"
    assert "agent_invoke_retrying" in types
    assert types.count("agent_invoke_started") == 2
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))


def test_a_key_made_at_one_closes_the_other(two: Two) -> None:
    made = request("POST", f"{two.one.url}/v1/keys", {"name": "n", "role": "admin"}).json()
    shown = {"Authorization": f"Bearer {made['key']}"}
    runs = f"{two.other.url}/v1/runs"
    until(lambda: request("GET", runs).status == 401, "the other asks for a key", 5)
    assert request("GET", runs, headers=shown).status == 200
    revoke = f"{two.one.url}/v1/keys/{made['info']['key_id']}:revoke"
    assert request("POST", revoke, {}, shown).status == 200
    until(lambda: request("GET", runs, headers=shown).status == 401, "it hears of the end", 5)
