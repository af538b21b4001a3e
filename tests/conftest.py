"""What every test may ask for."""

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import settings

from . import postgres, processes
from .not_run import NotRun
from .processes import Running
from .rigs import Rigs
from .stores import SQLITE, Kept, Stores, kept_in

pytest.register_assert_rewrite("orchestrator.testing")

ROUNDS_SHARE = 20
SBIN = ":/usr/local/sbin:/usr/sbin:/sbin"

settings.register_profile("quick", derandomize=True, database=None, deadline=None)
settings.register_profile("full", deadline=None, database=None, max_examples=2_000)


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("orchestrator")
    group.addoption("--full", action="store_true", help="run rigs with their full number of rounds")
    group.addoption("--rounds", type=int, metavar="N", help="run rigs with N rounds instead")
    group.addoption("--seed", type=int, metavar="N", help="play one seed of the simulator, told")


def pytest_configure(config: pytest.Config) -> None:
    # Whoever starts us in the background has us ignore Ctrl-C, and so would all that we start.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    settings.load_profile("full" if config.getoption("--full") else "quick")
    config.pluginmanager.register(NotRun(), "not-run")
    config.pluginmanager.register(Rigs(), "rigs")
    config.pluginmanager.register(Stores(), "stores")


@pytest.fixture(scope="session")
def rounds_of(request: pytest.FixtureRequest) -> Callable[[int], int]:
    """Turn a rig's full number of rounds into that of this run, a twentieth unless told."""

    def rounds(full: int) -> int:
        told = request.config.getoption("--rounds")
        if told:
            return int(told)
        return full if request.config.getoption("--full") else max(1, full // ROUNDS_SHARE)

    return rounds


@pytest.fixture(scope="session")
def program() -> Callable[[str], Path]:
    """Find a program of the system; a missing one fails the test unless WITHOUT names it."""

    def find(name: str) -> Path:
        if name in os.environ.get("WITHOUT", "").replace(",", " ").split():
            pytest.skip(f"WITHOUT={name}")
        found = shutil.which(name, path=os.environ.get("PATH", os.defpath) + SBIN)
        if found is None:
            pytest.fail(f"{name} is not installed: `apt-get install {name}`, or set WITHOUT={name}")
        return Path(found)

    return find


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """Hand out the address of a PostgreSQL server; it holds the databases of many tests."""
    with postgres.address() as url:
        yield url


@pytest.fixture(scope="module")
def store_name(request: pytest.FixtureRequest) -> str:
    """Name the store of the test, as tests/stores.py chose it."""
    return str(getattr(request, "param", SQLITE))


@pytest.fixture(scope="module")
def kept_together(store_name: str, request: pytest.FixtureRequest) -> Iterator[Kept]:
    """Hand out a database that the tests of a module share."""
    with kept_in(store_name, request) as kept:
        yield kept


@pytest.fixture
def kept(store_name: str, request: pytest.FixtureRequest) -> Iterator[Kept]:
    """Hand out a database of the test's own."""
    with kept_in(store_name, request) as kept:
        yield kept


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, kept_together: Kept) -> Iterator[str]:
    """Hand out the address of a server on a new database; it must end well on SIGTERM."""
    folder = tmp_path_factory.mktemp("server")
    running = processes.start_server(folder, **kept_together.settings)
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
def start_server(tmp_path: Path, kept: Kept) -> Iterator[Callable[..., Running]]:
    """Hand out a function that starts a server with settings of its own in `tmp_path`.

    Called again in the same test it starts another process on the same database. What still runs
    at the end of the test is stopped; a test may stop or kill it before.
    """
    with ExitStack() as stack:

        def start(**env: str) -> Running:
            running = processes.start_server(tmp_path, **{**kept.settings, **env})
            stack.callback(running.kill)
            return running

        yield start
