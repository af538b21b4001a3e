"""A planted fault of reading: what a tail would be that trusts the bus."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from orchestrator.core.batch import EMPTY, Batch
from orchestrator.core.events import TERMINAL
from orchestrator.engine.following import PAGE
from orchestrator.engine.tail import Tails
from orchestrator.ports import Bus, Store


class CarelessTails(Tails):
    """Tails of runs that hand out what the bus brings, and never look at the numbers."""

    def __init__(self, store: Store, bus: Bus) -> None:
        super().__init__(store, bus)
        self._outside = (store, bus)

    @asynccontextmanager
    async def run(
        self, run_id: str, after: int = 0, sink: Callable[[Batch], bool] | None = None
    ) -> AsyncIterator[AsyncIterator[Batch]]:
        """Replay once, then pass on whatever comes."""
        del sink  # a short cut that it does not take
        store, bus = self._outside

        async def follow() -> AsyncIterator[Batch]:
            batch = await store.read(run_id, after, PAGE)
            while not batch or batch.types[-1] not in TERMINAL:
                if batch:
                    yield batch
                parts = [hint.events for hint in await mailbox.take() if hint.events]
                batch = Batch.chain(parts) if parts else EMPTY
            yield batch

        with bus.subscribe(f"run:{run_id}") as mailbox:
            yield follow()
