"""Who did what: one chained entry per administrative act, in the commit that carries it out."""

from collections import Counter
from typing import Any, Final

import msgspec

from orchestrator.core import audit
from orchestrator.core.access import TENANT, Caller
from orchestrator.core.errors import Conflict, Unavailable
from orchestrator.core.jsontext import canonical
from orchestrator.core.ops import Committed, Insert, Op, Outcome, Write
from orchestrator.core.records import NEXT, AuditEntry, Key
from orchestrator.ports import Store, Where, World
from orchestrator.telemetry import get_logger

log = get_logger(__name__)

WINDOW_S: Final = 60.0
"""Security events of one kind and target are one entry in this time, with their number."""
_KINDS_MAX: Final = 256
"""Different security events that one window keeps; the rest are counted together."""
_TARGET_MAX: Final = 200
_PAGE: Final = 500
_BEFORE: Final = -(1 << 63)
"""Where a walk begins, so that it also meets what was put in front of the first entry."""
TENANTS_MAX: Final = 10_000
"""Tenants that are verified at once."""


class Verified(msgspec.Struct, frozen=True):
    """What a walk along a tenant's chain found; `broken_at` is None where all of it holds."""

    tenant: str
    entries: int
    head: str
    broken_at: int | None = None


class Audit:
    """The audit log of every tenant."""

    def __init__(self, store: Store, world: World) -> None:
        self._store = store
        self._world = world
        self._seen: Counter[tuple[str, str, str]] = Counter()
        self._window = float("-inf")

    async def carry_out(
        self, by: Caller, action: str, target: str, *writes: Write, **detail: Any
    ) -> Outcome:
        """Commit an act of `by` together with its entry; returns what became of it."""
        entry = self.entry(by, action, target, **detail)
        outcome = (await self._store.commit(Op(writes=(*writes, entry))))[0]
        if isinstance(outcome, Committed):
            log.info("audit", actor=by.name, action=action, target=target, tenant=by.tenant)
        return outcome

    def entry(self, by: Caller, action: str, target: str, **detail: Any) -> Insert:
        """Return what writes the entry of an act of `by`, for the commit that carries it out."""
        told = {name: value for name, value in detail.items() if value is not None}
        return Insert(self._entry(by.tenant, by.name, action, target, told))

    def _entry(
        self, tenant: str, actor: str, action: str, target: str, detail: dict[str, Any]
    ) -> AuditEntry:
        return AuditEntry(
            tenant=tenant,
            seq=NEXT,
            at=self._world.now(),
            actor=actor,
            action=action,
            target=target[:_TARGET_MAX],
            detail=canonical(detail).decode(),
        )

    def security(self, event: str, target: str, tenant: str = TENANT) -> None:
        """Note that something was refused; a flood of it is one entry and one line a minute."""
        known = (tenant, event, target[:_TARGET_MAX])
        if known not in self._seen and len(self._seen) >= _KINDS_MAX:
            known = (tenant, event, "others")
        if known not in self._seen:
            log.warning("security", security_event=event, target=known[2], tenant=tenant)
        self._seen[known] += 1

    async def flush(self, *, now: bool = False) -> None:
        """Write the security events of a window that is over, or of this one `now`."""
        time = self._world.monotonic()
        if not self._seen or (time - self._window < WINDOW_S and not now):
            return
        self._window = time
        seen, self._seen = self._seen, Counter()
        ops = [
            Op(writes=(Insert(self._entry(tenant, "nobody", f"security.{event}", target,
                                          {"times": times})),))
            for (tenant, event, target), times in seen.items()
        ]  # fmt: skip
        try:
            await self._store.commit(*ops)
        except Unavailable:
            self._seen.update(seen)
            raise

    async def page(
        self, tenant: str, *, after: int = 0, action: str | None = None, limit: int = 100
    ) -> list[AuditEntry]:
        """Return up to `limit` entries after a seq; `action` is a whole one, such as key.create."""
        where: list[Where] = [("tenant", "=", tenant), ("seq", ">", after)]
        if action is not None:
            where.append(("action", "=", action))
        try:
            return await self._store.find(AuditEntry, *where, order="seq", limit=limit)
        except ValueError as error:
            raise Conflict(
                "an entry of the audit log cannot be read any more: somebody changed it; "
                "./orchestrator audit verify says which"
            ) from error

    async def tenants(self) -> list[str]:
        """Return whose logs there are: each begins with a first entry, and with a key mostly."""
        keys = await self._store.find(Key, limit=TENANTS_MAX)
        first: Where = ("seq", "=", 1)
        try:
            firsts = await self._store.find(AuditEntry, first, limit=TENANTS_MAX)
        except ValueError:  # a damaged one; the walk along its chain says so
            firsts = []
        return sorted({TENANT, *(k.tenant for k in keys), *(e.tenant for e in firsts)})

    async def verify(self, tenant: str) -> Verified:
        """Walk along a tenant's chain; what cannot even be read breaks it, too."""
        seq, head, size = 0, audit.BEGINNING, _PAGE
        while True:
            try:
                entries = await self.page(tenant, after=seq or _BEFORE, limit=size)
            except Conflict:  # a row is no record any more: find out which
                if size == 1:
                    return Verified(tenant, seq, head.hex(), seq + 1)
                size = 1
                continue
            if not entries:
                return Verified(tenant, seq, head.hex())
            bad = audit.broken(entries, head, seq)
            if bad is not None:
                good = entries[: bad - 1 - seq]
                head = good[-1].hash if good else head
                return Verified(tenant, bad - 1, head.hex(), bad)
            seq, head = entries[-1].seq, entries[-1].hash
            await self._world.sleep(0)  # others have their turn between the pages
