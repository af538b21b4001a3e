"""The bus within one process: a dictionary of mailboxes."""

import asyncio
from typing import Final, Self

from orchestrator.ports import Hear, Hint

MAILBOX_BYTES: Final = 256 << 10
"""How many bytes of events one subscriber may leave untaken."""


class LocalMailbox:
    """What one subscriber has not taken yet.

    When it overflows, the events are dropped and one hint per run remains: the subscriber reads
    the store instead, at its own pace, and nobody waits for it.
    """

    __slots__ = ("_bus", "_bytes", "_hear", "_hints", "_subject", "_waiter")

    def __init__(self, bus: "LocalBus", subject: str, hear: Hear | None) -> None:
        self._bus = bus
        self._subject = subject
        self._hear = hear
        self._hints: list[Hint] = []
        self._bytes = 0
        self._waiter: asyncio.Future[None] | None = None

    def __enter__(self) -> Self:
        self._bus.open(self._subject, self)
        return self

    def __exit__(self, *problem: object) -> None:
        self._bus.close(self._subject, self)

    async def take(self) -> list[Hint]:
        """Wait until something has come, then return all of it."""
        while not self._hints:
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        taken, self._hints, self._bytes = self._hints, [], 0
        return taken

    def put(self, hint: Hint) -> None:
        """Leave a hint and wake the subscriber, unless it hears it in its sleep."""
        asleep = self._waiter is not None and not self._hints
        if asleep and self._hear is not None and self._hear(hint):
            return
        self._bytes += hint.events.size
        self._hints.append(hint)
        if self._bytes > MAILBOX_BYTES:
            newest = {kept.run_id: kept.head for kept in self._hints}
            self._hints = [Hint(run_id, head) for run_id, head in newest.items()]
            self._bytes = 0
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class LocalBus:
    """`ports.Bus` for one process."""

    certain = True

    def __init__(self) -> None:
        self._mailboxes: dict[str, list[LocalMailbox]] = {}

    def publish(self, subject: str, hint: Hint) -> None:
        """Leave a hint in every mailbox of `subject`."""
        for mailbox in self._mailboxes.get(subject, ()):
            mailbox.put(hint)

    deliver = publish

    def subjects(self) -> list[str]:
        """Return what has a mailbox."""
        return list(self._mailboxes)

    def stats(self) -> dict[str, float]:
        """Return nothing: within a process there is nothing to count."""
        return {}

    def subscribe(self, subject: str, hear: Hear | None = None) -> LocalMailbox:
        """Return a mailbox for `subject`, which is open while it is entered."""
        return LocalMailbox(self, subject, hear)

    def open(self, subject: str, mailbox: LocalMailbox) -> None:
        """Leave hints about `subject` in a mailbox from now on."""
        self._mailboxes.setdefault(subject, []).append(mailbox)

    def close(self, subject: str, mailbox: LocalMailbox) -> None:
        """Leave no more in it."""
        self._mailboxes[subject].remove(mailbox)
        if not self._mailboxes[subject]:
            del self._mailboxes[subject]
