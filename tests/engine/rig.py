"""A real engine over a real SQLite file, with an agent whose every frame the test decides."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec

from orchestrator.buses.local import LocalBus
from orchestrator.core.frames import Delta, Done, Frame
from orchestrator.core.records import Run
from orchestrator.core.states import ENDED
from orchestrator.engine import Engine, EngineSettings, Invoke, Outside, Registration
from orchestrator.ports import AgentCall, Bus
from orchestrator.stores.sqlite import open_store
from orchestrator.testing.open_egress import OpenEgress
from orchestrator.testing.plain_box import PlainBox
from orchestrator.world import RealWorld

Script = Callable[[AgentCall], AsyncIterator[Sequence[Frame]]]


async def say(call: AgentCall) -> AsyncIterator[Sequence[Frame]]:
    """Answer with the question, in two pieces."""
    yield [Delta("you said: ")]
    yield [Delta(str(call.content)), Done(usage={"tokens": 2})]


class ScriptedAgent:
    """An agent client that plays a script and notes every call and every hang-up."""

    def __init__(self, script: Script = say) -> None:
        self.script = script
        self.calls: list[AgentCall] = []
        self.closed: list[str] = []
        self.open_now = 0
        self.most_open = 0

    @asynccontextmanager
    async def open(self, call: AgentCall) -> AsyncIterator[AsyncIterator[Sequence[Frame]]]:
        """Play the script for one call."""
        self.calls.append(call)
        self.open_now += 1
        self.most_open = max(self.most_open, self.open_now)
        try:
            yield self.script(call)
        finally:
            self.open_now -= 1
            self.closed.append(call.run_id)


class Rig:
    """An engine, its store and its scripted agent."""

    def __init__(self, engine: Engine, store: Any, agent: ScriptedAgent) -> None:
        self.engine = engine
        self.store = store
        self.agent = agent

    async def register(self, agent_id: str = "demo", **fields: Any) -> None:
        """Register the scripted agent under a name."""
        wanted = Registration(agent_id=agent_id, name=agent_id, endpoint="http://agent", **fields)
        await self.engine.agents.register(wanted)

    async def invoke(self, text: str = "hello", **fields: Any) -> Run:
        """Accept a run."""
        wanted = {"agent_id": "demo", "session_id": "s1", "content": text} | fields
        return (await self.engine.runs.invoke(Invoke(**wanted))).run

    async def ended(self, run: Run, timeout_s: float = 10) -> Run:
        """Return the run once it has ended."""
        found = await self.engine.runs.wait(run.run_id, timeout_s)
        assert found.status in ENDED, found
        return found

    async def log(self, run: Run) -> list[dict[str, Any]]:
        """Return a run's events, decoded."""
        events = await self.store.read(run.run_id, 0, 100_000)
        return [msgspec.json.decode(event.data) for event in events]

    async def types(self, run: Run) -> list[str]:
        """Return the types of a run's events."""
        return [event["type"] for event in await self.log(run)]


@asynccontextmanager
async def running(
    path: Path,
    script: Script = say,
    *,
    push: Any = None,
    known: bool = False,
    bus: Bus | None = None,
    **settings: Any,
) -> AsyncIterator[Rig]:
    """Run an engine on the database at `path` until the block ends."""
    world = RealWorld()
    store = await open_store(f"file:{path}", world=world)
    agent = ScriptedAgent(script)
    outside = Outside(
        store=store,
        bus=bus or LocalBus(),
        world=world,
        agents={"native": agent},
        egress=OpenEgress(),
        box=PlainBox(),
        signer=PlainBox(),
        push=push,
    )
    engine = Engine(outside, EngineSettings(**({"drain_timeout_ms": 50} | settings)))
    try:
        async with engine.running():
            rig = Rig(engine, store, agent)
            if not known:
                await rig.register()
            yield rig
    finally:
        await store.close()


async def until(condition: Callable[[], object], timeout_s: float = 10) -> None:
    """Return once `condition` holds."""
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.002)
