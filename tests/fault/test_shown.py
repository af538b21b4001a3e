"""The disk stands still: no change of state is acknowledged or shown, and words still flow."""

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from orchestrator.core.ops import Insert, Op
from orchestrator.core.records import IdempotencyKey, Message, Run
from orchestrator.stores.sqlite import open_store
from orchestrator.stores.sqlite.store import SQLiteStore
from orchestrator.testing import records as r
from orchestrator.testing.fake_world import FakeWorld

from ..rigs import Tally

SOON_S = 0.05


class Still:
    """A disk whose syncs take as long as it is told to stand still."""

    def __init__(self) -> None:
        self._going = threading.Event()
        self._going.set()
        self.waited = 0

    def sync(self, descriptor: int) -> None:
        """Wait until the disk goes on."""
        self.waited += not self._going.is_set()
        self._going.wait()

    def stand(self) -> None:
        """Let syncs wait from now on."""
        self._going.clear()

    def go(self) -> None:
        """Let them through."""
        self._going.set()


@asynccontextmanager
async def standing(
    tmp_path: Path, tally: Tally, words: int = 3, durability: str = "balanced"
) -> AsyncIterator[tuple[SQLiteStore, Run]]:
    """Hand out a store with one run on a disk that has just come to a stand."""
    tally.expect("syncs that waited")
    disk = Still()
    store = await open_store(
        f"file:{tmp_path}/o.db", world=FakeWorld(), sync=disk.sync, durability=durability
    )
    made = r.run(1)
    await store.commit(r.accept(made, Insert(r.message(1)), Insert(r.key("k", made))))
    await store.commit(r.append(made, *r.deltas(words)))
    await store.probe()
    disk.stand()
    try:
        yield store, made
        async with asyncio.timeout(5):
            while not disk.waited:
                await asyncio.sleep(0.001)
    finally:
        disk.go()
        await store.close()
        tally.fire("syncs that waited", disk.waited)


async def waits(what: Awaitable[Any]) -> bool:
    """Return whether something is still not done soon."""
    try:
        async with asyncio.timeout(SOON_S):
            await what
    except TimeoutError:
        return True
    return False


async def committed(store: SQLiteStore, made: Run) -> None:
    """Return once a change of a run's state is committed, though not on the disk."""
    assert store._writer is not None
    async with asyncio.timeout(5):
        while store._writer.held_from(made.run_id) is None:
            await asyncio.sleep(0)


STATE: dict[str, Callable[[SQLiteStore, Run], Awaitable[Any]]] = {
    "an end": lambda store, made: store.commit(r.end(made)),
    "a run": lambda store, _: store.commit(r.accept(r.run(2, "s2"))),
    "a message": lambda store, _: store.commit(Op(writes=(Insert(r.message(7)),))),
    "words after an end": lambda store, made: store.commit(r.end(made), r.append(made)),
    "a probe": lambda store, _: store.probe(),
}


@pytest.mark.parametrize("what", STATE)
async def test_a_change_of_state_waits_for_the_disk(
    tmp_path: Path, tally: Tally, what: str
) -> None:
    async with standing(tmp_path, tally) as (store, made):
        assert await waits(STATE[what](store, made))


LOOKS: dict[str, Callable[[SQLiteStore, Run], Awaitable[Any]]] = {
    "get": lambda store, made: store.get(Run, made.run_id),
    "find": lambda store, _: store.find(Message),
    "count": lambda store, _: store.count(Run),
    "a key": lambda store, _: store.get(IdempotencyKey, "default", "s1", "k"),
}


@pytest.mark.parametrize("look", LOOKS)
async def test_a_change_of_state_is_not_shown_before_it_is_on_the_disk(
    tmp_path: Path, tally: Tally, look: str
) -> None:
    async with standing(tmp_path, tally) as (store, made), asyncio.TaskGroup() as tasks:
        assert not await waits(LOOKS[look](store, made)), "nothing is open yet"
        ending = tasks.create_task(store.commit(r.end(made)))
        await committed(store, made)
        assert await waits(LOOKS[look](store, made))
        assert not ending.done()
        ending.cancel()


@pytest.mark.parametrize("words", [3, 300])
async def test_a_replay_stops_before_what_is_not_on_the_disk(
    tmp_path: Path, tally: Tally, words: int
) -> None:
    async with standing(tmp_path, tally, words) as (store, made), asyncio.TaskGroup() as tasks:
        busy = threading.Event()
        store._reader._thread.submit(busy.wait)  # a long replay comes to its pages late
        early = tasks.create_task(store.read(made.run_id, 0))
        await asyncio.sleep(0)
        ending = tasks.create_task(store.commit(r.end(made)))
        await committed(store, made)
        busy.set()
        late = await store.read(made.run_id, 0)
        assert not ending.done()
        assert len(await early) == 1 + words, "begun before the change of state"
        assert len(late) == 1 + words, "begun after it"
        ending.cancel()


async def test_words_flow_while_the_disk_stands(tmp_path: Path, tally: Tally) -> None:
    async with standing(tmp_path, tally) as (store, made), asyncio.TaskGroup() as tasks:
        other = tasks.create_task(store.commit(r.accept(r.run(2, "s2"))))
        for _ in range(50):
            assert not await waits(store.commit(r.append(made, *r.deltas(2))))
        assert len(await store.read(made.run_id, 0)) == 1 + 3 + 100
        assert not other.done()
        other.cancel()


async def test_with_full_durability_words_wait_too(tmp_path: Path, tally: Tally) -> None:
    async with standing(tmp_path, tally, durability="full") as (store, made):
        assert await waits(store.commit(r.append(made, *r.deltas(2))))
        assert len(await store.read(made.run_id, 0)) == 1 + 3


async def test_words_are_on_the_disk_within_a_second(tmp_path: Path, tally: Tally) -> None:
    tally.expect("syncs of words alone")
    synced = threading.Event()
    store = await open_store(
        f"file:{tmp_path}/o.db", world=FakeWorld(), sync=lambda _: synced.set()
    )
    made = r.run(1)
    await store.commit(r.accept(made))
    synced.clear()
    await store.commit(r.append(made, *r.deltas(2)))
    assert await asyncio.to_thread(synced.wait, 2.0), "a second, and room for a busy machine"
    tally.fire("syncs of words alone")
    await store.close()
