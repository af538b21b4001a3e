"""Pushes live events to the ingress: at least once, in order per run, never in a run's way.

A push reads the store, so an absent or slow ingress costs a few words of memory per run and
nothing else. While it is away one push at a time tries whether it is back.
"""

import asyncio
from collections.abc import Sequence
from contextlib import suppress

import msgspec

from orchestrator.core.errors import Unavailable
from orchestrator.core.events import TERMINAL, LogEvent
from orchestrator.core.live import live
from orchestrator.core.ops import Delete, Op, Put
from orchestrator.core.records import Cursor, Run
from orchestrator.core.states import OPEN
from orchestrator.engine.patience import patiently
from orchestrator.ports import Bus, Hint, PushClient, Store, World
from orchestrator.telemetry import get_logger

log = get_logger(__name__)

FOLLOWER = "ingress"
GRACE_MS = 60_000
"""How long after a run's end we go on trying to deliver it."""
TRACKS_MAX = 20_000
"""How many runs with undelivered events are remembered."""
BATCH_MAX = 64
_IN_FLIGHT = 64
_TICK_S = 0.25
_SAVE_TICKS = 4
_BACKOFF_S = (0.25, 5.0)
_TAIL_RECHECK_S = 30.0


class Track(msgspec.Struct):
    """How far one run is delivered."""

    run_id: str
    tenant: str
    session_id: str
    cursor: int
    head: int
    ended_at: int | None = None
    busy: bool = False
    saved: int = 0

    @property
    def behind(self) -> bool:
        """Return whether something waits to be delivered."""
        return self.cursor < self.head


class Pusher:
    """Follows every run of this server for the ingress."""

    def __init__(self, store: Store, bus: Bus, world: World, client: PushClient) -> None:
        self._store = store
        self._bus = bus
        self._world = world
        self._client = client
        self._tracks: dict[str, Track] = {}
        self._slots = asyncio.Semaphore(_IN_FLIGHT)
        self._batch = False
        self._up = True
        self._retry_at = 0.0
        self._backoff = _BACKOFF_S[0]
        self.pushed = 0
        self.dropped = 0
        self.failures = 0

    def stats(self) -> dict[str, float]:
        """Return counters and gauges for `/metrics`."""
        return {
            "push_events_total": self.pushed,
            "push_dropped_total": self.dropped,
            "push_failures_total": self.failures,
            "push_runs_behind": sum(track.behind for track in self._tracks.values()),
            "push_ingress_up": float(self._up),
        }

    async def run(self) -> None:
        """Push until cancelled."""
        with self._bus.subscribe("runs") as mailbox:
            await patiently(self._world, self._recover)
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._tick_loop(tasks), name="push-tick")
                while True:
                    for hint in await mailbox.take():
                        await patiently(self._world, self._note, hint)
                    self._start(tasks)

    async def flush(self) -> None:
        """Save how far every run is delivered; what cannot be saved now is saved or sent again."""
        with suppress(Unavailable):
            await self._expire()
            await self._save()

    async def _recover(self) -> None:
        since = self._world.now() - GRACE_MS
        runs = await self._store.find(Run, ("status", "in", sorted(OPEN)), limit=TRACKS_MAX)
        runs += await self._store.find(Run, ("ended_at", ">", since), limit=TRACKS_MAX)
        for run in runs:
            await self._track(run)

    async def _track(self, run: Run) -> Track:
        saved = await self._store.get(Cursor, FOLLOWER, run.run_id, deciding=True)
        seq = saved.seq if saved is not None else 0
        track = Track(
            run.run_id, run.tenant, run.session_id, seq, run.head, run.ended_at, saved=seq
        )
        self._tracks[run.run_id] = track
        return track

    async def _note(self, hint: Hint) -> None:
        track = self._tracks.get(hint.run_id)
        if track is None:
            run = await self._store.get(Run, hint.run_id, deciding=True)
            if run is None:
                return
            track = await self._track(run)
            if len(self._tracks) > TRACKS_MAX:
                self._forget(next(iter(self._tracks)))
        track.head = max(track.head, hint.head)
        if not hint.events or hint.events.types[-1] in TERMINAL:
            run = await self._store.get(Run, hint.run_id, deciding=True)
            track.ended_at = run.ended_at if run is not None else self._world.now()

    def _start(self, tasks: asyncio.TaskGroup) -> None:
        """Start delivering what is behind; while the ingress is away, one run at a time."""
        if not self._up and self._world.monotonic() < self._retry_at:
            return
        for track in self._tracks.values():
            if track.behind and not track.busy:
                track.busy = True
                tasks.create_task(self._deliver(track, tasks), name=f"push-{track.run_id}")
                if not self._up:
                    self._retry_at = self._world.monotonic() + self._backoff
                    return

    async def _deliver(self, track: Track, tasks: asyncio.TaskGroup) -> None:
        try:
            async with self._slots:
                while track.behind and (self._up or track.busy):
                    if not await self._push_some(track):
                        return
                    if not self._up:
                        self._up, self._backoff = True, _BACKOFF_S[0]
                        log.info("ingress_back", runs_behind=self.stats()["push_runs_behind"])
                        self._start(tasks)
        finally:
            track.busy = False

    async def _push_some(self, track: Track) -> bool:
        events = await patiently(
            self._world, self._store.read, track.run_id, track.cursor, BATCH_MAX
        )
        if not events:
            track.head = track.cursor  # there will be word of more when it may be shown
            return True
        try:
            for last, bodies in self._portions(events):
                if bodies:
                    answer = await self._client.push(track.tenant, track.session_id, bodies)
                    self._batch = answer.batch
                    self.pushed += len(bodies)
                    if answer.tails:
                        self._leave_to_tail()
                        return False
                track.cursor = last
        except Unavailable as error:
            self._away(error)
            return False
        return True

    def _portions(self, events: Sequence[LogEvent]) -> list[tuple[int, list[bytes]]]:
        """Return (last seq, pushed objects) per request: one event each, or all where welcome."""
        pushed = [(event.seq, live(event)) for event in events]
        if self._batch:
            return [(events[-1].seq, [body for _, body in pushed if body is not None])]
        return [(seq, [body] if body is not None else []) for seq, body in pushed]

    def _away(self, error: Unavailable) -> None:
        self.failures += 1
        if self._up:
            log.info("ingress_away", error=error.message)
        self._up = False
        self._retry_at = self._world.monotonic() + self._backoff
        self._backoff = min(self._backoff * 2, _BACKOFF_S[1])

    def _leave_to_tail(self) -> None:
        self._up = False
        self._retry_at = self._world.monotonic() + _TAIL_RECHECK_S
        for track in self._tracks.values():
            track.cursor = track.head

    async def _tick_loop(self, tasks: asyncio.TaskGroup) -> None:
        ticks = 0
        while True:
            await self._world.sleep(_TICK_S)
            ticks += 1
            self._start(tasks)
            if ticks % _SAVE_TICKS == 0:
                await self.flush()

    async def _expire(self) -> None:
        before = self._world.now() - GRACE_MS
        over = [t for t in self._tracks.values() if t.ended_at is not None and t.ended_at < before]
        stored = [Delete(Cursor, (FOLLOWER, t.run_id)) for t in over if t.saved]
        if stored:
            await self._store.commit(Op(writes=tuple(stored)))
        for track in over:
            self._forget(track.run_id)

    def _forget(self, run_id: str) -> None:
        track = self._tracks.pop(run_id, None)
        if track is not None:
            self.dropped += max(0, track.head - track.cursor)

    async def _save(self) -> None:
        moved = [track for track in self._tracks.values() if track.cursor != track.saved]
        if not moved:
            return
        now = self._world.now()
        rows = [
            Cursor(follower=FOLLOWER, run_id=track.run_id, seq=track.cursor, updated_at=now)
            for track in moved
        ]
        await self._store.commit(Op(writes=tuple(Put(row) for row in rows)))
        for track, row in zip(moved, rows, strict=True):
            track.saved = row.seq
