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
    Unavailable,
)
from orchestrator.core.records import Run
from orchestrator.core.states import ENDED
from orchestrator.engine import Invoke
from orchestrator.testing.simulator.chance import Chance
from orchestrator.testing.simulator.plan import AGENTS
from orchestrator.testing.simulator.readers import RunReader
from orchestrator.testing.simulator.stage import Gone, Stage

_LATER: Final = (Gone, Unavailable, QueueFull)
"""What a caller takes as: try again."""


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
        await asyncio.sleep(chance.between(0, stage.plan.until * 0.7))
        request = self._request()
        run = await self._insist(request)
        if run is None:
            return
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
        )

    async def _insist(self, request: Invoke) -> Run | None:
        """Invoke until there is an answer; None when trying again could do it twice."""
        while True:
            try:
                accepted = await self._stage.ask(lambda engine: engine.runs.invoke(request))
            except _LATER as error:
                self._stage.note(self._who, f"is not answered: {error!r}")
                if request.request_id is None and isinstance(error, Gone):
                    return None
            else:
                self._acknowledged(request, accepted.run)
                return accepted.run
            await asyncio.sleep(self._chance.between(0.02, 0.2))

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
            server = await stage.server()
            try:
                after = await server.call(
                    lambda engine: engine.runs.cancel(run.run_id, f"{self._who} says so")
                )
            except RunEnded:
                return
            except RunNotFound:
                stage.accuse(f"{stage.name(run.run_id)} was promised and is unknown")
                return
            except _LATER:
                await asyncio.sleep(self._chance.between(0.02, 0.2))
            else:
                stage.fault("cancel")
                stage.note(self._who, f"has cancelled {stage.name(run.run_id)}")
                stage.promises.cancels.append((run.run_id, stage.loop.time(), server))
                self._saw(after)
                return

    async def _wait(self, run: Run) -> None:
        while True:
            try:
                found = await self._stage.ask(lambda engine: engine.runs.wait(run.run_id, 0.5))
            except _LATER:
                await asyncio.sleep(self._chance.between(0.02, 0.2))
                continue
            self._saw(found)
            if found.status in ENDED:
                return

    async def _rerun(self, run: Run) -> None:
        await asyncio.sleep(self._chance.between(0, 1))
        try:
            accepted = await self._stage.ask(lambda engine: engine.runs.rerun(run.run_id))
        except (*_LATER, Conflict):
            return
        self._stage.fault("rerun")
        self._stage.promises.runs.append(accepted.run.run_id)

    def _saw(self, run: Run) -> None:
        if run.status in ENDED:
            self._stage.promises.ends.setdefault(run.run_id, set()).add(run.status)
