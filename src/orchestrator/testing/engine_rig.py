"""A real engine on any store and bus, with an agent whose every frame the test decides."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from typing import Any, Final, TypeAlias, cast

import msgspec

from orchestrator.core.errors import StoreFailure, Unavailable
from orchestrator.core.frames import Delta, Done, Frame
from orchestrator.core.records import Run
from orchestrator.core.states import ENDED
from orchestrator.engine import Engine, EngineSettings, Invoke, Outside, Registration
from orchestrator.ports import AgentCall, Bus, PushAnswer, PushClient, Store
from orchestrator.testing.open_egress import OpenEgress
from orchestrator.testing.plain_box import PlainBox
from orchestrator.world import RealWorld

LEFT_MS: Final = 300
"""How long the lease of a server lasts that has just died, as if it was renewed long ago."""
_POLL_S: Final = 0.005

Frames: TypeAlias = AsyncIterator[Sequence[Frame]]
Script: TypeAlias = Callable[[AgentCall], Frames]
Place: TypeAlias = Callable[[], AbstractAsyncContextManager[tuple[Store, Bus]]]
"""Opens one database and a bus: again after a restart, twice at once for two servers."""


async def say(call: AgentCall) -> Frames:
    """Answer with the question, in two pieces."""
    yield [Delta("you said: ")]
    yield [Delta(str(call.content)), Done(usage={"tokens": 2})]


async def hang(_: AgentCall) -> Frames:
    """Say a word, and stay."""
    yield [Delta("one")]
    await asyncio.Event().wait()


async def until(condition: Callable[[], object], timeout_s: float = 10) -> None:
    """Return once `condition` holds."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110  # what is waited for has no event
            await asyncio.sleep(0.002)  # the same


@contextmanager
def refused(kind: type[Exception], text: str = "") -> Iterator[None]:
    """Demand that the block raises an error of this kind that says `text`."""
    try:
        yield
    except kind as error:
        if text not in str(error):
            raise AssertionError(f"{error!r} does not say: {text}") from error
    else:
        raise AssertionError(f"{kind.__name__} was not raised")


class ScriptedAgent:
    """An agent client that plays a script and notes every call and every hang-up."""

    def __init__(self, script: Script = say) -> None:
        self.script = script
        self.calls: list[AgentCall] = []
        self.closed: list[str] = []
        self.open_now = 0
        self.most_open = 0

    @asynccontextmanager
    async def open(self, call: AgentCall) -> AsyncIterator[Frames]:
        """Play the script for one call."""
        self.calls.append(call)
        self.open_now += 1
        self.most_open = max(self.most_open, self.open_now)
        try:
            yield self.script(call)
        finally:
            self.open_now -= 1
            self.closed.append(call.run_id)


class ScriptedIngress:
    """An ingress that can be away, hang, or take batches, and notes what it was given."""

    def __init__(self, *, batch: bool = False) -> None:
        self.batch = batch
        self.away = False
        self.hangs = False
        self.refused = 0
        self.requests = 0
        self.events: dict[str, list[dict[str, Any]]] = {}

    async def push(self, tenant: str, session_id: str, events: Sequence[bytes]) -> PushAnswer:
        """Take events, or not."""
        del tenant, session_id
        self.requests += 1
        if self.hangs:
            await asyncio.Event().wait()
        if self.away:
            self.refused += 1
            raise Unavailable("connection refused")
        if not self.batch and len(events) != 1:
            raise AssertionError(f"{len(events)} events at once, where lists are not welcome")
        for body in events:
            event = msgspec.json.decode(body)
            self.events.setdefault(event["run_id"], []).append(event)
        return PushAnswer(batch=self.batch)

    def complete(self, run_ids: list[str]) -> bool:
        """Return whether the end of each run has arrived."""
        ends = {"done", "error"}
        return all(self.events.get(r, [{}])[-1].get("type") in ends for r in run_ids)


class MortalStore:
    """What one server sees of its store, until it dies."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._owner = ""
        self._deaf = False
        self.dead = False

    def __getattr__(self, name: str) -> Any:
        """Return what the store has under a name; nothing of a dead server arrives any more."""
        if self.dead:
            raise StoreFailure("this server is dead")
        return getattr(self._store, name)

    async def renew(self, owner: str, ttl_ms: int) -> None:
        """Renew a lease, or let the server believe so."""
        if self.dead:
            raise StoreFailure("this server is dead")
        self._owner = owner
        if not self._deaf:
            await self._store.renew(owner, ttl_ms)

    async def die(self, left_ms: int) -> None:
        """Let nothing arrive any more; the lease is not given up and has `left_ms` to go."""
        self.dead = True
        await self._store.renew(self._owner, left_ms)

    async def lapse(self) -> None:
        """End the lease at once, and let the server believe in it."""
        self._deaf = True
        await self._store.renew(self._owner, 1)


class Rig:
    """An engine, its store and its scripted agent."""

    def __init__(
        self, engine: Engine, store: Any, agent: ScriptedAgent, mortal: MortalStore | None = None
    ) -> None:
        self.engine = engine
        self.store = store
        self.agent = agent
        self._mortal = mortal if mortal is not None else MortalStore(store)

    async def register(self, agent_id: str = "demo", **fields: Any) -> None:
        """Register the scripted agent under a name."""
        wanted = Registration(agent_id=agent_id, name=agent_id, endpoint="http://agent", **fields)
        await self.engine.agents.register(wanted)

    async def invoke(self, text: str = "hello", **fields: Any) -> Run:
        """Accept a run."""
        wanted = {"agent_id": "demo", "session_id": "s1", "content": text} | fields
        return (await self.engine.runs.invoke(Invoke(**wanted))).run

    async def child(self, parent: Run, text: str = "child", **fields: Any) -> Run:
        """Accept a run that another has called: on each level it is of an agent of its own."""
        agent_id = f"level-{parent.depth + 1}"
        await self.register(agent_id)
        wanted = {"agent_id": agent_id, "parent_run_id": parent.run_id} | fields
        return await self.invoke(text, **wanted)

    async def stored(self, run: Run) -> Run:
        """Return a run as it is on the disk now."""
        found: Run | None = await self.store.get(Run, run.run_id)
        if found is None:
            raise AssertionError(f"run {run.run_id} is gone")
        return found

    async def once(self, run: Run, wanted: Callable[[Run], bool], timeout_s: float = 10) -> Run:
        """Return the run once it is as `wanted`; the store is asked, whatever the bus brings."""
        try:
            async with asyncio.timeout(timeout_s):
                while not wanted(found := await self.stored(run)):  # noqa: ASYNC110  # as in `until`
                    await asyncio.sleep(_POLL_S)
        except TimeoutError:
            raise AssertionError(f"it stays as it is: {await self.stored(run)}") from None
        return found

    async def ended(self, run: Run, timeout_s: float = 10) -> Run:
        """Return the run once it has ended."""
        return await self.once(run, lambda found: found.status in ENDED, timeout_s)

    async def log(self, run: Run) -> list[dict[str, Any]]:
        """Return a run's events, decoded."""
        events = await self.store.read(run.run_id, 0, 100_000)
        return [msgspec.json.decode(event.data) for event in events]

    async def types(self, run: Run) -> list[str]:
        """Return the types of a run's events."""
        return [event["type"] for event in await self.log(run)]

    async def die(self, left_ms: int = LEFT_MS) -> None:
        """Kill the server without a word, so that its lease runs on; its block must end next."""
        await self._mortal.die(left_ms)

    async def lapse(self) -> None:
        """End the server's lease behind its back: it goes on as if it owned its runs."""
        await self._mortal.lapse()


@asynccontextmanager
async def running(
    place: Place,
    script: Script = say,
    *,
    push: PushClient | None = None,
    known: bool = False,
    **settings: Any,
) -> AsyncIterator[Rig]:
    """Run one server at a place until the block ends; `settings` are those of the engine.

    The agent `demo` is registered unless it is `known`.
    """
    async with place() as (store, bus):
        mortal, agent = MortalStore(store), ScriptedAgent(script)
        outside = Outside(
            store=cast("Store", mortal),
            bus=bus,
            world=RealWorld(),
            agents={"native": agent},
            egress=OpenEgress(),
            box=PlainBox(),
            signer=PlainBox(),
            push=push,
        )
        engine = Engine(outside, EngineSettings(**({"drain_timeout_ms": 50} | settings)))
        try:
            async with engine.running():
                rig = Rig(engine, store, agent, mortal)
                if not known:
                    await rig.register()
                yield rig
        except* StoreFailure:
            if not mortal.dead:
                raise
