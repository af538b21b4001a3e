"""What a device missed: read from the orchestrator run by run, until the device is in step."""

from typing import Final, Protocol

from orchestrator.ingress.frames import Passed, passed, reset
from orchestrator.ingress.place import Place
from orchestrator.ingress.problems import Problem
from orchestrator.ingress.tail import SessionTail
from orchestrator.ingress.upstream import RunSeen, Upstream

RUNS_MAX: Final = 10_000
"""How many runs a device may have missed."""
_SKEW_MS: Final = 3_600_000
_WHOLE: Final = 1 << 53
"""More than any seq."""
_NOT_FOUND: Final = "run_not_found"


class Sink(Protocol):
    """Where what was missed goes."""

    def write(self, data: bytes) -> None:
        """Send frames; never waits."""
        ...

    async def drained(self) -> None:
        """Wait until most of what was sent has left."""
        ...


class Missed:
    """The way of one device from its place to where the tail of its session is.

    `seqs` says how far it has come with each run that it must be told of, `_generations` in which
    generation of its log, where it knows. What the tail passes on meanwhile is not kept: its run is
    noted and read from the log, too, so the memory that this takes does not grow with what was
    missed. Raises Problem where the orchestrator is away.
    """

    def __init__(self, upstream: Upstream, tail: SessionTail, sink: Sink) -> None:
        self.seqs: dict[str, int] = {}
        self.meanwhile: dict[str, None] = {}
        self._upstream = upstream
        self._tail = tail
        self._bearer = tail.bearer
        self._sink = sink
        self._generations: dict[str, int] = {}
        self._over: dict[str, int] = {}
        self._had: dict[str, int] = {}
        """Runs that another ingress has told the device of whole, though the tail may be behind."""
        self._accepted: dict[str, int] = {}
        self._beyond: set[str] = set()
        self._newest: str | None = None
        self._newest_at = 0

    def note(self, run_id: str) -> None:
        """Note a run of which the tail has passed something on."""
        self.meanwhile[run_id] = None

    def doubt(self) -> None:
        """Read all open runs once more: the log may have lost what was read of them."""
        self.meanwhile |= dict.fromkeys(self.seqs)

    async def find(self, cursor: Place | None, told: dict[str, int] | None) -> None:
        """Find out of which runs there may be more.

        `told` is what the device itself says of runs; it can only shorten what is sent. Without a
        cursor nothing says of which generation it is; it is taken as today's.
        """
        place = cursor or Place()
        passing = list(self._tail.seqs)  # before the list, which so has each of them
        runs = await self._later(place, told)
        self.seqs.update(place.seqs)
        for run in reversed(runs):
            self.seqs.setdefault(run.run_id, 0)
        for run_id, seq in (told or {}).items():
            if self.seqs.get(run_id, seq) < seq:
                self.seqs[run_id] = seq
        if cursor is not None:
            known = cursor.generations
            self._generations = {run_id: known.get(run_id, 0) for run_id in self.seqs}
        if place.newest is not None:
            for run_id in passing:
                self._had.setdefault(run_id, _WHOLE)
        self._had = {run_id: seq for run_id, seq in self._had.items() if run_id not in self.seqs}
        self._newest, self._newest_at = place.newest, place.newest_at
        if runs:
            self._newest, self._newest_at = runs[0].run_id, runs[0].created_at

    @property
    def place(self) -> Place:
        """Return the device's place; runs above `newest` that are over are named in it, too."""
        over = {run_id: self._over[run_id] for run_id in self._beyond if run_id in self._over}
        later = {run_id: one for run_id, one in self._generations.items() if one}
        return Place({**self.seqs, **over}, self._newest, self._newest_at, later)

    async def _later(self, place: Place, told: dict[str, int] | None) -> list[RunSeen]:
        """Return the runs that were accepted after a place, newest first.

        Where the device only says how far it has come with some runs, those count which are not
        older than these.
        """
        wanted = set(told or {}) if place.newest is None and not place.seqs else set()
        by_told, last = bool(wanted), 0
        found: list[RunSeen] = []
        cursor: str | None = None
        while True:
            page = await self._upstream.runs(self._tail.session_id, self._bearer, cursor=cursor)
            self._accepted |= {run.run_id: run.created_at for run in page.runs}
            for at, run in enumerate(page.runs):
                if run.run_id == place.newest or run.created_at < place.newest_at - _SKEW_MS:
                    self._had = {one.run_id: one.last_seq for one in page.runs[at:]}
                    return found
                found.append(run)
                if run.run_id in wanted:
                    wanted.discard(run.run_id)
                    last = len(found)
                    if not wanted:
                        return found
            if not page.has_more:
                return found[:last] if by_told else found
            if len(found) >= RUNS_MAX:
                raise Problem(
                    "invalid_request",
                    f"more than {RUNS_MAX} runs were missed; leave the cursor out, and read them "
                    "at /v1/runs",
                )
            cursor = page.next_cursor

    async def send(self, *, creator: bool) -> dict[str, int]:
        """Send all that was missed; return how far the device is ahead of the tail, by run.

        Nothing may be awaited between this and being in step: what the tail passes on next is for
        the device. While the tail is away, the log may yet lose what was read beyond it.
        """
        for run_id in list(self.seqs):
            await self._read(run_id, creator=creator)
        while self.meanwhile or not self._tail.open.is_set():
            await self._tail.open.wait()
            for run_id in list(self.meanwhile):
                await self._read(run_id, creator=creator)
        ahead = {**self._had, **self.seqs, **self._over}
        accepted, lacks = self._accepted, self._tail.lacks
        return {
            run_id: seq
            for run_id, seq in ahead.items()
            if lacks(run_id, seq, accepted.get(run_id, 0))
        }

    async def _read(self, run_id: str, *, creator: bool) -> None:
        """Read a run to its end, or to where the tail is or beyond."""
        while True:
            self.meanwhile.pop(run_id, None)
            if run_id in self._over or run_id in self._had:
                return
            if run_id not in self.seqs:
                self.seqs[run_id] = 0
                self._beyond.add(run_id)
            await self._sink.drained()
            events, more = await self._page(run_id)
            self._sink.write(b"".join([self._frame(event, creator=creator) for event in events]))
            if not events or not (more or self._is_behind(run_id)):
                self.meanwhile.pop(run_id, None)
                return

    def _is_behind(self, run_id: str) -> bool:
        """Return whether the tail has passed on more of a run than the device has."""
        if run_id in self._over:
            return False
        return self._tail.is_over(run_id) or self.seqs[run_id] < (self._tail.passed(run_id) or 0)

    async def _page(self, run_id: str) -> tuple[list[Passed], bool]:
        seq, generation = self.seqs[run_id], self._generations.get(run_id)
        after = str(seq) if generation is None else f"{seq}.{generation}"
        try:
            page = await self._upstream.page(run_id, after, self._bearer)
        except Problem as problem:
            if problem.cause == _NOT_FOUND:  # retention was quicker
                return [], False
            raise
        self._generations[run_id] = page.generation
        events = [passed(bytes(raw)) for raw in page.events]
        if generation not in {None, page.generation}:  # a device may have more than its cursor says
            agreed = page.log_reset.after_seq if page.log_reset else seq
            events.insert(0, reset(run_id, agreed, page.generation))
        return events, page.has_more

    def _frame(self, event: Passed, *, creator: bool) -> bytes:
        self.seqs[event.run_id] = event.seq
        if event.ends:
            self._over[event.run_id] = self.seqs.pop(event.run_id)
            del self._generations[event.run_id]
        elif not event.resets:
            return event.frame()
        return event.frame(self._tail.cursor_of(self.place, creator=creator))
