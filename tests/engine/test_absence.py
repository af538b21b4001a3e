"""A store that is away, at any moment, costs some waiting; one that fails ends the server."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, TypeVar

import pytest

from orchestrator.core.errors import OrchestratorError, StorageFull, StoreFailure, Unavailable
from orchestrator.core.frames import Delta, Done, Frame
from orchestrator.core.records import Run
from orchestrator.core.states import RunState
from orchestrator.ports import AgentCall
from orchestrator.testing.engine_rig import ScriptedIngress

from .virtual import Virtual, play

T = TypeVar("T")
AWAY_S = 1.5


async def talk(_: AgentCall) -> AsyncIterator[Sequence[Frame]]:
    for word in ("a", "b", "c"):
        yield [Delta(word)]
        await asyncio.sleep(1)
    yield [Done()]


async def insist(ask: Callable[..., Awaitable[T]], *args: Any, **kwargs: Any) -> T:
    """Ask as a caller does who comes again when he is told to."""
    while True:
        try:
            return await ask(*args, **kwargs)
        except Unavailable:
            await asyncio.sleep(0.1)


class Absence:
    """From its n-th call on the store is away for some seconds; each call raises `error`."""

    def __init__(
        self, virtual: Virtual, begin: int, error: OrchestratorError, lasts: float
    ) -> None:
        self._loop = virtual.loop
        self._begin = begin
        self._error = error
        self._lasts = lasts
        self._until = 0.0
        self.calls = 0
        virtual.store.passage = self

    async def __call__(self, verb: str) -> None:
        del verb
        self.calls += 1
        if self.calls == self._begin:
            self._until = self._loop.time() + self._lasts
        if self._loop.time() < self._until:
            await asyncio.sleep(0)
            raise self._error


async def day(virtual: Virtual, ingress: ScriptedIngress) -> list[Run]:
    """Have two runs of one session, and tell the ingress."""
    async with virtual.running(talk, push=ingress) as rig:
        await insist(rig.register)
        runs = [await insist(rig.invoke, text, request_id=text) for text in ("one", "two")]
        while not ingress.complete([run.run_id for run in runs]):
            await asyncio.sleep(0.1)
        found: list[Run] = await rig.store.find(Run)
        return found


def moments() -> range:
    """Return the number of each call of the store on a day on which nothing happens."""

    async def story(virtual: Virtual) -> int:
        absence = Absence(virtual, 0, Unavailable("never"), 0)
        await day(virtual, ScriptedIngress())
        return absence.calls

    return range(1, play(story) + 1)


@pytest.mark.parametrize("error", [Unavailable("away"), StorageFull("full")], ids=["away", "full"])
def test_an_absence_at_any_moment_costs_waiting_only(error: OrchestratorError) -> None:
    async def story(virtual: Virtual, begin: int) -> None:
        Absence(virtual, begin, error, AWAY_S)
        ingress = ScriptedIngress()
        runs = await day(virtual, ingress)
        assert [(run.status, run.final_message) for run in runs] == [(RunState.DONE, "abc")] * 2
        for run in runs:
            seqs = [event["seq"] for event in ingress.events[run.run_id]]
            assert seqs == sorted(set(seqs))

    for begin in moments():
        play(story, begin)


def test_a_failure_at_any_moment_ends_the_server() -> None:
    async def story(virtual: Virtual, begin: int) -> None:
        Absence(virtual, begin, StoreFailure("the disk is gone"), float("inf"))
        with pytest.raises(BaseExceptionGroup) as caught:
            await day(virtual, ScriptedIngress())
        assert caught.value.split(StoreFailure)[1] is None

    for begin in moments():
        play(story, begin)
