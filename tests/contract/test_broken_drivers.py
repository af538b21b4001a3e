"""The contracts have no holes: a driver that breaks a promise goes red, a whole one does not."""

import sqlite3
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, closing
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from orchestrator.buses.local import LocalBus
from orchestrator.ports import Bus, Store
from orchestrator.stores.sqlite import open_store
from orchestrator.testing import bus_contract, flawed_buses, flawed_stores
from orchestrator.testing.bus_contract import BusContract
from orchestrator.testing.fake_world import FakeWorld
from orchestrator.testing.flawed import Fixtures, broken_promises
from orchestrator.testing.flawed_stores import ClaimsFromTheLiving, IgnoresVersions, Through
from orchestrator.testing.simulator.disk import Disk
from orchestrator.testing.simulator.store import ModelStore
from orchestrator.testing.simulator.tables import Tables
from orchestrator.testing.store_contract import StoreContract
from orchestrator.testing.store_machine import Driver, Open, play

Flaw = Callable[[Store], Store]
numbers = count()


class BacksUpHalf(Through):
    """Copies a database without the end of its log."""

    async def backup(self, path: str) -> None:
        await super().backup(path)
        with closing(sqlite3.connect(path)) as db, db:
            db.execute("DELETE FROM segments WHERE key = (SELECT max(key) FROM segments)")


class CopiesAnOldState(Through):
    """Copies the rows without what they say by now."""

    async def backup(self, path: str) -> None:
        await super().backup(path)
        with closing(sqlite3.connect(path)) as db, db:
            db.execute("UPDATE runs SET version = 0")


def unsynced(descriptor: int) -> None:
    """Leave the disk alone: what it forgets is not the question here."""


def around(folder: Path, flaw: Flaw) -> Fixtures:
    """Return what opens a new store with a flaw, and its copies without one."""

    @asynccontextmanager
    async def opened(name: str, world: FakeWorld) -> AsyncIterator[Store]:
        store = await open_store(f"file:{folder}/{name}", world=world, sync=unsynced)
        try:
            yield store
        finally:
            await store.close()

    @asynccontextmanager
    async def fixtures() -> AsyncIterator[Mapping[str, Any]]:
        world, number = FakeWorld(), next(numbers)

        @asynccontextmanager
        async def copy(store: Store) -> AsyncIterator[Store]:
            await store.backup(f"{folder}/{number}.copy")
            async with opened(f"{number}.copy", world) as other:
                yield other

        async with opened(f"{number}.db", world) as store:
            yield {"store": flaw(store), "world": world, "copy": copy}

    return fixtures


def around_model(flaw: Flaw) -> Fixtures:
    """Return what opens the simulator's store with a flaw: quick enough for every promise."""

    @asynccontextmanager
    async def fixtures() -> AsyncIterator[Mapping[str, Any]]:
        world, disk = FakeWorld(), Disk()

        @asynccontextmanager
        async def copy(store: Store) -> AsyncIterator[Store]:
            await store.backup("copy")
            yield ModelStore(world, made_of(disk.copies["copy"]))

        yield {"store": flaw(ModelStore(world, disk)), "world": world, "copy": copy}

    return fixtures


def made_of(tables: Tables) -> Disk:
    disk = Disk()
    disk.tables = tables
    return disk


@pytest.mark.parametrize("flaw", flawed_stores.FLAWS, ids=lambda flaw: flaw.__name__)
async def test_a_store_that_breaks_a_promise_goes_red(tmp_path: Path, flaw: Flaw) -> None:
    """The whole contract judges the flaw around the model; what is red there is so on SQLite."""
    broken = await broken_promises(StoreContract, around_model(flaw))
    shown(broken)
    assert broken, "the contract has a hole"
    assert await broken_promises(StoreContract, around(tmp_path, flaw), broken.keys())


@pytest.mark.parametrize("flaw", [BacksUpHalf, CopiesAnOldState], ids=lambda flaw: flaw.__name__)
async def test_a_backup_that_is_not_whole_goes_red(tmp_path: Path, flaw: Flaw) -> None:
    broken = await broken_promises(StoreContract, around(tmp_path, flaw))
    assert broken.keys() == {"test_a_backup_is_whole"}


async def test_a_store_without_a_flaw_stays_green(tmp_path: Path) -> None:
    assert await broken_promises(StoreContract, around(tmp_path, Through)) == {}
    assert await broken_promises(StoreContract, around_model(Through)) == {}


def shown(broken: Mapping[str, str]) -> None:
    for name, why in broken.items():
        print(f"{name}: {why}")


def of_bus(made: Callable[[], Bus]) -> Fixtures:
    @asynccontextmanager
    async def fixtures() -> AsyncIterator[Mapping[str, Any]]:
        yield {"bus": made()}

    return fixtures


@pytest.mark.parametrize("flaw", flawed_buses.FLAWS, ids=lambda flaw: flaw.__name__)
async def test_a_bus_that_breaks_a_promise_goes_red(
    flaw: Callable[[], Bus], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bus_contract, "WAIT_S", 0.2)
    broken = await broken_promises(BusContract, of_bus(flaw))
    shown(broken)
    assert broken, "the contract has a hole"


async def test_a_bus_without_a_flaw_stays_green() -> None:
    assert await broken_promises(BusContract, of_bus(LocalBus)) == {}


@pytest.mark.parametrize("flaw", [IgnoresVersions, ClaimsFromTheLiving])
def test_the_machine_of_histories_finds_a_flaw_by_itself(tmp_path: Path, flaw: Flaw) -> None:
    @asynccontextmanager
    async def database(world: FakeWorld) -> AsyncIterator[Open]:
        path = tmp_path / f"{next(numbers)}.db"

        async def opened() -> Store:
            return flaw(await open_store(f"file:{path}", world=world, sync=unsynced))

        yield opened

    with pytest.raises(AssertionError, match="the model says"):
        play(Driver(database, forgets=True), 20, 40, shorten=False)
