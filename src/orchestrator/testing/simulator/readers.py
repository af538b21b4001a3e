"""People who read along, hang up in the middle, and go on where they were."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from orchestrator.api.streams import Resume
from orchestrator.core.batch import Batch
from orchestrator.core.errors import RunNotFound
from orchestrator.core.events import DELTAS, LogEvent
from orchestrator.core.records import Run
from orchestrator.engine import TENANT, LogReset, SessionEvent
from orchestrator.engine.session_tail import SessionCursor
from orchestrator.testing.simulator.chance import Chance
from orchestrator.testing.simulator.server import Server
from orchestrator.testing.simulator.stage import Gone, Stage

_CALM_PATIENCE_S: Final = 60.0
_LOOK_AGAIN_S: Final = 2.0


class RunReader:
    """Reads one run from its first event to its last."""

    def __init__(self, stage: Stage, run_id: str, chance: Chance) -> None:
        self.run_id = run_id
        self.seen: list[LogEvent] = []
        self.over = False
        self._generation = 0
        self._kept: int | None = None
        self._stage = stage
        self._chance = chance
        self.who = f"reader of {stage.name(run_id)}"
        stage.readers.append(self)

    async def follow(self) -> None:
        """Read until the run is over, with as many connections as it takes."""
        while not self.over:
            await connected(self._stage, self.who, self._chance, self._stream)
        self._stage.note(self.who, f"has {len(self.seen)} events and is done")

    async def _stream(self, server: Server) -> None:
        try:
            self._resume(await server.engine.runs.get(self.run_id))
        except RunNotFound:  # a power loss took it, and nobody was promised that it would not
            self.seen, self._kept, self.over = [], None, True
            return
        after = len(self.seen)
        self._stage.note(self.who, f"reads on after {after} at {server.name}")

        def sink(batch: Batch) -> bool:
            taken = not server.road.dead and self._chance.hit(0.7)
            if taken:
                self._stage.fault("short_cut")
                self.seen += batch
            return taken

        async with server.engine.tails.run(self.run_id, after, sink) as batches:
            async for batch in batches:
                self.seen += batch
                await _dawdle(self._chance)
        self.over = True

    def _resume(self, run: Run) -> None:
        """Forget what the run's forks say is not in the log any more: no less, no more."""
        agreed = Resume(len(self.seen), self._generation).agreed(run.forks)
        gone = self._kept is not None and len(self.seen) > self._kept
        if agreed != (self._kept if gone else None):
            self._stage.accuse(f"{self.who} is told to go back to {agreed}, not {self._kept}")
        if agreed is not None:
            self._stage.fault("log_reset")
            self.seen = self.seen[:agreed]
        self._kept, self._generation = None, len(run.forks)

    def shown(self) -> dict[str, list[LogEvent]]:
        """Return what was shown, by run, without what a power loss took."""
        return {self.run_id: self.seen[: self._kept]}

    def lost_power(self) -> None:
        """Judge what was shown, and remember how far the disk kept it."""
        length = len(self._stage.disk.tables.log(self.run_id))
        _judge_loss(self._stage, self.who, self.shown()[self.run_id][length:])
        self._kept = length if self._kept is None else min(length, self._kept)
        self.over = False


class SessionReader:
    """Reads all runs of a session, without end."""

    def __init__(self, stage: Stage, session_id: str, chance: Chance) -> None:
        self.session_id = session_id
        self.seen: dict[str, list[LogEvent]] = {}
        self._kept: dict[str, int] = {}
        self._cursor: str | None = None
        self._stage = stage
        self._chance = chance
        self.who = f"session reader of {session_id}"
        stage.readers.append(self)

    async def follow(self) -> None:
        """Read until cancelled."""
        while True:
            await connected(self._stage, self.who, self._chance, self._stream)

    async def _stream(self, server: Server) -> None:
        tails = server.engine.tails
        self._stage.note(self.who, f"reads on at {server.name} after {self._place()}")
        async with tails.session(TENANT, self.session_id, self._cursor) as batches:
            async for batch in batches:
                for item in batch:
                    if isinstance(item, LogReset):
                        self._reset(item)
                    else:
                        self._take(item)
                await _dawdle(self._chance)

    def _take(self, item: SessionEvent) -> None:
        seen = self.seen.setdefault(item.run_id, [])
        if len(seen) > self._kept.pop(item.run_id, len(seen)):
            self._stage.accuse(f"{self.who} is not told what is void of {item.run_id}")
        seen.append(item.event)
        self._cursor = item.cursor

    def _reset(self, item: LogReset) -> None:
        """Forget what is said to be void: no less than is gone, and no more."""
        length = len(self.seen.get(item.run_id, ()))
        kept = min(self._kept.pop(item.run_id, length), length)
        if min(item.after_seq, length) != kept:
            self._stage.accuse(f"{self.who} is told to go back to {item.after_seq}, not {kept}")
        self._stage.fault("session_reset")
        self.seen[item.run_id] = self.seen.get(item.run_id, [])[: item.after_seq]

    def _place(self) -> str:
        position = SessionCursor.parse(self._cursor, TENANT, self.session_id)
        seqs = {self._stage.name(run_id): seq for run_id, seq in position.seqs.items()}
        return f"key {position.done}, {seqs}"

    def shown(self) -> dict[str, list[LogEvent]]:
        """Return what was shown, by run, without what a power loss took."""
        return {run_id: events[: self._kept.get(run_id)] for run_id, events in self.seen.items()}

    def lost_power(self) -> None:
        """Judge what was shown, and remember how far the disk kept it."""
        for run_id, events in self.shown().items():
            length = len(self._stage.disk.tables.log(run_id))
            _judge_loss(self._stage, self.who, events[length:])
            self._kept[run_id] = min(length, self._kept.get(run_id, length))


async def connected(
    stage: Stage, who: str, chance: Chance, stream: Callable[[Server], Awaitable[None]]
) -> None:
    """Keep one connection open for as long as a reader likes, then hang up."""
    server = await stage.server()

    async def serve() -> None:
        await stream(server)

    impatient = chance.hit(0.6) and not stage.calm
    patience = chance.between(0, 0.6) if impatient else _patience(stage)
    try:
        stream_task = server.handle(serve())
    except Gone:
        return
    await asyncio.wait({stream_task}, timeout=patience)
    if not stream_task.done():
        stage.fault("reader_hangs_up")
        stage.note(who, "hangs up")
        stream_task.cancel()
        await asyncio.wait({stream_task})
        await asyncio.sleep(chance.between(0.001, 0.05))
    else:
        await asyncio.sleep(chance.between(0.05, 0.3))


def _patience(stage: Stage) -> float:
    # Beside a second server a silence may mean that it died before it told the bus: look again.
    return _CALM_PATIENCE_S if stage.plan.replicas == 1 else _LOOK_AGAIN_S


async def _dawdle(chance: Chance) -> None:
    if chance.hit(0.2):
        await asyncio.sleep(chance.between(0, 0.1))


def _judge_loss(stage: Stage, who: str, lost: list[LogEvent]) -> None:
    if lost:
        stage.fault("shown_deltas_lost")
    for event in lost:
        if event.type not in DELTAS:
            stage.accuse(f"{who} was shown {event.type} #{event.seq}, and the power loss took it")
