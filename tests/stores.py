"""Which database the servers of a test are told to use, and which tests meet both stores.

A test of FOLDERS that asks for the fixture `kept`, or for one that does, runs on SQLite and on
PostgreSQL. `only_sqlite("reason")` keeps it on SQLite; the reasons are listed when a run ends.
"""

import asyncio
from collections import defaultdict
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from secrets import token_hex
from typing import Any, Final

import apsw
import pytest

from . import postgres
from .workers import of_worker, tell_main

SQLITE: Final = "sqlite"
POSTGRES: Final = "postgres"
FOLDERS: Final = ("e2e", "api")
DEAD_S: Final = 15.0
"""How long the runs of a killed server may wait for another: on PostgreSQL until its lease ends."""


BOTH: Final = pytest.mark.parametrize("store_name", [SQLITE, POSTGRES], indirect=True)
"""Has a test outside FOLDERS that asks for `kept` run on both stores."""


@dataclass(frozen=True)
class Kept:
    """A database of a test's own; `settings` is what a server on it, or a command, is told."""

    store: str = SQLITE
    settings: Mapping[str, str] = field(default_factory=dict)

    @property
    def postgres(self) -> bool:
        """Return whether it is a PostgreSQL server's, which commands reach beside a server."""
        return self.store == POSTGRES

    @property
    def by_network(self) -> bool:
        """Return whether it cannot be reached from a network of one's own."""
        return self.postgres and "host=/" not in self.settings["DATABASE_URL"]

    @property
    def patience_s(self) -> float:
        """Return how much longer than usual the work of a killed server may take."""
        return DEAD_S if self.postgres else 0.0

    def ask(self, file: Path, statement: str) -> list[Any]:
        """Return the rows of a statement, run beside servers; `file` is where SQLite's is."""
        if self.postgres:
            return self._ask(statement)
        with closing(apsw.Connection(str(file), apsw.SQLITE_OPEN_READWRITE)) as connection:
            return list(connection.execute(statement))

    def empty(self) -> None:
        """Let a PostgreSQL database be as a new one, which is quicker than making one."""
        self._ask("DROP SCHEMA public CASCADE", "CREATE SCHEMA public")

    def _ask(self, *statements: str) -> list[Any]:
        # On a thread of its own: a test that asks may have a loop that runs.
        with ThreadPoolExecutor(1) as thread:
            asking = partial(postgres.ask, self.settings["DATABASE_URL"], *statements)
            return thread.submit(lambda: asyncio.run(asking())).result()


@contextmanager
def new_database(server: str) -> Iterator[str]:
    """Hand out the address of a new database of a server, where nothing can be awaited."""
    # With a factory of its own it leaves the loop alone that tests are given.
    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as loop:
        stack = AsyncExitStack()
        url = loop.run(stack.enter_async_context(postgres.database(server)))
        try:
            yield url
        finally:
            loop.run(stack.aclose())


class Stores:
    """The plugin: gives each test its stores, and lists the tests that stay on SQLite."""

    def __init__(self) -> None:
        self.only: defaultdict[str, dict[str, None]] = defaultdict(dict)

    def pytest_configure(self, config: pytest.Config) -> None:
        config.addinivalue_line("markers", "only_sqlite(reason): the test stays on SQLite")

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        folder = metafunc.definition.path.parent.name
        if "store_name" not in metafunc.fixturenames or folder not in FOLDERS:
            return
        alone = metafunc.definition.get_closest_marker("only_sqlite")
        stores = [SQLITE] if alone else [SQLITE, POSTGRES]
        metafunc.parametrize("store_name", stores, indirect=True, scope="module")

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        for item in session.items:
            marker = item.get_closest_marker("only_sqlite")
            if marker is not None:
                (reason,) = marker.args
                self.only[reason][item.nodeid.partition("[")[0]] = None

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        tell_main(session.config, only={reason: list(tests) for reason, tests in self.only.items()})

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: object) -> None:
        for reason, tests in of_worker(node, "only", {}).items():
            self.only[reason].update(dict.fromkeys(tests))

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if not self.only:
            return
        terminalreporter.section("on SQLite only")
        for reason, tests in sorted(self.only.items()):
            terminalreporter.write_line(f"{reason}:")
            for test in tests:
                terminalreporter.write_line(f"  {test}")


@contextmanager
def kept_in(store: str, request: pytest.FixtureRequest) -> Iterator[Kept]:
    """Hand out a new database of a store; the PostgreSQL server is started when first needed."""
    if store == SQLITE:
        yield Kept()
        return
    with new_database(request.getfixturevalue("postgres_server")) as url:
        yield Kept(POSTGRES, {"DATABASE_URL": url, "SECRET_KEY": token_hex(32)})
