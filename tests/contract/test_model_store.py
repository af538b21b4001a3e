"""The simulator's store keeps the store's contract, or what it shows of the engine is worthless."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest

from orchestrator.core.ops import Guard, Refused
from orchestrator.core.records import Run
from orchestrator.ports import Store
from orchestrator.testing import records as r
from orchestrator.testing import store_contract as contract
from orchestrator.testing.fake_world import FakeWorld
from orchestrator.testing.simulator.disk import Disk
from orchestrator.testing.simulator.store import ModelStore, opened

Copy = Callable[[Store], AbstractAsyncContextManager[Store]]


@pytest.fixture
def world() -> FakeWorld:
    return FakeWorld()


@pytest.fixture
def disk() -> Disk:
    return Disk()


@pytest.fixture
def store(world: FakeWorld, disk: Disk) -> Store:
    return ModelStore(world, disk)


@pytest.fixture
def copy(world: FakeWorld, disk: Disk) -> Copy:
    @asynccontextmanager
    async def copied(store: Store) -> AsyncIterator[Store]:
        await store.backup("copy")
        yield opened(world, disk.copies["copy"])

    return copied


class TestStore(contract.StoreContract):
    pass


async def test_a_power_loss_takes_what_is_not_synced_and_nothing_else(
    store: Store, disk: Disk
) -> None:
    made = r.run(1)
    await store.commit(r.accept(made))
    await store.commit(r.append(made, *r.deltas(2)))
    await store.commit(r.append(made, *r.deltas(2, 2)))
    assert [event.seq for event in await store.read(made.run_id, 0)] == [1, 2, 3, 4, 5]
    assert (disk.loose, disk.lose(1), disk.loose) == (2, 1, 0)
    assert [event.seq for event in await store.read(made.run_id, 0)] == [1, 2, 3]
    found = await store.get(Run, made.run_id)
    assert found is not None
    assert found.head == 3


async def test_nothing_is_shown_from_the_first_unsynced_change_of_state_on(
    store: Store, disk: Disk
) -> None:
    made = r.run(1)
    await store.commit(r.accept(made))
    await store.commit(r.append(made, *r.deltas(1)))
    disk.apply((r.append(made, r.started(), *r.deltas(1)),))
    assert [event.seq for event in await store.read(made.run_id, 0)] == [1, 2]
    deciding = await store.get(Run, made.run_id, deciding=True)
    assert deciding is not None
    assert deciding.head == 4
    await store.get(Run, made.run_id)
    assert [event.seq for event in await store.read(made.run_id, 0)] == [1, 2, 3, 4]


async def test_the_planted_faults_are_faults(world: FakeWorld) -> None:
    made = r.run(1)
    disk = Disk(guarded=False)
    await ModelStore(world, disk).commit(r.accept(made))
    zombie = r.append(made, r.started(), guard=Guard(epoch=7))
    assert not isinstance(disk.apply((zombie,))[0][0], Refused)
    disk = Disk(honest=False)
    await ModelStore(world, disk).commit(r.accept(made))
    assert disk.lose(0) == 1
