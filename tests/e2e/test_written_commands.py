"""Every command in the README and every program in "Connect your agent" is run as it is printed.

The README names a file and is played on SQLite, as is what only registers agents; the smallest
agents are called on both stores.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from ..processes import ROOT, Running, until
from ..stores import Kept
from .place import Place, place

README: Final = (ROOT / "README.md").read_text()
GUIDE: Final = (ROOT / "docs" / "connect-your-agent.md").read_text()

ELSEWHERE: Final = ("./orchestrator dev", "./orchestrator test")
"""The two commands that install things: the first has a test of its own, we are in the second."""


def blocks(page: str, language: str) -> list[str]:
    """Return the fenced blocks of a page that are in `language`."""
    found: list[str] = re.findall(rf"^```{language}\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    return found


@pytest.fixture
def clone(tmp_path: Path, kept: Kept) -> Iterator[Place]:
    """Hand out a place in which nothing runs yet."""
    with place(tmp_path, kept) as here:
        yield here


def started(here: Place, command: str, url: str, name: str) -> Running:
    """Start a command that goes on, and wait until it answers."""
    running = here.start(command, name)
    here.up(url)
    return running


@pytest.mark.only_sqlite("the README names a file")
def test_the_readme_from_top_to_bottom(clone: Place) -> None:
    played: dict[str, str] = {}
    run_id = ""
    for block in blocks(README, "bash"):
        command = block.strip()
        if command.startswith(ELSEWHERE):
            played[command] = ""
        elif command == "./orchestrator":
            started(clone, command, "http://localhost:8080/health", "server")
        elif command.endswith("&"):
            started(clone, command.rstrip("& "), "http://localhost:8000/health", "agent")
        elif command.startswith("HTTP_PORT=9000"):
            started(clone, command, "http://localhost:9000/health", "other")
        elif command.startswith("RUN="):
            run_id = re.findall(r"run_[0-9a-z]{20,}", "".join(played.values()))[0]
        else:
            played[command] = clone.run(command, RUN=run_id)
    said = "\n".join(played.values())
    for expected in (
        '"healthy"',
        '"ok":true',
        "event: agent_stream_delta",
        "event: run_done",
    ):
        assert expected in said.replace('": ', '":')
    assert (
        "Begin your message with one of these words"
        in played['./orchestrator invoke demo_agent "help"']
    )


def test_the_readme_names_the_two_commands() -> None:
    first = blocks(README, "bash")[0]
    assert all(command in first for command in ELSEWHERE)


@pytest.mark.parametrize(
    ("number", "protocol", "answer"),
    [
        (0, "native", "Hello world!"),
        (1, "json", "You said Hi."),
        (2, "openai", "Hello world!"),
    ],
)
def test_the_smallest_agents(clone: Place, number: int, protocol: str, answer: str) -> None:
    program = clone.folder / "agent.py"
    program.write_text(clone.here(blocks(GUIDE, "python")[number]))
    started(
        clone,
        "python3 agent.py",
        '-X POST -d \'{"input_message":{"content":""}}\' http://localhost:8000/invoke',
        "agent",
    )
    started(clone, "./orchestrator", "http://localhost:8080/health", "server")
    register = blocks(GUIDE, "bash")[0].replace(
        '"endpoint"', f'"protocol": "{protocol}", "endpoint"'
    )
    assert clone.json(register)["ok"] is True
    wait = (
        'curl -s -X POST http://localhost:8080/v1/runs -H "Content-Type: application/json" -d '
        '\'{"agent_id":"my_agent","input_message":{"role":"user","content":"Hi"},"wait":true}\''
    )
    run = until(lambda: clone.json(wait), "the run ends")
    assert (run["status"], run["final_message"]) == ("DONE", answer)


@pytest.mark.only_sqlite("what a registration holds is the API's")
def test_every_registration_in_the_guide_is_taken(clone: Place) -> None:
    started(clone, "./orchestrator", "http://localhost:8080/health", "server")
    for command in (text for text in blocks(GUIDE, "bash") if "/register" in text):
        assert clone.json(command)["ok"] is True
    for fields in blocks(GUIDE, "json"):
        body = fields.strip().removeprefix("{").removesuffix("}").replace("\n", " ")
        register = blocks(GUIDE, "bash")[0].replace('"name"', f'{body}, "name"')
        assert clone.json(register)["ok"] is True
