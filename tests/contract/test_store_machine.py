"""Random histories: the stores and the model of the simulator agree at every step of them."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import count
from pathlib import Path

import pytest

from orchestrator.core.records import RECORDS
from orchestrator.stores.postgres import open_store as open_postgres
from orchestrator.stores.postgres.clock import WorldClock
from orchestrator.stores.sqlite import open_store as open_sqlite
from orchestrator.testing.fake_world import FakeWorld
from orchestrator.testing.store_machine import Driver, Open, Tally, play, unseen

from .. import postgres

Rounds = Callable[[int], int]
STEPS = 40
EMPTY = f"TRUNCATE segments, {', '.join(kind.TABLE for kind in RECORDS)} RESTART IDENTITY"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """Hand out the address of a database that one history after another begins anew."""
    with postgres.address() as server, asyncio.Runner() as runner:
        stack = AsyncExitStack()
        yield runner.run(stack.enter_async_context(postgres.database(server)))
        runner.run(stack.aclose())


def judged(driver: Driver, examples: int, *, full: bool) -> None:
    """Play histories and see that each rule came to each of its ends."""
    tally: Tally = play(driver, examples, STEPS, shorten=full)
    for (name, end), times in sorted(tally.items()):
        print(f"{name:10} {end:12} {times}")
    assert unseen(tally) == [], "what never happened was not proved; play more or draw better"


def test_sqlite_does_what_the_model_does(
    tmp_path: Path, rounds_of: Rounds, pytestconfig: pytest.Config
) -> None:
    numbers = count()

    @asynccontextmanager
    async def database(world: FakeWorld) -> AsyncIterator[Open]:
        path = tmp_path / f"{next(numbers)}.db"
        yield lambda: open_sqlite(f"file:{path}", world=world)

    full = bool(pytestconfig.getoption("--full"))
    judged(Driver(database, forgets=True), rounds_of(400), full=full)


def test_replicas_on_postgres_do_what_the_model_does(
    url: str, rounds_of: Rounds, pytestconfig: pytest.Config
) -> None:
    @asynccontextmanager
    async def database(world: FakeWorld) -> AsyncIterator[Open]:
        clock = WorldClock(world)
        await (await open_postgres(url, world=world, clock=clock, pool=1)).close()
        await postgres.ask(url, EMPTY, "SELECT 1")
        yield lambda: open_postgres(url, world=world, clock=clock, pool=1)

    full = bool(pytestconfig.getoption("--full"))
    judged(Driver(database, replicas=2), rounds_of(200), full=full)
