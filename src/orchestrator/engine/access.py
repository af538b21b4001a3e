"""Who calls: from what was shown to a caller, and for how long that holds."""

import hmac
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Final, TypeAlias, TypeVar

import msgspec

from orchestrator.core import access, credentials
from orchestrator.core.access import ROLES, SESSION_SCOPES, TENANT, Caller
from orchestrator.core.credentials import RunClaims, SessionClaims
from orchestrator.core.errors import (
    RunNotActive,
    StaleAttempt,
    StoreFailure,
    Unauthorized,
    Unavailable,
)
from orchestrator.core.ops import Op, Patch
from orchestrator.core.ratelimit import Limit, Limiter, Verdict
from orchestrator.core.records import Key, R, Run
from orchestrator.core.states import OPEN
from orchestrator.engine.audit import Audit
from orchestrator.engine.keys import Keys, is_good
from orchestrator.engine.limits import AccessSettings
from orchestrator.engine.tokens import Tokens, is_at_work
from orchestrator.ports import Identity, Store, World
from orchestrator.telemetry import get_logger

log = get_logger(__name__)

LOOK_S: Final = 0.5
"""How long a key is believed, and how often those behind open streams are looked at again."""
_USED_EVERY_S: Final = 60.0
_KNOWN_MAX: Final = 10_000
_AT_ONCE: Final = 500

T = TypeVar("T")


class _Watched(msgspec.Struct, eq=False):
    """An open stream: whose it is, and how it is cut."""

    caller: Caller
    cut: Callable[[], None]


_Streams: TypeAlias = set[_Watched]


class Access:
    """Knows callers by what they show, and cuts their streams when that no longer holds."""

    def __init__(
        self,
        store: Store,
        world: World,
        keys: Keys,
        tokens: Tokens,
        audit: Audit,
        settings: AccessSettings,
        identity: Identity | None = None,
    ) -> None:
        self._store = store
        self._world = world
        self._keys = keys
        self._tokens = tokens
        self._audit = audit
        self._settings = settings
        self._identity = identity
        self._known: dict[str, tuple[Key, float]] = {}
        self._used: dict[str, int] = {}
        self._changed = 0
        self._watched: _Streams = set()
        self._of_runs: dict[str, _Streams] = {}
        self._limiter = Limiter()
        self._admin_maker = _admin_maker(settings)
        self.has_keys = settings.admin_key is not None or identity is not None
        """Whether anybody has ever been given a way to say who he is."""

    @property
    def keyless(self) -> bool:
        """Return whether callers are not told apart, and everybody may do everything."""
        known = self.has_keys or self._keys.changed or self._settings.keys_only
        return self._settings.open or not known

    async def caller(self, shown: str | None) -> Caller:
        """Return who shows this credential, or nothing.

        Raises Unauthorized, and for the token of an attempt that is over RunNotActive or
        StaleAttempt.
        """
        if shown is not None and shown.startswith(credentials.TOKEN_PREFIXES):
            return await self._by_token(shown)
        if self.keyless:
            return access.local(TENANT)
        if shown is None:
            return access.nobody(TENANT)
        if self._is_admin(shown):
            return Caller(
                kind="key", tenant=TENANT, name="admin_key", permissions=ROLES["admin"], root=True,
                maker=self._admin_maker,
            )  # fmt: skip
        if shown.startswith(credentials.KEY_PREFIX):
            return await self._by_key(shown)
        if self._identity is not None:
            return await self._by_identity(self._identity, shown)
        raise Unauthorized("the credential is none of this server's; keys begin with ok_")

    def _is_admin(self, shown: str) -> bool:
        wanted = self._settings.admin_key
        return wanted is not None and hmac.compare_digest(wanted.reveal().encode(), shown.encode())

    async def _by_key(self, shown: str) -> Caller:
        parsed = credentials.parse_key(shown)
        key = await self._key(parsed[0]) if parsed is not None else None
        return self._of_key(parsed, key)

    def known(self, shown: str | None) -> Caller | None:
        """Return who shows this, or nothing, where nobody need be asked; None for anybody else."""
        if self.keyless or shown is None:
            return access.local(TENANT) if self.keyless and shown is None else None
        parsed = credentials.parse_key(shown)
        if parsed is None or self._keys.changed != self._changed:
            return None
        key, until = self._known.get(parsed[0], (None, 0.0))
        if key is None or self._world.monotonic() >= until:
            return None
        try:
            return self._of_key(parsed, key)
        except Unauthorized:
            return None

    def _of_key(self, parsed: tuple[str, str] | None, key: Key | None) -> Caller:
        if parsed is None or key is None or not credentials.is_secret_of(parsed[1], key.digest):
            raise Unauthorized("no such key; ./orchestrator keys ls shows those there are")
        now = self._world.now()
        if not is_good(key, now):
            ended = "was revoked" if key.revoked_at is not None else "has expired"
            raise Unauthorized(
                f"key {key.key_id} {ended}; an admin makes another: ./orchestrator keys create"
            )
        self._used[key.key_id] = now
        return Caller(
            kind="key",
            tenant=key.tenant,
            name=f"key:{key.key_id}",
            permissions=ROLES.get(key.role, frozenset()),
            person=key.person,
            key_id=key.key_id,
            agent_id=key.agent_id,
            limits=key.limits,
            expires_at=key.expires_at,
        )

    async def _key(self, key_id: str) -> Key | None:
        """Return a key as it was at most LOOK_S ago."""
        now = self._world.monotonic()
        if self._keys.changed != self._changed or len(self._known) > _KNOWN_MAX:
            self._changed = self._keys.changed
            self._known.clear()
        key, until = self._known.get(key_id, (None, 0.0))
        if key is None or now >= until:
            key = await self._store.get(Key, key_id, deciding=True)
            if key is not None:
                self._known[key_id] = (key, now + LOOK_S)
        return key

    async def _by_identity(self, identity: Identity, shown: str) -> Caller:
        person = await identity.verify(shown)
        return Caller(
            kind="person",
            tenant=person.tenant,
            name=f"person:{person.subject}",
            permissions=ROLES[person.role],
            person=person.subject,
            expires_at=person.expires_at,
        )

    async def _by_token(self, shown: str) -> Caller:
        claims = self._tokens.read(shown)
        if claims is None:
            raise Unauthorized("the token is none of this server's, or its SECRET_KEY is gone")
        if claims.expires_at <= self._world.now():
            raise Unauthorized("the token has expired; ask for a new one")
        if isinstance(claims, SessionClaims):
            return await self._by_session(claims)
        return await self._by_run(claims)

    async def _by_session(self, claims: SessionClaims) -> Caller:
        key = await self._key(claims.by) if claims.by is not None else None
        gone = claims.by is not None and (key is None or not is_good(key, self._world.now()))
        if gone or not self._made_by(claims.maker):
            raise Unauthorized("who made this token may do nothing any more, nor may the token")
        may = [SESSION_SCOPES.get(scope, frozenset()) for scope in claims.scopes]
        return Caller(
            kind="session",
            tenant=claims.tenant,
            name=f"session:{claims.session_id}",
            permissions=frozenset().union(*may),
            person=claims.user_id,
            key_id=claims.by,
            session_id=claims.session_id,
            limits=key.limits if key is not None else {},
            expires_at=claims.expires_at,
            maker=claims.maker,
        )

    def _made_by(self, maker: str | None) -> bool:
        """Return whether what was made without a key still holds."""
        if maker is None:
            return True
        return self.keyless if maker == access.LOCAL else maker == self._admin_maker

    async def _by_run(self, claims: RunClaims) -> Caller:
        run = await self._store.get(Run, claims.run_id, deciding=True)
        if run is None or run.tenant != claims.tenant or run.status not in OPEN:
            raise RunNotActive(f"run {claims.run_id} has ended, and its token with it")
        if not is_at_work(run, claims):
            raise StaleAttempt(
                f"this token is that of attempt {claims.attempt} of run {run.run_id}, which is over"
            )
        return Caller(
            kind="run",
            tenant=claims.tenant,
            name=f"run:{claims.run_id}",
            permissions=frozenset(claims.scopes) & access.RUN_SCOPES,
            session_id=run.session_id,
            run_id=claims.run_id,
            attempt=claims.attempt,
            epoch=claims.epoch,
            expires_at=claims.expires_at,
        )

    async def sees(self, caller: Caller, run: Run) -> bool:
        """Return whether a caller may know of a run: its session's, its own and those below it."""
        if run.tenant != caller.tenant:
            return False
        if caller.run_id is None:
            return caller.session_id in {None, run.session_id}
        above: Run | None = run
        while above is not None and above.run_id != caller.run_id:
            if above.parent_run_id is None:
                return False
            above = await self._store.get(Run, above.parent_run_id, deciding=True)
        return above is not None

    def take(self, caller: Caller, route: str) -> list[tuple[str, Limit, Verdict]]:
        """Count a request against its caller's limits; returns each with what it said.

        A key and the tokens that it made have them together. What a route's own limit refuses costs
        nothing of the limit for all.
        """
        now = self._world.monotonic()
        whose = caller.key_id or caller.name
        told: list[tuple[str, Limit, Verdict]] = []
        for name in (route, "*"):
            text = caller.limits.get(name)
            if text is None:
                continue
            limit = Limit.parse(text)
            told.append((name, limit, self._limiter.take(whose, limit, now, name)))
            if not told[-1][2].allowed:
                break
        return told

    @contextmanager
    def watching(self, caller: Caller, cut: Callable[[], None]) -> Iterator[None]:
        """Call `cut` once what the caller showed holds no more, while the context is open."""
        watched = _Watched(caller, cut)
        run_id = caller.run_id
        self._watched.add(watched)
        if run_id is not None:
            self._of_runs.setdefault(run_id, set()).add(watched)
        try:
            yield
        finally:
            self._watched.discard(watched)
            if run_id is not None:
                self._of_runs[run_id].discard(watched)
                if not self._of_runs[run_id]:
                    del self._of_runs[run_id]

    def on_ended(self, run: Run) -> None:
        """Cut the streams that a run's own tokens opened; its end was committed here."""
        for watched in tuple(self._of_runs.get(run.run_id, ())):
            watched.cut()

    async def run(self) -> None:
        """Look after open streams, keys in use and the audit's floods until cancelled.

        Only StoreFailure ends it; what else goes wrong with one of them stops none of the others.
        """
        noted = self._world.monotonic()
        while True:
            await self._surely(self.look)
            await self._surely(self._audit.flush)
            if self._world.monotonic() - noted >= _USED_EVERY_S:
                noted = self._world.monotonic()
                await self._surely(self.note_use)
            await self._world.sleep(LOOK_S)

    async def _surely(self, work: Callable[[], Awaitable[None]]) -> None:
        try:
            await work()
        except StoreFailure:
            raise
        except Unavailable as error:
            log.warning("access_waits", error=error.message)
        except Exception:
            log.exception("access_failed", work=getattr(work, "__name__", ""))

    async def look(self) -> None:
        """Cut the streams whose caller may read no more, and see whether there are keys now."""
        if not self.has_keys:
            self.has_keys = await self._store.count(Key) > 0
        watched = list(self._watched)
        held = await self._holding([one.caller for one in watched]) if watched else []
        for one, holds in zip(watched, held, strict=True):
            if not holds:
                one.cut()

    async def still(self, caller: Caller) -> None:
        """Raise Unauthorized if what a caller showed a while ago holds no more."""
        if caller.kind != "nobody":
            (holds,) = await self._holding([caller])
            if not holds:
                raise Unauthorized("the credential was revoked or ended while this was waited for")

    async def _holding(self, callers: Sequence[Caller]) -> list[bool]:
        """Return for each caller whether what it showed still holds."""
        now = self._world.now()
        keys = await self._all(Key, "key_id", {caller.key_id for caller in callers})
        runs = await self._all(Run, "run_id", {caller.run_id for caller in callers})
        good = {key.key_id for key in keys if is_good(key, now)}
        at_work = {run.run_id: run for run in runs}
        return [
            (caller.expires_at is None or now < caller.expires_at)
            and (caller.key_id is None or caller.key_id in good)
            and (caller.run_id is None or is_at_work(at_work.get(caller.run_id), caller))
            and self._made_by(caller.maker)
            for caller in callers
        ]

    async def _all(self, kind: type[R], column: str, wanted: set[str | None]) -> list[R]:
        names, found = sorted(name for name in wanted if name is not None), list[R]()
        for at in range(0, len(names), _AT_ONCE):
            part: Sequence[str] = names[at : at + _AT_ONCE]
            found += await self._store.find(
                kind, (column, "in", part), limit=_AT_ONCE, deciding=True
            )
        return found

    async def flush(self) -> None:
        """Write what is only in memory yet, once, before the end."""
        with suppress(Unavailable):
            await self._audit.flush(now=True)
            await self.note_use()

    async def note_use(self) -> None:
        """Write down when keys were last used."""
        used, self._used = self._used, {}
        ops = [
            Op(writes=(Patch(Key, (key_id,), {"last_used_at": at}),)) for key_id, at in used.items()
        ]
        try:
            if ops:
                await self._store.commit(*ops)
        except Unavailable:
            self._used = used | self._used
            raise


def _admin_maker(settings: AccessSettings) -> str | None:
    """Return what the tokens that this ADMIN_KEY makes depend on; another one has another."""
    wanted = settings.admin_key
    return f"admin:{credentials.digest(wanted.reveal()).hex()[:16]}" if wanted else None
