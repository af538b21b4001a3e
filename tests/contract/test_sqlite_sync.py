"""What waits for the disk and what does not, on a disk whose every sync the test lets through."""

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from orchestrator.core.errors import StoreFailure
from orchestrator.core.ops import Committed, Op
from orchestrator.core.records import Run
from orchestrator.stores.sqlite import SQLiteStore, open_store
from orchestrator.testing import records as r
from orchestrator.testing.fake_world import FakeWorld

from ..engine.rig import until


class Gate:
    """A disk whose syncs end when they are let through, or fail."""

    def __init__(self) -> None:
        self.begun = 0
        self.open = False
        self.error: OSError | None = None
        self._passes = threading.Semaphore(0)

    def __call__(self, descriptor: int) -> None:
        self.begun += 1
        if not self.open:
            self._passes.acquire()
        if self.error is not None:
            raise self.error

    def let_through(self) -> None:
        self._passes.release()

    def give_way(self) -> None:
        self.open = True
        self._passes.release(100)


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
async def store(tmp_path: Path, gate: Gate) -> AsyncIterator[SQLiteStore]:
    opened = await open_store(f"file:{tmp_path}/o.db", world=FakeWorld(), sync=gate)
    yield opened
    gate.give_way()
    await opened.close()


async def accepted(store: SQLiteStore, gate: Gate, number: int = 1) -> Run:
    """Return a run whose acceptance is on the disk."""
    made = r.run(number, f"s{number}")
    begun = gate.begun
    async with asyncio.TaskGroup() as tasks:
        accepting = tasks.create_task(store.commit(r.accept(made)))
        await until(lambda: gate.begun > begun)
        assert not accepting.done()
        gate.let_through()
    return made


async def seqs(store: SQLiteStore, made: Run) -> list[int]:
    return [event.seq for event in await store.read(made.run_id, 0)]


async def test_words_are_answered_at_once_and_state_from_the_disk(
    store: SQLiteStore, gate: Gate
) -> None:
    made = await accepted(store, gate)
    async with asyncio.timeout(5):
        [outcome] = await store.commit(r.append(made, *r.deltas(2)))
    assert isinstance(outcome, Committed)
    assert await seqs(store, made) == [1, 2, 3]
    async with asyncio.TaskGroup() as tasks:
        beginning = tasks.create_task(store.commit(r.begin(made)))
        await until(lambda: gate.begun == 2)
        assert await seqs(store, made) == [1, 2, 3], "nobody sees what may yet be lost"
        found = tasks.create_task(store.get(Run, made.run_id))
        ahead = await store.get(Run, made.run_id, deciding=True)
        assert ahead is not None
        assert ahead.status == "RUNNING"
        await asyncio.sleep(0.05)
        assert not beginning.done()
        assert not found.done()
        gate.let_through()
    shown = found.result()
    assert shown is not None
    assert (shown.status, shown.head) == ("RUNNING", 4)
    assert await seqs(store, made) == [1, 2, 3, 4]


async def test_words_behind_a_change_of_state_wait_with_it_and_others_do_not(
    store: SQLiteStore, gate: Gate
) -> None:
    held, other = await accepted(store, gate), await accepted(store, gate, 2)
    async with asyncio.TaskGroup() as tasks:
        beginning = tasks.create_task(store.commit(r.begin(held)))
        await until(lambda: gate.begun == 3)
        words = tasks.create_task(store.commit(r.append(held, *r.deltas(1))))
        async with asyncio.timeout(5):
            await store.commit(r.append(other, *r.deltas(1)))
        assert await seqs(store, other) == [1, 2]
        assert await seqs(store, held) == [1]
        assert not words.done()
        gate.let_through()
        await until(beginning.done)
        assert await seqs(store, held) == [1, 2], "each is shown with its own sync"
        gate.give_way()
    assert await seqs(store, held) == [1, 2, 3]


async def test_one_sync_serves_all_that_gathered(store: SQLiteStore, gate: Gate) -> None:
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(store.commit(r.accept(r.run(0, "s0"))))
        await until(lambda: gate.begun == 1)
        rest = [tasks.create_task(store.commit(r.accept(r.run(n, f"s{n}")))) for n in range(1, 50)]
        await asyncio.sleep(0.05)
        gate.let_through()
        await until(lambda: gate.begun == 2)
        assert not any(task.done() for task in rest), "a sync serves only what was there before it"
        gate.let_through()
    assert gate.begun == 2


async def test_a_failed_sync_ends_the_handle(store: SQLiteStore, gate: Gate) -> None:
    made = await accepted(store, gate)
    gate.error = OSError(5, "Input/output error")
    gate.let_through()
    with pytest.raises(StoreFailure, match="synced"):
        await store.commit(r.begin(made))
    with pytest.raises(StoreFailure):
        await store.commit(Op(run_id=made.run_id, events=r.deltas(1)))
    assert await seqs(store, made) == [1], "what was never acknowledged is shown to nobody"
    gate.error = None


async def test_full_durability_keeps_words_waiting_too(tmp_path: Path, gate: Gate) -> None:
    path = f"file:{tmp_path}/full.db"
    store = await open_store(path, world=FakeWorld(), durability="full", sync=gate)
    made = await accepted(store, gate)
    async with asyncio.TaskGroup() as tasks:
        words = tasks.create_task(store.commit(r.append(made, *r.deltas(1))))
        await until(lambda: gate.begun == 2)
        assert not words.done()
        assert await seqs(store, made) == [1]
        gate.give_way()
    assert await seqs(store, made) == [1, 2]
    await store.close()
