"""Who may come in: a device's hello is judged, and it is given the tail of its session."""

import asyncio
from collections.abc import Coroutine
from typing import Any, Final, Protocol
from urllib.parse import quote

import msgspec

from orchestrator.core import ids, values
from orchestrator.core.credentials import TOKEN_PREFIXES
from orchestrator.core.secret import Secret
from orchestrator.ingress.messages import Hello
from orchestrator.ingress.place import Cursors, Place
from orchestrator.ingress.problems import Problem
from orchestrator.ingress.tail import Reader, SessionTail, looked_up
from orchestrator.ingress.told import IngressSettings
from orchestrator.ingress.upstream import NOT_FOUND, Upstream
from orchestrator.ports import World
from orchestrator.telemetry import get_logger

log = get_logger(__name__)

SCOPES: Final = ("read", "invoke", "tool_result", "decide")
TOKEN_S: Final = 86_400
"""How long a token is good that the ingress makes for a session; its devices come again then."""
_FOREIGN: Final = "the token is not one of this session"
_FIX: Final = (
    "send the token of the session, made by POST /v1/sessions/{id}/tokens, or the cursor that the "
    "session's device was given"
)


class Greeted(msgspec.Struct, frozen=True, kw_only=True):
    """A device that may be here: its session, what it shows the orchestrator, where it was.

    `creator` says that it came with the shared key and made the session.
    """

    session_id: str
    token: Secret | None
    creator: bool = False
    user_id: str | None = None
    cursor: str | None = None
    place: Place | None = None
    resumes: bool = False


class Entering(Reader, Protocol):
    """A reader that is told of the tail that it is given."""

    def entered(self, greeted: Greeted, tail: SessionTail) -> None:
        """Hear what the tail passes on from now on."""
        ...


class Lobby:
    """Greets devices, and keeps one tail per session and credential while somebody reads it."""

    def __init__(
        self, settings: IngressSettings, upstream: Upstream, world: World, tasks: asyncio.TaskGroup
    ) -> None:
        self.upstream = upstream
        self.world = world
        self._settings = settings
        self._cursors = Cursors(settings.api_key)
        self._tasks = tasks
        self._tails: dict[tuple[str, str], SessionTail] = {}
        self._running: dict[SessionTail, asyncio.Task[None]] = {}
        self._opening: dict[tuple[str, str], asyncio.Lock] = {}

    @property
    def sessions(self) -> int:
        """Return how many sessions have a device."""
        return len({session_id for session_id, _ in self._tails})

    # ------------------------------------------------------------ who

    async def greet(self, hello: Hello) -> Greeted:
        """Return whom a hello is from; raises Problem for who may not come in."""
        token, shared = self._shown(hello)
        session_id = hello.session_id or self._new_session(token)
        values.session_id(session_id)
        place, proven = self._place(session_id, hello.cursor)
        creator = False
        if shared and token is None:
            creator = proven or await self._may_create(session_id, hello)
            if not creator:
                raise Problem(
                    "unauthorized",
                    f"the shared key opens no session that others made; {_FIX}",
                    final=True,
                )
        return Greeted(
            session_id=session_id,
            token=token,
            creator=creator,
            user_id=hello.user_id,
            cursor=hello.cursor,
            place=place,
            resumes=place is not None or bool(hello.last_seq),
        )

    def _shown(self, hello: Hello) -> tuple[Secret | None, bool]:
        """Return the session token of a hello, and whether it came with the shared key."""
        token, key = hello.token, hello.api_key
        if key and not token and key.startswith(TOKEN_PREFIXES):
            token, key = key, None
        own = self._settings.api_key
        shared = own is not None and key is not None and Secret(key) == own
        if own is not None and key and not shared:
            raise Problem("unauthorized", "the api_key is not the one of this ingress", final=True)
        if not token and not shared and not self._settings.open:
            what = "a session token" if own is None else "the api_key or a session token"
            raise Problem("unauthorized", f"the hello must carry {what}", final=True)
        if token and not token.isascii():
            raise Problem("unauthorized", "the token is none", final=True)
        return (Secret(token) if token else None), shared

    def _new_session(self, token: Secret | None) -> str:
        if token is not None:
            raise Problem("session_required", "a token is for one session: send its session_id too")
        return ids.mint("sess", self.world.now(), self.world.noise(ids.NOISE_BYTES), "")

    def _place(self, session_id: str, cursor: str | None) -> tuple[Place | None, bool]:
        return self._cursors.read(session_id, cursor) if cursor else (None, False)

    async def _may_create(self, session_id: str, hello: Hello) -> bool:
        if hello.session_id is None:
            return True
        own = self._settings.orchestrator_key
        try:
            return await self.upstream.session_cursor(session_id, own) is None
        except Problem as problem:
            raise _as_seen(problem, own=True) from None

    # ------------------------------------------------------------ which tail

    async def enter(self, greeted: Greeted, reader: Entering) -> SessionTail:
        """Let a device hear its session from now on; raises Problem where it may not read it."""
        while True:
            tail = await self._tail(greeted)
            try:
                await tail.opened()
            except Problem:
                self.leave(tail, reader)
                raise
            if self._tails.get(tail.key) is tail:  # its last reader may have left meanwhile
                tail.readers.add(reader)
                reader.entered(greeted, tail)
                return tail

    async def _tail(self, greeted: Greeted) -> SessionTail:
        key = _key(greeted)
        lock = self._opening.setdefault(key, asyncio.Lock())
        try:
            async with lock:
                if key not in self._tails:
                    opened = await self._opened(greeted)
                    if key not in self._tails:
                        self._begin(key, opened)
                return self._tails[key]
        finally:
            if not lock.locked():
                self._opening.pop(key, None)

    def _begin(self, key: tuple[str, str], tail: SessionTail) -> None:
        self._tails[key] = tail
        self._running[tail] = self._tasks.create_task(tail.run(), name=f"tail-{key[0]}")

    async def _opened(self, greeted: Greeted) -> SessionTail:
        session_id = greeted.session_id
        try:
            bearer = greeted.token or await self._own_token(session_id)
            cursor = await self.upstream.session_cursor(session_id, bearer)
            runs, open_runs = await looked_up(self.upstream, session_id, bearer)
        except Problem as problem:
            if problem.cause == NOT_FOUND:
                raise Problem("unauthorized", _FOREIGN, final=True) from problem
            raise _as_seen(problem, own=greeted.token is None) from None
        tail = SessionTail(self.upstream, self.world, self._cursors, _key(greeted), bearer)
        tail.begin(runs, open_runs, cursor or "")
        return tail

    async def _own_token(self, session_id: str) -> Secret | None:
        """Return a token for a session whose devices have none, so that they can do no more."""
        own = self._settings.orchestrator_key
        if own is None:
            return None
        path = f"/v1/sessions/{quote(session_id, safe='')}/tokens"
        made = await self.upstream.post(path, {"ttl_s": TOKEN_S, "scopes": SCOPES}, own)
        return Secret(made["token"])

    def start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Have something done beside what the device says."""
        return self._tasks.create_task(work, name="missed")

    def leave(self, tail: SessionTail, reader: Reader) -> None:
        """Let a device go; with the last one the tail ends."""
        tail.readers.discard(reader)
        if tail.readers:
            return
        if self._tails.get(tail.key) is tail:
            del self._tails[tail.key]
        running = self._running.pop(tail, None)
        if running is not None:
            running.cancel()


def _as_seen(problem: Problem, *, own: bool) -> Problem:
    """Return what a device is told that is not let in, for its credential or the ingress's `own`.

    The latter is no fault of the device, and an operator can mend it.
    """
    if problem.code != "unauthorized":
        return problem
    if not own:
        problem.final = True
        return problem
    log.error("orchestrator_key_refused", why=problem.message, cause=problem.cause)
    told = f"the orchestrator does not let the ingress in, see ORCHESTRATOR_KEY: {problem.message}"
    return Problem("orchestrator_fail", told, cause=problem.cause, retryable=True, final=True)


def _key(greeted: Greeted) -> tuple[str, str]:
    return greeted.session_id, greeted.token.reveal() if greeted.token else ""
