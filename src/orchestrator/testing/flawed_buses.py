"""Buses that break one promise each: `testing/bus_contract.py` must be red for every one."""

import asyncio
from collections.abc import Callable
from typing import Final

from orchestrator.buses.local import LocalBus, LocalMailbox
from orchestrator.ports import Bus, Hear, Hint


class LosesTheNewest(LocalBus):
    """Keeps what came first when a mailbox overflows."""

    def subscribe(self, subject: str, hear: Hear | None = None) -> LocalMailbox:
        """Return a mailbox that holds a hundred events."""
        return _Full(self, subject, hear)


class _Full(LocalMailbox):
    def put(self, hint: Hint) -> None:
        if len(self._hints) < 20:  # noqa: PLR2004  # full
            super().put(hint)


class MixesSubjects(LocalBus):
    """Tells everybody everything."""

    def publish(self, subject: str, hint: Hint) -> None:
        """Leave a hint in every mailbox there is."""
        del subject
        for known in self.subjects():
            super().publish(known, hint)


class TellsOneOnly(LocalBus):
    """Tells the subscriber who came first, and nobody else."""

    def publish(self, subject: str, hint: Hint) -> None:
        """Leave a hint in one mailbox."""
        for mailbox in self._mailboxes.get(subject, ())[:1]:
            mailbox.put(hint)


class TellsBackwards(LocalBus):
    """Hands out the latest hint first."""

    def subscribe(self, subject: str, hear: Hear | None = None) -> LocalMailbox:
        """Return a mailbox that is read from its end."""
        return _Backwards(self, subject, hear)


class _Backwards(LocalMailbox):
    async def take(self) -> list[Hint]:
        return (await super().take())[::-1]


class HearsWhoHasLeft(LocalBus):
    """Keeps hints for whoever comes next."""

    def __init__(self) -> None:
        super().__init__()
        self._kept: dict[str, list[Hint]] = {}

    def publish(self, subject: str, hint: Hint) -> None:
        """Leave a hint, for later where nobody listens."""
        if subject in self._mailboxes:
            super().publish(subject, hint)
        else:
            self._kept.setdefault(subject, []).append(hint)

    def open(self, subject: str, mailbox: LocalMailbox) -> None:
        """Open a mailbox with what came before it."""
        super().open(subject, mailbox)
        for hint in self._kept.pop(subject, ()):
            mailbox.put(hint)


class KeepsEverything(LocalBus):
    """Lets a mailbox grow as long as nobody takes."""

    def subscribe(self, subject: str, hear: Hear | None = None) -> LocalMailbox:
        """Return a mailbox without bounds."""
        return _Boundless(self, subject, hear)


class _Boundless(LocalMailbox):
    def put(self, hint: Hint) -> None:
        super().put(hint)
        self._bytes = 0


class WakesNobody(LocalBus):
    """Leaves hints and lets sleepers sleep."""

    def subscribe(self, subject: str, hear: Hear | None = None) -> LocalMailbox:
        """Return a mailbox that has no bell."""
        return _Silent(self, subject, hear)


class _Silent(LocalMailbox):
    def put(self, hint: Hint) -> None:
        waiter, self._waiter = self._waiter, None
        super().put(hint)
        self._waiter = waiter


class LosesWithItsTaker(LocalBus):
    """Hands a hint to a taker who may be cancelled before he has it."""

    def subscribe(self, subject: str, hear: Hear | None = None) -> LocalMailbox:
        """Return a mailbox that forgets what it has handed over."""
        return _Handing(self, subject, hear)


class _Handing(LocalMailbox):
    def put(self, hint: Hint) -> None:
        if self._taking is not None and not self._taking.done():
            self._taking.set_result([hint])
        else:
            super().put(hint)

    _taking: "asyncio.Future[list[Hint]] | None" = None

    async def take(self) -> list[Hint]:
        if self._hints:
            return await super().take()
        self._taking = asyncio.get_running_loop().create_future()
        return await self._taking


class DiesWithItsTaker(LocalBus):
    """Closes a mailbox when the one who waits for it is cancelled."""

    def subscribe(self, subject: str, hear: Hear | None = None) -> LocalMailbox:
        """Return a mailbox that does not outlive a taker."""
        return _Dying(self, subject, hear)


class _Dying(LocalMailbox):
    _dead = False

    def put(self, hint: Hint) -> None:
        if not self._dead:
            super().put(hint)

    async def take(self) -> list[Hint]:
        try:
            return await super().take()
        except asyncio.CancelledError:
            self._dead = True
            raise


FLAWS: Final[tuple[Callable[[], Bus], ...]] = (
    LosesTheNewest, MixesSubjects, TellsOneOnly, TellsBackwards, HearsWhoHasLeft, KeepsEverything,
    WakesNobody, LosesWithItsTaker, DiesWithItsTaker,
)  # fmt: skip
