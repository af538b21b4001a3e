"""The engine keeps its contract on each store with each bus that may go with it."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import (
    AbstractAsyncContextManager,
    asynccontextmanager,
    contextmanager,
    nullcontext,
)
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from orchestrator.buses.local import LocalBus
from orchestrator.buses.null import NullBus
from orchestrator.buses.postgres import PostgresBus
from orchestrator.engine import SessionEvent
from orchestrator.ports import Bus, Hear, Hint, Mailbox, Store
from orchestrator.stores.postgres import open_store as postgresql
from orchestrator.stores.sqlite import open_store as sqlite
from orchestrator.testing.engine_contract import EngineContract, SharedEngineContract
from orchestrator.testing.engine_rig import Place, hang, running, until
from orchestrator.testing.engine_servers_contract import driver, two
from orchestrator.world import RealWorld

from .. import postgres


@dataclass
class Traffic:
    """How many hints went into the buses of a place, and how many came out of them."""

    published: int = 0
    carried: int = 0
    looked_for: int = 0


class Looked(Hint, frozen=True):
    """A hint that the engine gave itself, because it had looked."""


@dataclass
class WatchedBus:
    """A bus whose traffic is counted."""

    bus: Bus
    traffic: Traffic
    certain: bool = field(init=False)

    def __post_init__(self) -> None:
        self.certain = self.bus.certain
        self.subjects = self.bus.subjects
        self.stats = self.bus.stats

    def publish(self, subject: str, hint: Hint) -> None:
        self.traffic.published += 1
        self.bus.publish(subject, hint)

    def deliver(self, subject: str, hint: Hint) -> None:
        self.traffic.looked_for += 1
        self.bus.deliver(subject, Looked(hint.run_id, hint.head, hint.events))

    @contextmanager
    def subscribe(self, subject: str, hear: Hear | None = None) -> Iterator[Mailbox]:
        def heard(hint: Hint) -> bool:
            taken = hear is not None and hear(hint)
            if taken:
                self._count([hint])
            return taken

        with self.bus.subscribe(subject, heard) as mailbox:
            yield WatchedMailbox(mailbox, self._count)

    def _count(self, hints: list[Hint]) -> None:
        self.traffic.carried += sum(not isinstance(hint, Looked) for hint in hints)


@dataclass
class WatchedMailbox:
    mailbox: Mailbox
    count: Callable[[list[Hint]], None]

    async def take(self) -> list[Hint]:
        hints = await self.mailbox.take()
        self.count(hints)
        return hints


Opens = Callable[[], AbstractAsyncContextManager[Any]]


@pytest.fixture
def traffic() -> Traffic:
    """Hand out the counters of a test's place."""
    return Traffic()


@pytest.fixture
def place(store: Opens, bus: Opens, traffic: Traffic) -> Place:
    """Hand out what opens the test's database and a bus, any number of times."""

    @asynccontextmanager
    async def opened() -> AsyncIterator[tuple[Store, Bus]]:
        async with store() as one, bus() as other:
            yield one, WatchedBus(other, traffic)

    return opened


class OnSQLite:
    """A file, which one server may open at a time."""

    @pytest.fixture
    def store(self, tmp_path: Path) -> Opens:
        return partial(closing, partial(sqlite, f"file:{tmp_path}/o.db"))


class OnPostgres:
    """A database, which several servers may open."""

    @pytest.fixture
    async def url(self, database: str) -> str:
        await postgres.ask(database, "DROP SCHEMA public CASCADE", "CREATE SCHEMA public")
        return database

    @pytest.fixture
    def store(self, url: str) -> Opens:
        return partial(closing, partial(postgresql, url))


@asynccontextmanager
async def closing(open_store: Callable[..., Awaitable[Store]]) -> AsyncIterator[Store]:
    store = await open_store(world=RealWorld())
    try:
        yield store
    finally:
        await store.close()


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    """Hand out a database that each test empties, which is quicker than a new one."""
    with postgres.address() as server, asyncio.Runner() as runner:
        one = postgres.database(server)
        yield runner.run(one.__aenter__())
        runner.run(one.__aexit__(None, None, None))


async def told(place: Place, traffic: Traffic) -> None:
    """Have a run with a reader, so that there is something to tell."""
    async with running(place) as rig:
        run = await rig.invoke()
        async with asyncio.timeout(20), rig.engine.tails.run(run.run_id) as batches:
            seqs = [seq async for batch in batches for seq in batch.seqs]
        async with asyncio.timeout(20), rig.engine.tails.session("default", "s1") as sessions:
            later = await rig.invoke()
            async for items in sessions:
                last = items[-1]
                assert isinstance(last, SessionEvent), "nothing was lost"
                if (last.run_id, last.event.type) == (later.run_id, "run_done"):
                    break
    assert seqs == list(range(1, 8))
    assert traffic.published > 2 * len(seqs)


class OverLocal:
    """The bus within a process."""

    @pytest.fixture
    def bus(self) -> Opens:
        return lambda: nullcontext(LocalBus())

    async def test_the_bus_carries_what_is_published(self, place: Place, traffic: Traffic) -> None:
        await told(place, traffic)
        assert traffic.carried > 0
        assert traffic.looked_for == 0


class OverPostgres:
    """The bus of the database."""

    @pytest.fixture
    def bus(self, url: str) -> Opens:
        @asynccontextmanager
        async def opened() -> AsyncIterator[Bus]:
            bus = PostgresBus(url, RealWorld())
            async with bus.running():
                yield bus

        return opened

    async def test_the_bus_carries_what_is_published(self, place: Place, traffic: Traffic) -> None:
        await told(place, traffic)
        assert traffic.carried > 0


class OverNothing:
    """The bus that brings nothing; no test of these classes was brought anything."""

    @pytest.fixture
    def bus(self, traffic: Traffic) -> Iterator[Opens]:
        yield lambda: nullcontext(NullBus())
        assert traffic.carried == 0

    async def test_nothing_of_what_is_published_is_carried(
        self, place: Place, traffic: Traffic
    ) -> None:
        await told(place, traffic)
        assert traffic.carried == 0
        assert traffic.looked_for > 0


class TestSQLiteAndLocal(OnSQLite, OverLocal, EngineContract):
    pass


class TestSQLiteAndNothing(OnSQLite, OverNothing, EngineContract):
    pass


class TestPostgresAndPostgres(OnPostgres, OverPostgres, EngineContract, SharedEngineContract):
    async def test_an_end_elsewhere_is_heard_of_before_anybody_looks(
        self, place: Place, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("orchestrator.engine.lookout.LOOK_S", 3600)
        async with two(place, hang) as servers:
            run = await servers[0].invoke()
            driving, other = await driver(servers)
            await other.engine.runs.cancel(run.run_id, "enough")
            await until(lambda: driving.engine.in_flight == 0)
            assert driving.agent.closed == [run.run_id]


class TestPostgresAndNothing(OnPostgres, OverNothing, EngineContract, SharedEngineContract):
    pass
