"""With the guard or the resume check taken out, the checker that all rigs share goes red."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from orchestrator.buses.local import LocalBus
from orchestrator.core.batch import EMPTY, Batch
from orchestrator.core.decide import Begin, Complete
from orchestrator.core.events import TERMINAL
from orchestrator.core.ops import Guard
from orchestrator.engine import tail
from orchestrator.engine.ledger import Ledger
from orchestrator.ports import Hint
from orchestrator.stores.sqlite import open_store
from orchestrator.testing.history import sealed, violations

from ..rigs import Tally
from .agreement import ALL, disagreements
from .workload import Workload


async def raced(folder: Path, seed: int) -> list[str]:
    """Let deciders race for the end of runs; return what is wrong with the logs and rows."""
    workload = Workload(Random(seed), lambda _: None)
    store = await open_store(f"file:{folder}/{seed}.db", world=workload.world)
    await workload.play(store, lives=12)
    await store.close()
    store = await open_store(f"file:{folder}/{seed}.db", world=workload.world)
    found = await disagreements(store)
    await store.close()
    return found


async def test_races_are_clean_with_the_guard_and_red_without(
    ground: Path, tally: Tally, rounds_of: Callable[[int], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    tally.expect("caught without the guard")
    for seed in range(rounds_of(100)):
        assert await raced(ground, seed) == []
        tally.round()
    monkeypatch.setattr(Guard, "objection", lambda _guard, _head: None)
    found = [problem for seed in range(3) for problem in await raced(ground, 1000 + seed)]
    tally.fire("caught without the guard", sum("cannot follow" in problem for problem in found))


class LeakyBus(LocalBus):
    """A bus that loses hints, says them twice, and keeps only the last word for sure."""

    def __init__(self, rnd: Random) -> None:
        super().__init__()
        self._rnd = rnd
        self.lost = self.doubled = 0

    def publish(self, subject: str, hint: Hint) -> None:
        """Leave a hint in every mailbox, or none, or two."""
        last = bool(hint.events) and hint.events.types[-1] in TERMINAL
        luck = self._rnd.random()
        if luck < 0.3 and not last:
            self.lost += 1
            return
        super().publish(subject, hint)
        if luck > 0.8:
            self.doubled += 1
            super().publish(subject, hint)


async def followed(folder: Path, seed: int, tally: Tally) -> list[str]:
    """Follow a run over a leaky bus; return how what was seen differs from the log."""
    rnd = Random(seed)
    workload = Workload(rnd, lambda _: None)
    store = await open_store(f"file:{folder}/{seed}.db", world=workload.world)
    bus = LeakyBus(rnd)
    ledger = Ledger(store, bus, workload.world)
    run = await workload._accept(store, "s")
    seen: list[bytes] = []

    async def follow() -> None:
        async with tail.Tails(store, bus).run(run.run_id) as batches:
            async for batch in batches:
                seen.extend(sealed(batch))

    async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
        tasks.create_task(follow())
        begun = await ledger.execute(run, Begin(endpoint="http://agent"))
        words = ledger.words(begun)
        for n in range(100):
            await words.say([f"word {n} "] * rnd.randint(1, 3))
            for _ in range(rnd.randrange(4)):
                await asyncio.sleep(0)
        await words.settled()
        good = Complete(message_id=workload._mint("msg"), final_message="all", usage={"tokens": 1})
        await ledger.execute(begun, good)
    log = sealed(await store.read(run.run_id, 0, ALL))
    await store.close()
    tally.fire("hints lost", bus.lost)
    tally.fire("hints doubled", bus.doubled)
    return violations(log, seen)


def unchecked(hints: list[Hint], cursor: int) -> tuple[Batch, bool]:
    """Believe every hint."""
    batches = [hint.events for hint in hints if hint.events]
    return Batch.chain(batches) if batches else EMPTY, False


async def test_a_leaky_bus_costs_nothing_with_the_resume_check_and_is_red_without(
    ground: Path, tally: Tally, rounds_of: Callable[[int], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    tally.expect("hints lost", "hints doubled", "caught without the resume check")
    for seed in range(rounds_of(100)):
        assert await followed(ground, seed, tally) == []
        tally.round()
    monkeypatch.setattr(tail, "contiguous", unchecked)
    found = [problem for seed in range(3) for problem in await followed(ground, 1000 + seed, tally)]
    tally.fire("caught without the resume check", len(found))
