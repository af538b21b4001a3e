"""Batches whose COMMIT got no answer: asked for until it is known whether they are there."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import msgspec

from orchestrator.core.errors import Unavailable
from orchestrator.core.ops import Op, Outcome
from orchestrator.stores.postgres.line import Line

PATIENCE_S: Final = 30.0
"""How long callers of such a batch are left waiting before they hear Unavailable."""
_FIRST_S: Final = 0.02
_LAST_S: Final = 0.5
_DONE_MAX: Final = 10_000


class Sent(msgspec.Struct, frozen=True):
    """A batch as it was sent: what became of each op, if it was committed."""

    number: int
    ops: Sequence[Op]
    outcomes: Sequence[Outcome]


class Unsettled:
    """Settles one batch at a time; nothing else is committed before.

    A caller who has heard Unavailable and asks again with the very same op hears what became of it
    the first time. So a piece of an agent's words is never doubled, however long the database was
    away.
    """

    def __init__(
        self,
        line: Line,
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]],
    ) -> None:
        self._line = line
        self._clock = clock
        self._sleep = sleep
        self._left: Sent | None = None
        self._done: dict[int, tuple[Op, Outcome]] = {}
        self.unknown = self.found = 0

    async def settle(self, batch: Sent, away: Callable[[], None]) -> bool:
        """Return whether a batch is committed; `away` is called each time that cannot be said.

        Raises Unavailable when patience is over; `clear` goes on from there.
        """
        self.unknown += 1
        until, delay = self._clock() + PATIENCE_S, _FIRST_S
        while True:
            try:
                committed = await self._line.committed(batch.number)
            except Unavailable:
                away()
                if self._clock() >= until:
                    self._left = batch
                    raise
            else:
                self.found += committed
                return committed
            await self._sleep(delay)
            delay = min(2 * delay, _LAST_S)

    async def clear(self) -> None:
        """Settle what was left; raises Unavailable while that cannot be done."""
        if self._left is None:
            return
        left = self._left
        if await self._line.committed(left.number):
            self.found += 1
            if len(self._done) > _DONE_MAX:
                self._done.clear()
            for op, outcome in zip(left.ops, left.outcomes, strict=True):
                self._done[id(op)] = (op, outcome)
        self._left = None

    def done(self, ops: Sequence[Op]) -> list[Outcome] | None:
        """Return what became of ops that were committed although their caller heard otherwise."""
        if not self._done or not all(id(op) in self._done for op in ops):
            return None
        return [self._done.pop(id(op))[1] for op in ops]

    def stats(self) -> dict[str, float]:
        """Return how many batches got no answer, and how many of them were there all the same."""
        return {"commits_unknown_total": self.unknown, "commits_found_total": self.found}
