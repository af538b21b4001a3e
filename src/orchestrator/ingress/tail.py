"""One stream of a session, read once and passed on to every device that is in it."""

import asyncio
from collections.abc import Sequence
from typing import Final, Protocol

import msgspec

from orchestrator.clients.sse import SSEEvent
from orchestrator.core.secret import Secret
from orchestrator.core.states import ENDED
from orchestrator.ingress.frames import LOG_RESET, Passed, passed, passed_reset
from orchestrator.ingress.place import Cursors, Place
from orchestrator.ingress.problems import Away, Problem
from orchestrator.ingress.upstream import RunsPage, Upstream
from orchestrator.ports import World
from orchestrator.telemetry import get_logger

log = get_logger(__name__)

BACKOFF_S: Final = (0.1, 5.0)
_ENDED_KEPT: Final = 256
_NOISE: Final = 256


class Reader(Protocol):
    """Who a tail passes events on to."""

    def hear(self, portion: "Portion") -> None:
        """Take what came; never waits."""
        ...

    def reopened(self) -> None:
        """Learn that the stream is open again: what was read beyond the tail may be void."""
        ...

    def lose(self, problem: Problem) -> None:
        """Learn that the session may be read no more."""
        ...


class Portion:
    """Events that came together, and their frames, which all devices in step are sent alike."""

    __slots__ = ("_frames", "_tail", "events")

    def __init__(self, tail: "SessionTail", events: list[tuple[Passed, Place | None]]) -> None:
        self.events = events
        self._tail = tail
        self._frames: dict[bool, bytes] = {}

    def frames(self, *, creator: bool) -> bytes:
        """Return the joined frames; ends of runs and resets come with the cursor of that place."""
        found = self._frames.get(creator)
        if found is None:
            found = b"".join(
                [self.frame(event, place, creator=creator) for event, place in self.events]
            )
            self._frames[creator] = found
        return found

    def frame(self, event: Passed, place: Place | None, *, creator: bool) -> bytes:
        """Return the frame of one event, with its cursor where it has a place."""
        return event.frame(self._tail.cursor_of(place, creator=creator) if place else None)


class SessionTail:
    """Follows a session from now on, for as long as it has readers.

    `seqs` says how far each open run has been passed on, `generations` in which generation of its
    log where that is not the first, and `open` is set while the stream is. What was in the log
    before the tail began is not passed on: `_before` names runs that had ended.
    """

    def __init__(
        self,
        upstream: Upstream,
        world: World,
        cursors: Cursors,
        key: tuple[str, str],
        bearer: Secret | None,
    ) -> None:
        self.key = key
        self.session_id = key[0]
        self.bearer = bearer
        self.readers: set[Reader] = set()
        self.seqs: dict[str, int] = {}
        self.generations: dict[str, int] = {}
        self.open = asyncio.Event()
        self._ended: dict[str, int] = {}
        self._upstream = upstream
        self._world = world
        self._cursors = cursors
        self._before: dict[str, None] = {}
        self._forgotten = 0
        self._newest: str | None = None
        self._newest_at = 0
        self._cursor = ""
        self._opened_once: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._refused: Problem | None = None

    def begin(self, runs: RunsPage, open_runs: RunsPage | None, cursor: str) -> None:
        """Begin at `cursor`, which is not beyond what the lists of the session's runs tell."""
        self._cursor = cursor
        for run in runs.runs + (open_runs.runs if open_runs else []):
            if run.status in ENDED:
                self._before[run.run_id] = None
            else:
                self.seqs.setdefault(run.run_id, run.last_seq)
                self._note_generation(run.run_id, run.generation)
        if runs.runs:
            self._newest, self._newest_at = runs.runs[0].run_id, runs.runs[0].created_at
        if runs.has_more:
            self._forgotten = runs.runs[-1].created_at

    @property
    def place(self) -> Place:
        """Return the place up to which everything was passed on."""
        return Place(dict(self.seqs), self._newest, self._newest_at, dict(self.generations))

    def cursor_of(self, place: Place, *, creator: bool) -> str | None:
        """Return a place of this session as a cursor; None where that would be too long."""
        return self._cursors.write(self.session_id, place, creator=creator)

    def passed(self, run_id: str) -> int | None:
        """Return how far a run was passed on; None where it has ended, or nothing came of it."""
        return self.seqs.get(run_id)

    def is_over(self, run_id: str) -> bool:
        """Return whether nothing more of a run will be passed on."""
        return run_id in self._ended or run_id in self._before

    def lacks(self, run_id: str, seq: int, accepted_at: int) -> bool:
        """Return whether events of a run up to `seq` are still to be passed on.

        A run that it does not know, accepted (milliseconds UTC) before one that it has forgotten,
        was over long ago.
        """
        so_far = self.seqs.get(run_id)
        if so_far is not None:
            return so_far < seq
        return not self.is_over(run_id) and accepted_at >= self._forgotten

    async def run(self) -> None:
        """Read until cancelled, or until the session may be read no more."""
        wait_s = BACKOFF_S[0]
        while True:
            try:
                async with self._upstream.session_stream(
                    self.session_id, self._cursor, self.bearer
                ) as stream:
                    self._open(None)
                    wait_s = BACKOFF_S[0]
                    async for events in stream:
                        self._take(events)
            except Away as problem:
                log.info("tail_broke", session_id=self.session_id, why=problem.message)
            except Problem as problem:
                self._end(problem)
                return
            except Exception:
                log.exception("tail_failed", session_id=self.session_id)
            self.open.clear()
            await self._world.sleep(wait_s * (0.5 + self._world.noise(1)[0] / _NOISE / 2))
            wait_s = min(wait_s * 2, BACKOFF_S[1])

    async def opened(self) -> None:
        """Wait until the stream has been open; raises Problem where it may not be read."""
        await asyncio.shield(self._opened_once)
        if self._refused is not None:
            raise self._refused

    def _open(self, refused: Problem | None) -> None:
        self._refused = refused
        if not self._opened_once.done():
            self._opened_once.set_result(None)
        if refused is None:
            self.open.set()
            for reader in list(self.readers):
                reader.reopened()

    def _end(self, problem: Problem) -> None:
        self._open(problem)
        log.info("tail_ended", session_id=self.session_id, why=problem.message)
        for reader in list(self.readers):
            reader.lose(problem)

    def _take(self, events: Sequence[SSEEvent]) -> None:
        fresh: list[tuple[Passed, Place | None]] = []
        for event in events:
            self._cursor = event.id or self._cursor
            found = self._read(event)
            if found is not None and self._is_new(found):
                fresh.append((found, self.place if found.ends or found.resets else None))
        if not fresh:
            return
        portion = Portion(self, fresh)
        for reader in list(self.readers):
            reader.hear(portion)

    def _read(self, event: SSEEvent) -> Passed | None:
        try:
            read = passed_reset if event.event == LOG_RESET else passed
            return read(event.data.encode())
        except (msgspec.MsgspecError, KeyError, UnicodeEncodeError):
            log.warning("event_not_read", session_id=self.session_id, event_type=event.event)
            return None

    def _is_new(self, event: Passed) -> bool:
        """Note an event; return whether it came after the tail began and was not passed before."""
        run_id = event.run_id
        if run_id in self._before:
            if event.ends:
                del self._before[run_id]
                self._note_end(event)
            return False
        last = self.seqs.get(run_id)
        if event.resets:
            return self._go_back(event)
        if last is not None and event.seq <= last:
            return False
        if last is None and event.seq == 1:
            self._newest, self._newest_at = run_id, event.ts
        self.seqs[run_id] = event.seq
        if event.ends:
            del self.seqs[run_id]
            self.generations.pop(run_id, None)
            self._note_end(event)
        return True

    def _go_back(self, event: Passed) -> bool:
        """Note that events are void, and will come anew; return whether any was passed on."""
        if self.seqs.get(event.run_id, 0) <= event.seq:
            return False
        self.seqs[event.run_id] = event.seq
        self._note_generation(event.run_id, event.generation)
        return True

    def _note_generation(self, run_id: str, generation: int) -> None:
        if generation:
            self.generations[run_id] = generation

    def _note_end(self, event: Passed) -> None:
        self._ended[event.run_id] = event.ts
        if len(self._ended) > _ENDED_KEPT:
            self._forgotten = self._ended.pop(next(iter(self._ended)))


async def looked_up(
    upstream: Upstream, session_id: str, bearer: Secret | None
) -> tuple[RunsPage, RunsPage | None]:
    """Return what a tail begins behind: the newest runs, and the open ones among older ones."""
    runs = await upstream.runs(session_id, bearer)
    if not runs.has_more:
        return runs, None
    return runs, await upstream.open_runs(session_id, bearer)
