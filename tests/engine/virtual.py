"""An engine in virtual time over a store that can be away: a minute of waiting costs nothing."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, Concatenate, ParamSpec, TypeVar

from orchestrator.buses.local import LocalBus
from orchestrator.core.errors import OrchestratorError
from orchestrator.engine import Engine, EngineSettings, Outside
from orchestrator.testing.engine_rig import Rig, Script, ScriptedAgent
from orchestrator.testing.open_egress import OpenEgress
from orchestrator.testing.plain_box import PlainBox
from orchestrator.testing.simulator.chance import Chance
from orchestrator.testing.simulator.disk import Disk
from orchestrator.testing.simulator.loop import VirtualLoop
from orchestrator.testing.simulator.stage import SimWorld
from orchestrator.testing.simulator.store import ModelStore

P = ParamSpec("P")
T = TypeVar("T")
Passage = Callable[[str], Awaitable[None]]


async def free(_: str) -> None:
    """Let every call of the store pass."""


class DistantStore:
    """A store at the end of a way: `passage` takes its time, raises, or never ends.

    With `after` set it lies behind the call, not before: the store did what was asked.
    """

    in_order = True

    def __init__(self, store: ModelStore) -> None:
        self._store = store
        self.passage: Passage = free
        self.after = False
        self.now = store.now
        self.stats = store.stats
        self.ways = asyncio.TaskGroup()

    def __getattr__(self, verb: str) -> Callable[..., Awaitable[Any]]:
        """Return a verb of the store with the way to it."""

        async def asked(*args: Any, **kwargs: Any) -> Any:
            if not self.after:
                await self.passage(verb)
            result = await getattr(self._store, verb)(*args, **kwargs)
            if self.after:
                await self.passage(verb)
            return result

        return asked

    def append(self, op: Any, done: Callable[[Any], None]) -> None:
        """Go the same way without anybody waiting."""

        async def go() -> None:
            try:
                await self.passage("append")
            except OrchestratorError as error:
                done(error)
            else:
                self._store.append(op, done)

        self.ways.create_task(go())


class Virtual:
    """One machine in virtual time: its clock, its disk, the way to the store."""

    def __init__(self, loop: VirtualLoop) -> None:
        self.loop = loop
        self.world = SimWorld(loop, Chance("noise"))
        self.disk = Disk()
        self.store = DistantStore(ModelStore(self.world, self.disk))

    @asynccontextmanager
    async def running(
        self, script: Script, *, push: Any = None, **settings: Any
    ) -> AsyncIterator[Rig]:
        """Run an engine until the block ends."""
        agent = ScriptedAgent(script)
        outside = Outside(
            store=self.store,  # type: ignore[arg-type]
            bus=LocalBus(),
            world=self.world,
            agents={"native": agent},
            egress=OpenEgress(),
            box=PlainBox(),
            signer=PlainBox(),
            push=push,
        )
        engine = Engine(outside, EngineSettings(**({"drain_timeout_ms": 50} | settings)))
        async with self.store.ways, engine.running():
            yield Rig(engine, ModelStore(self.world, self.disk), agent)


def play(
    story: Callable[Concatenate[Virtual, P], Coroutine[Any, Any, T]],
    *args: P.args,
    **kwargs: P.kwargs,
) -> T:
    """Play a story to its end and return what it returns."""
    loop = VirtualLoop()  # type: ignore[abstract]
    result: T = loop.run_until_complete(story(Virtual(loop), *args, **kwargs))
    assert loop.troubles == []
    return result
