"""The keys of callers: made, listed, rotated with an overlap, revoked."""

from typing import Any, Final

import msgspec
from msgspec.structs import replace

from orchestrator.core import access, credentials, values
from orchestrator.core.access import Caller
from orchestrator.core.errors import Conflict, InvalidRequest, KeyNotFound
from orchestrator.core.ops import Insert, Outcome, Patch, Refused, Write
from orchestrator.core.ratelimit import N_MAX, Limit
from orchestrator.core.records import Key
from orchestrator.core.secret import Secret
from orchestrator.engine.audit import Audit
from orchestrator.ports import Store, Where, World

KEYS_MAX: Final = 10_000
"""Keys that one list shows."""
LIMITS_MAX: Final = 32
"""Limits that one key has."""
OVERLAP_S: Final = 3600
"""How long the old key of a rotation stays good, if nobody says otherwise."""
_TEXT_MAX: Final = 256
_STANDING: Final = {"rotated_to": None, "revoked_at": None}


class NewKey(msgspec.Struct, frozen=True, kw_only=True):
    """What a key is to be; `expires_in_s` None makes one that lasts."""

    name: str
    role: str
    tenant: str | None = None
    person: str | None = None
    agent_id: str | None = None
    environment: str = "live"
    expires_in_s: int | None = None
    limits: dict[str, str] = {}


class Made(msgspec.Struct, frozen=True):
    """A key and its text, which is shown once and kept nowhere."""

    key: Key
    text: Secret


class Keys:
    """The keys in the store; `changed` counts what this process did to them.

    With `others_know_admins`, ADMIN_KEY or an identity provider lets admins in, and no key must.
    """

    def __init__(
        self, store: Store, world: World, audit: Audit, *, others_know_admins: bool = False
    ) -> None:
        self._store = store
        self._world = world
        self._audit = audit
        self._others_know_admins = others_know_admins
        self.changed = 0

    async def create(self, wanted: NewKey, by: Caller) -> Made:
        """Make a key; raises InvalidRequest, and Forbidden for a tenant that is not `by`'s."""
        tenant = by.tenant_named(wanted.tenant)
        _check(wanted)
        if by.kind == "local" and wanted.role != "admin" and not self._others_know_admins:
            await self._must_have_admin()
        now = self._world.now()
        made = self._made(wanted, tenant, now, by)
        await self._carry_out(
            replace(by, tenant=tenant), "key.create", made.key.key_id, Insert(made.key),
            name=wanted.name, role=wanted.role, person=wanted.person, agent_id=wanted.agent_id,
        )  # fmt: skip
        return made

    async def _must_have_admin(self) -> None:
        """Keep whoever has no key yet from locking himself out."""
        if not await self._store.find(Key, ("role", "=", "admin"), limit=1):
            raise InvalidRequest(
                "the first key must be an admin's, for once there is one, only such a key makes "
                "others: ./orchestrator keys create --role admin NAME"
            )

    def _made(self, wanted: NewKey, tenant: str, now: int, by: Caller) -> Made:
        noise = self._world.noise(credentials.ID_NOISE)
        secret = self._world.noise(credentials.SECRET_BYTES)
        key_id, text, digest = credentials.mint_key(wanted.environment, now, noise, secret)
        key = Key(
            key_id=key_id,
            tenant=tenant,
            name=wanted.name,
            role=wanted.role,
            digest=digest,
            person=wanted.person,
            agent_id=wanted.agent_id,
            environment=wanted.environment,
            limits=wanted.limits,
            created_at=now,
            created_by=by.name,
            expires_at=now + wanted.expires_in_s * 1000 if wanted.expires_in_s else None,
        )
        return Made(key, text)

    async def list(self, tenant: str | None) -> "list[Key]":
        """Return a tenant's keys, or everybody's; revoked ones stay in the list."""
        where: list[Where] = [] if tenant is None else [("tenant", "=", tenant)]
        return await self._store.find(Key, *where, order="created_at", limit=KEYS_MAX)

    async def get(self, key_id: str, by: Caller) -> Key:
        """Return a key that `by` may change; raises KeyNotFound, also for a foreign tenant's."""
        key = await self._store.get(Key, key_id)
        if key is None or (key.tenant != by.tenant and not by.root):
            raise KeyNotFound(f"key {key_id[:40]} not found")
        return key

    async def rotate(self, key_id: str, by: Caller, overlap_s: int = OVERLAP_S) -> Made:
        """Make a key like this one; the old one goes on for `overlap_s`, 0 ends it at once."""
        old = await self.get(key_id, by)
        now = self._world.now()
        if not is_good(old, now) or old.rotated_to is not None:
            raise Conflict(f"key {key_id} has ended or was rotated before; make a new one")
        if not 0 <= overlap_s <= values.NUMBER_MAX:
            raise InvalidRequest(f"overlap_s must be a whole number from 0 to {values.NUMBER_MAX}")
        wanted = NewKey(
            name=old.name, role=old.role, person=old.person, agent_id=old.agent_id,
            environment=old.environment, limits=old.limits,
            expires_in_s=(old.expires_at - old.created_at) // 1000 if old.expires_at else None,
        )  # fmt: skip
        made = self._made(wanted, old.tenant, now, by)
        ends = min(now + overlap_s * 1000, old.expires_at or values.NUMBER_MAX)
        changes = {"expires_at": ends, "rotated_to": made.key.key_id}
        patch = Patch(Key, (key_id,), changes, _STANDING, required=True)
        outcome = await self._carry_out(
            replace(by, tenant=old.tenant), "key.rotate", key_id, patch, Insert(made.key),
            to=made.key.key_id, overlap_s=overlap_s,
        )  # fmt: skip
        if isinstance(outcome, Refused):
            raise Conflict(f"key {key_id} was revoked or rotated meanwhile; make a new one")
        return made

    async def revoke(self, key_id: str, by: Caller) -> Key:
        """End a key now; again is the same answer."""
        key = await self.get(key_id, by)
        if key.revoked_at is not None:
            return key
        now = self._world.now()
        patch = Patch(Key, (key_id,), {"revoked_at": now}, {"revoked_at": None}, required=True)
        by_tenant = replace(by, tenant=key.tenant)
        await self._carry_out(by_tenant, "key.revoke", key_id, patch, name=key.name)
        return await self.get(key_id, by)

    async def _carry_out(
        self, by: Caller, action: str, key_id: str, *writes: Write, **detail: Any
    ) -> Outcome:
        outcome = await self._audit.carry_out(by, action, key_id, *writes, **detail)
        self.changed += 1
        return outcome


def is_good(key: Key, now: int) -> bool:
    """Return whether a key opens anything now."""
    return key.revoked_at is None and (key.expires_at is None or now < key.expires_at)


def _check(wanted: NewKey) -> None:
    access.role(wanted.role)
    for field in ("name", "person"):
        text = getattr(wanted, field)
        if text is not None and not (0 < len(text) <= _TEXT_MAX and text.isprintable()):
            raise InvalidRequest(f"{field} must be 1 to {_TEXT_MAX} printable characters")
    if not credentials.ENVIRONMENT.match(wanted.environment):
        raise InvalidRequest("environment must be 1 to 16 characters of a-z 0-9")
    if wanted.agent_id is not None:
        values.name(wanted.agent_id, "agent_id")
        if wanted.role != "agent":
            raise InvalidRequest("agent_id limits keys of the role agent; leave it out")
    values.positive(wanted.expires_in_s, "expires_in_s")
    _check_limits(wanted.limits)


def _check_limits(limits: dict[str, str]) -> None:
    if len(limits) > LIMITS_MAX:
        raise InvalidRequest(f"limits may have {LIMITS_MAX} entries, not {len(limits)}")
    for name, text in limits.items():
        try:
            Limit.parse(text)
        except ValueError as error:
            raise InvalidRequest(
                f"limits: {name[:40]}: a limit is a whole number from 1 to {N_MAX} and a unit, "
                "s, m, h or d, such as 600/m"
            ) from error
