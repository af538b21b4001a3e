"""The bus that loses everything: what still works over it does not depend on any bus."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from orchestrator.ports import Hint


class SilentMailbox:
    """Never has anything."""

    async def take(self) -> list[Hint]:
        """Wait for ever."""
        await asyncio.Event().wait()
        return []


class NullBus:
    """`ports.Bus` at its worst."""

    def publish(self, subject: str, hint: Hint) -> None:
        """Lose the hint."""

    @contextmanager
    def subscribe(self, subject: str) -> Iterator[SilentMailbox]:
        """Open a mailbox into which nothing will come."""
        del subject
        yield SilentMailbox()
