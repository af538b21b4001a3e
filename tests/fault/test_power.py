"""The power fails at any write: what was acknowledged is there, and the rows agree with the log."""

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random

import apsw
import pytest

from orchestrator.core.errors import DatabaseRefused
from orchestrator.stores.sqlite import checkpoint, open_store
from orchestrator.testing.fake_world import FakeWorld

from ..rigs import Tally
from .agreement import disagreements
from .images import Image
from .promises import Promises
from .recording import NAME, Note, Recorder, recording
from .workload import Workload

LATER = 1_900_000_000_000
POINTS = 100
"""Crash points taken of each recorded workload."""


async def record(
    folder: Path, rnd: Random, durability: str, sync: Callable[[Recorder], Callable[[int], None]]
) -> Recorder:
    """Play a workload over one to three openings of a database and return what happened."""
    with recording() as recorder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "EVERY_S", rnd.choice((0.002, 0.01, 1.0)))
        patch.setattr(checkpoint, "LONG_LOG", rnd.choice((0, 1 << 16, 16 << 20)))
        workload = Workload(rnd, recorder.note)
        for _ in range(rnd.randint(1, 3)):
            store = await open_store(
                f"file:{folder}/o.db", world=workload.world, durability=durability,
                sync=sync(recorder), vfs=NAME,
            )  # fmt: skip
            for _ in range(rnd.randint(1, 3)):
                await workload.play(store, lives=rnd.randint(2, 6))
            await store.close()
    return recorder


async def crash(
    recorder: Recorder, ground: Path, rnd: Random, durability: str, fired: Counter[str]
) -> list[str]:
    """Let the power fail at POINTS steps of a recording; return every promise that was broken."""
    image, promises = Image(), Promises(recorder, full=durability == "full")
    points = iter(sorted(rnd.choices(range(len(recorder.steps)), k=POINTS)))
    broken: list[str] = []
    point = next(points)
    for at, step in enumerate(recorder.steps):
        image.take(at, step)
        promises.take(at, step)
        while at == point:
            found = await _after(image, promises, ground / str(at), rnd, fired)
            broken += [f"step {at}: {what}" for what in found]
            fired["promises"] += isinstance(step, Note)
            point = next(points, -1)
    fired["tails lost"] += promises.tails_lost
    return broken


async def _after(
    image: Image, promises: Promises, folder: Path, rnd: Random, fired: Counter[str]
) -> list[str]:
    """Fail now, start again on what is left, and return what is wrong with it."""
    folder.mkdir()
    image.fail(rnd, folder, fired)
    try:
        try:
            world = FakeWorld(LATER, boot_id="another")
            store = await open_store(f"file:{folder}/o.db", world=world)
        except (DatabaseRefused, apsw.Error) as refused:
            return [f"it does not open: {refused}"]
        found = await promises.lacking(store) + await disagreements(store)
        assert store._writer is not None
        checked = store._writer._db.execute("PRAGMA integrity_check").fetchall()
        await store.close()
        return found + [f"integrity_check: {said}" for (said,) in checked if said != "ok"]
    finally:
        shutil.rmtree(folder)


def real(recorder: Recorder) -> Callable[[int], None]:
    return recorder.fdatasync


def none(recorder: Recorder) -> Callable[[int], None]:
    """Claim that everything is on the disk and do nothing for it."""
    return lambda _: None


@pytest.mark.parametrize(("durability", "share"), [("balanced", 0.8), ("full", 0.2)])
async def test_no_promise_falls_with_the_power(
    ground: Path, tally: Tally, rounds_of: Callable[[int], int], durability: str, share: float
) -> None:
    workloads = max(1, round(rounds_of(20_000) * share / POINTS))
    tally.expect("kept", "dropped", "torn")
    if durability == "balanced":
        tally.expect("tails lost")  # or the rig never cut where a cut is allowed
    for seed in range(workloads):
        rnd = Random(f"{durability} {seed}")
        folder = ground / f"workload-{seed}"
        folder.mkdir()
        recorder = await record(folder, rnd, durability, real)
        broken = await crash(recorder, folder, rnd, durability, tally.fired)
        assert broken == [], f"workload {seed}"
        assert durability == "balanced" or not tally.fired["tails lost"]
        shutil.rmtree(folder)
        tally.round(POINTS)


async def test_without_the_sync_promises_fall(ground: Path, tally: Tally) -> None:
    tally.expect("promises lost without the sync")
    for seed in range(3):
        rnd = Random(seed)
        folder = ground / str(seed)
        folder.mkdir()
        recorder = await record(folder, rnd, "balanced", none)
        broken = await crash(recorder, folder, rnd, "balanced", Counter())
        lost = [what for what in broken if "promised" in what or "gone" in what]
        tally.fire("promises lost without the sync", len(lost))
