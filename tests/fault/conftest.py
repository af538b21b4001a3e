"""What the rigs of this folder share."""

from collections.abc import AsyncIterator, Iterator

import pytest

from orchestrator.stores.postgres import PostgresStore, open_store
from orchestrator.world import RealWorld

from .. import postgres
from .calls import DRIVERS, Chosen


@pytest.fixture(params=sorted(DRIVERS))
def driver(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run the test with each of our HTTP clients in turn."""
    before, Chosen.name = Chosen.name, request.param
    yield Chosen.name
    Chosen.name = before


@pytest.fixture(scope="module")
def database_server() -> Iterator[postgres.Server]:
    """Hand out a PostgreSQL that may be cut off and crashed; it writes to the disk in earnest."""
    with postgres.running(fsync=True) as running:
        yield running


@pytest.fixture
async def url(database_server: postgres.Server) -> AsyncIterator[str]:
    """Hand out the address of a new database of it."""
    async with postgres.database(database_server.url()) as address:
        yield address


@pytest.fixture
async def store(url: str) -> AsyncIterator[PostgresStore]:
    """Hand out a store on it."""
    opened = await open_store(url, world=RealWorld())
    yield opened
    await opened.close()
