"""Callers: they invoke, repeat themselves, contradict themselves, cancel, and run things again."""

import asyncio
from typing import Final

from msgspec.structs import replace

from orchestrator.core.errors import (
    Conflict,
    IdempotencyKeyReused,
    QueueFull,
    RunEnded,
    RunNotFound,
    SessionBusy,
    Unavailable,
)
from orchestrator.core.records import Run
from orchestrator.core.states import ENDED
from orchestrator.engine import Invoke
from orchestrator.testing.simulator.plan import AGENTS
from orchestrator.testing.simulator.readers import RunReader
from orchestrator.testing.simulator.stage import Gone, Stage

_LATER: Final = (Gone, Unavailable, QueueFull)
"""What a caller takes as: try again."""
_BUSY_KINDS: Final = (*["enqueue"] * 6, "reject", "interrupt", "parallel")
_TRIES: Final = 5
_COMING_S: Final = 2.5
"""Everybody has come by then, so that much is going on when something breaks."""


class Caller:
    """One person with one message, and whatever comes into their mind afterwards."""

    def __init__(self, stage: Stage, number: int) -> None:
        self._stage = stage
        self._number = number
        self._who = f"caller {number}"
        self._chance = stage.chance.of(self._who)

    async def act(self) -> None:
        """Do everything this person does."""
        chance, stage = self._chance, self._stage
        await asyncio.sleep(chance.between(0, min(stage.plan.until * 0.7, _COMING_S)))
        request = self._request()
        twice = request.request_id is not None and chance.hit(0.15)
        run = await (self._twice(request) if twice else self._insist(request))
        if run is not None:
            await self._go_on(request, run)

    async def _go_on(self, request: Invoke, run: Run) -> None:
        chance, stage = self._chance, self._stage
        async with asyncio.TaskGroup() as tasks:
            if chance.hit(0.6):
                reader = RunReader(stage, run.run_id, chance.of("reader"))
                tasks.create_task(reader.follow())
            if chance.hit(0.3):
                tasks.create_task(self._cancel(run))
            if chance.hit(0.3):
                tasks.create_task(self._repeat(request, run))
            if chance.hit(0.2):
                tasks.create_task(self._contradict(request))
            if chance.hit(0.3):
                tasks.create_task(self._wait(run))
            if chance.hit(0.1):
                tasks.create_task(self._rerun(run))

    def _request(self) -> Invoke:
        chance = self._chance
        return Invoke(
            agent_id=chance.pick(AGENTS).agent_id,
            session_id=f"s{chance.whole(1, self._stage.plan.sessions)}",
            content=f"question of {self._who}",
            request_id=f"request {self._number}" if chance.hit(0.8) else None,
            on_busy=chance.pick(_BUSY_KINDS),
        )

    async def _twice(self, request: Invoke) -> Run | None:
        """Invoke as somebody does whose finger slips: both get the same answer."""
        async with asyncio.TaskGroup() as tasks:
            both = [tasks.create_task(self._insist(request)) for _ in range(2)]
        self._stage.fault("double_click")
        return both[0].result()

    async def _insist(self, request: Invoke) -> Run | None:
        """Invoke until there is an answer; None when it is no or might be done twice."""
        while True:
            try:
                accepted = await self._stage.ask(lambda engine: engine.runs.invoke(request))
            except SessionBusy:
                self._stage.fault("session_busy")
                return None
            except _LATER as error:
                self._stage.note(self._who, f"is not answered: {error!r}")
                if request.request_id is None and isinstance(error, Gone):
                    return None
            else:
                self._acknowledged(request, accepted.run)
                return accepted.run
            await asyncio.sleep(self._chance.between(0.03, 0.4))

    def _acknowledged(self, request: Invoke, run: Run) -> None:
        stage = self._stage
        stage.note(self._who, f"gets {stage.name(run.run_id)}")
        promises = stage.promises
        promises.runs.append(run.run_id)
        if request.request_id is not None:
            key = (run.session_id, request.request_id)
            promises.answers.setdefault(key, set()).add(run.run_id)

    async def _repeat(self, request: Invoke, run: Run) -> None:
        if request.request_id is None:
            return
        await asyncio.sleep(self._chance.between(0, 1))
        again = await self._insist(request)
        self._stage.fault("repeat")
        if again is not None and again.run_id != run.run_id:
            self._stage.accuse(f"{self._who} got two runs for one request id")

    async def _contradict(self, request: Invoke) -> None:
        if request.request_id is None:
            return
        await asyncio.sleep(self._chance.between(0, 1))
        try:
            run = await self._insist(replace(request, content="something else"))
        except IdempotencyKeyReused:
            self._stage.fault("contradiction")
        else:
            self._stage.accuse(f"{self._who} got {run} for another body with the same key")

    async def _cancel(self, run: Run) -> None:
        stage = self._stage
        await asyncio.sleep(self._chance.between(0, 0.8))
        while True:
            try:
                after = await stage.ask(
                    lambda engine: engine.runs.cancel(run.run_id, f"{self._who} says so")
                )
            except RunEnded:
                return
            except RunNotFound:
                self._missed(run)
                return
            except _LATER:
                await asyncio.sleep(self._chance.between(0.03, 0.4))
            else:
                stage.fault("cancel")
                stage.note(self._who, f"has cancelled {stage.name(run.run_id)}")
                self._saw(after)
                return

    async def _wait(self, run: Run) -> None:
        while True:
            try:
                found = await self._stage.ask(lambda engine: engine.runs.wait(run.run_id, 0.5))
            except _LATER:
                await asyncio.sleep(self._chance.between(0.03, 0.4))
                continue
            except RunNotFound:
                self._missed(run)
                return
            self._saw(found)
            if found.status in ENDED:
                return

    async def _rerun(self, run: Run) -> None:
        for _ in range(_TRIES):
            await asyncio.sleep(self._chance.between(0, 1))
            try:
                accepted = await self._stage.ask(lambda engine: engine.runs.rerun(run.run_id))
            except RunNotFound:
                self._missed(run)
                return
            except Gone:
                return  # whether it was run again is unknown
            except (*_LATER, Conflict):
                continue  # a run is run again when it has ended
            self._stage.fault("rerun")
            self._stage.promises.runs.append(accepted.run.run_id)
            return

    def _missed(self, run: Run) -> None:
        self._stage.accuse(f"{self._stage.name(run.run_id)} was promised and is unknown")

    def _saw(self, run: Run) -> None:
        if run.status in ENDED:
            self._stage.promises.ends.setdefault(run.run_id, set()).add(run.status)
