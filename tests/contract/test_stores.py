"""Every store keeps the store's contract."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest

from orchestrator.ports import Store
from orchestrator.stores.sqlite import open_store
from orchestrator.testing import store_contract as contract
from orchestrator.testing.fake_world import FakeWorld

Copy = Callable[[Store], AbstractAsyncContextManager[Store]]


@pytest.fixture
def world() -> FakeWorld:
    """Hand out the clock of the store under test."""
    return FakeWorld()


@pytest.fixture
async def store(tmp_path: Path, world: FakeWorld) -> AsyncIterator[Store]:
    """Hand out a new store."""
    opened = await open_store(f"file:{tmp_path}/o.db", world=world)
    try:
        yield opened
    finally:
        await opened.close()


@pytest.fixture
def copy(tmp_path: Path, world: FakeWorld) -> Copy:
    """Hand out what opens the backup of a store."""

    @asynccontextmanager
    async def opened(store: Store) -> AsyncIterator[Store]:
        await store.backup(str(tmp_path / "copy.db"))
        other = await open_store(f"file:{tmp_path}/copy.db", world=world)
        try:
            yield other
        finally:
            await other.close()

    return opened


class TestStore(contract.StoreContract):
    pass
