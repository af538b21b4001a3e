"""A planted fault of reading: what a tail would be that trusts the bus."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from orchestrator.core.events import TERMINAL, LogEvent
from orchestrator.engine.tail import PAGE, Tails
from orchestrator.ports import Bus, Store


class CarelessTails(Tails):
    """Tails of runs that hand out what the bus brings, and never look at the numbers."""

    def __init__(self, store: Store, bus: Bus) -> None:
        super().__init__(store, bus)
        self._outside = (store, bus)

    @asynccontextmanager
    async def run(
        self, run_id: str, after: int = 0
    ) -> AsyncIterator[AsyncIterator[list[LogEvent]]]:
        """Replay once, then pass on whatever comes."""
        store, bus = self._outside

        async def follow() -> AsyncIterator[list[LogEvent]]:
            batch = await store.read(run_id, after, PAGE)
            while not batch or batch[-1].type not in TERMINAL:
                if batch:
                    yield batch
                batch = [event for hint in await mailbox.take() for event in hint.events]
            yield batch

        with bus.subscribe(f"run:{run_id}") as mailbox:
            yield follow()
