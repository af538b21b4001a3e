"""What the store knows of this server: a name that owns runs, and the lease on it."""

import asyncio
import os
from contextlib import suppress

from orchestrator.core.errors import Unavailable
from orchestrator.engine.limits import FENCE_S, LEASE_MS
from orchestrator.ports import Store, World

_TRY_S = 1.0
"""How long a renewal is waited for at least, so that our own pause is not taken for silence."""


class Replica:
    """Keeps one lease at a time; who lets it lapse goes on under a new name, which owns nothing."""

    def __init__(self, store: Store, world: World) -> None:
        self._store = store
        self._world = world
        self._former: set[str] = set()
        self._renewed: float | None = None
        self._expires_at = 0
        self.owner = self._new_name()

    def _new_name(self) -> str:
        return f"{os.getpid()}-{self._world.noise(8).hex()}"

    @property
    def silent_s(self) -> float:
        """Return for how long the lease is not renewed; 0 while there is none to lose."""
        return 0.0 if self._renewed is None else self._world.monotonic() - self._renewed

    async def renew(self) -> None:
        """Renew the lease, and give up those of former names.

        Raises Unavailable, also when no answer comes before it is time to fence.
        """
        owner, now = self.owner, self._world.monotonic()
        expires_at = self._store.now() + LEASE_MS
        await self._say(owner, LEASE_MS)
        if owner == self.owner:
            self._renewed, self._expires_at = now, expires_at
        await self._give_up()

    async def prove(self) -> None:
        """Renew the lease unless it has long to go, also by a clock that has jumped."""
        if self._store.now() >= self._expires_at - LEASE_MS // 2:
            await self.renew()

    def rename(self) -> None:
        """Give up the name with all that it owns; the store hears of it when it can."""
        self._former.add(self.owner)
        self.owner = self._new_name()
        self._renewed, self._expires_at = None, 0

    async def leave(self) -> None:
        """Give up every lease, so that nobody need wait for its end; if not, it ends by itself."""
        self.rename()
        with suppress(Unavailable):
            await self._give_up()

    async def _give_up(self) -> None:
        for name in tuple(self._former):
            await self._say(name, 0)
            self._former.discard(name)

    async def _say(self, owner: str, ttl_ms: int) -> None:
        try:
            async with asyncio.timeout(max(_TRY_S, FENCE_S - self.silent_s)):
                await self._store.renew(owner, ttl_ms)
        except TimeoutError:
            raise Unavailable("the store does not answer") from None
