"""Fixtures that start real processes, one set per test file unless a test needs its own."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from . import processes
from .processes import Running


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Hand out the address of a server on a new database; it must end well on SIGTERM."""
    running = processes.start_server(tmp_path_factory.mktemp("server"))
    try:
        yield running.url
    finally:
        code = running.stop()
    assert code == 0, running.said()


@pytest.fixture(scope="module")
def demo_agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Hand out the address of a running demo agent."""
    with processes.demo_agent_process(tmp_path_factory.mktemp("agent")) as url:
        yield url


@pytest.fixture
def start_server(tmp_path: Path) -> Iterator[Callable[..., Running]]:
    """Hand out a function that starts a server with settings of its own in `tmp_path`.

    Called again in the same test it starts another process on the same database. What still runs
    at the end of the test is stopped; a test may stop or kill it before.
    """
    with ExitStack() as stack:

        def start(**env: str) -> Running:
            running = processes.start_server(tmp_path, **env)
            stack.callback(running.kill)
            return running

        yield start
