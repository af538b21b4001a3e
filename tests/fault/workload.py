"""A seeded day of a store: runs accepted, begun, streamed, ended, raced for, seen and retired.

Whatever the store acknowledges or shows becomes a note, and a note is a promise.
"""

import asyncio
from collections.abc import Callable
from random import Random
from typing import NamedTuple, TypeAlias

from msgspec.structs import replace

from orchestrator.core import events as ev
from orchestrator.core import ids
from orchestrator.core.decide import Accept, Begin, Cancel, Command, Complete, Fail
from orchestrator.core.errors import OrchestratorError
from orchestrator.core.events import DELTAS
from orchestrator.core.ops import Committed, Guard, Insert, Op, Outcome, Put
from orchestrator.core.project import accept, project
from orchestrator.core.records import NEXT, Agent, IdempotencyKey, Invocation, Message, Run
from orchestrator.core.states import ENDED, RunState
from orchestrator.ports import Store
from orchestrator.testing.fake_world import FakeWorld

DAY_MS = 86_400_000
OWNER = "me"


class Kept(NamedTuple):
    """Events of a run were acknowledged, the last of them as number `head`."""

    run_id: str
    head: int
    events: tuple[bytes, ...]
    state: bool


class Shown(NamedTuple):
    """A reader saw a run's state at this version, and its log up to this state change."""

    run_id: str
    version: int
    state_head: int


class Owned(NamedTuple):
    """A claim was acknowledged."""

    run_id: str
    epoch: int


class Said(NamedTuple):
    """A message, or the key of a run, was acknowledged."""

    message_id: str | None
    key: tuple[str, str] | None
    run_id: str


class Known(NamedTuple):
    """An agent's name was acknowledged."""

    agent_id: str
    name: str


class Retiring(NamedTuple):
    """From here on retention may have removed these runs or thinned their logs."""

    run_ids: frozenset[str]


Fact: TypeAlias = Kept | Shown | Owned | Said | Known | Retiring


class Workload:
    """One seeded workload; `note` takes each promise the moment it is made."""

    def __init__(self, rnd: Random, note: Callable[[Fact], None]) -> None:
        self.world = FakeWorld(seed=rnd.randrange(1 << 30))
        self._rnd = rnd
        self._note = note
        self._runs: dict[str, Run] = {}

    async def play(self, store: Store, lives: int) -> None:
        """Live `lives` runs, several at a time, beside a reader and the upkeep."""
        self.world.time += self._rnd.randrange(1, 5000)
        await store.renew(OWNER, DAY_MS)
        async with asyncio.TaskGroup() as beside:
            reader = beside.create_task(self._read(store))
            async with asyncio.TaskGroup() as tasks:
                for n in range(lives):
                    tasks.create_task(self._live(store, f"s{self._rnd.randrange(lives)}", n))
            reader.cancel()
        if self._rnd.random() < 0.3:
            await self._retire(store)

    async def _live(self, store: Store, session: str, number: int) -> None:
        rnd = self._rnd
        for _ in range(rnd.randrange(8)):
            await asyncio.sleep(0)
        if rnd.random() < 0.2:
            await self._register(store, f"agent{number}")
        run = await self._accept(store, session)
        if rnd.random() < 0.15:
            await self._execute(store, run, Cancel(reason="changed my mind"))
            return
        for claimed in await store.claim(OWNER, 1, [run.run_id]):
            run = claimed.run
            self._note(Owned(run.run_id, run.epoch))
        begun = await self._execute(store, run, Begin(endpoint="http://agent"))
        for _ in range(rnd.randrange(10)):
            await self._append(store, begun)
        if rnd.random() < 0.2:
            await self._say(store, begun)
        await self._end(store, begun)

    async def _end(self, store: Store, run: Run) -> None:
        """Let up to three deciders race for the end of a run, beside its agent's last words."""
        answer = self._mint("msg")
        ends: list[Command] = [
            Complete(message_id=answer, final_message="all of it", usage={"tokens": 1}),
            Fail(code="agent_eof", message="gone"),
            Cancel(reason="enough"),
        ]
        async with asyncio.TaskGroup() as tasks:
            for command in self._rnd.sample(ends, self._rnd.choice((0, 1, 1, 1, 2, 3))):
                tasks.create_task(self._execute(store, run, command))
            if self._rnd.random() < 0.3:
                tasks.create_task(self._append(store, run))

    def _mint(self, prefix: str) -> str:
        return ids.mint(prefix, self.world.now(), self.world.noise(ids.NOISE_BYTES), "aa")

    async def _accept(self, store: Store, session: str) -> Run:
        run = Run(
            run_id=self._mint("run"), tenant="default", session_id=session, agent_id="demo",
            message_id=self._mint("msg"), created_at=self.world.now(),
            deadline_at=self.world.now() + DAY_MS,
        )  # fmt: skip
        command = Accept(message_id=run.message_id, role="user", content=f"to {session}")
        asked = Invocation(run_id=run.run_id, role="user", content=f"to {session}")
        key = IdempotencyKey(
            tenant="default", scope=f"invoke:{session}", key=run.run_id[-8:], digest=b"d",
            ref=run.run_id, run_id=run.run_id, created_at=run.created_at,
        )  # fmt: skip
        op = accept(run, command, lambda: self._mint("evt"), asked, key=key)
        [outcome] = await store.commit(op)
        assert isinstance(outcome, Committed), outcome
        self._kept(run.run_id, outcome, state=True)
        self._note(Said(run.message_id, (key.scope, key.key), run.run_id))
        run = replace(run, key=outcome.key, head=outcome.head, version=outcome.version)
        self._runs[run.run_id] = run
        return run

    async def _execute(self, store: Store, run: Run, command: Command) -> Run:
        """Carry out a command once; who is beaten to it lets it be."""
        op, after = project(run, command, self.world.now(), lambda: self._mint("evt"))
        assert op is not None
        [outcome] = await store.commit(op)
        if not isinstance(outcome, Committed):
            return run
        self._kept(run.run_id, outcome, state=True)
        after = replace(after, head=outcome.head, version=outcome.version)
        self._runs[run.run_id] = after
        return after

    async def _append(self, store: Store, run: Run) -> None:
        rnd, ts = self._rnd, self.world.now()
        drafts = tuple(
            ev.draft(self._mint("evt"), ts, ev.AgentStreamDelta(text="w" * rnd.randrange(1, 200)))
            for _ in range(rnd.choice((1, 1, 2, 5, 20)))
        )
        guard = Guard(epoch=run.epoch, states=frozenset(RunState) - ENDED - {RunState.CREATED})
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def settle(outcome: Outcome | OrchestratorError) -> None:
            if isinstance(outcome, Committed):
                self._kept(run.run_id, outcome, state=False)
            done.set_result(None)

        store.append(Op(run_id=run.run_id, guard=guard, events=drafts), settle)
        await done
        if rnd.random() < 0.3:
            await asyncio.sleep(0)

    async def _say(self, store: Store, run: Run) -> None:
        said = Message(
            message_id=self._mint("msg"), tenant="default", session_id=run.session_id,
            role="user", content="by the way", pos=NEXT, created_at=self.world.now(),
        )  # fmt: skip
        await store.commit(Op(writes=(Insert(said),)))
        self._note(Said(said.message_id, None, ""))

    async def _register(self, store: Store, agent_id: str) -> None:
        name = f"at step {self._rnd.randrange(1 << 30)}"
        now = self.world.now()
        agent = Agent(
            tenant="default", agent_id=agent_id, name=name, endpoint="http://agent",
            created_at=now, updated_at=now,
        )  # fmt: skip
        await store.commit(Op(writes=(Put(agent),)))
        self._note(Known(agent_id, name))

    async def _read(self, store: Store) -> None:
        """Look at runs as callers and readers do; what they see must never be taken back."""
        while True:
            await asyncio.sleep(0.0005)
            if not self._runs:
                continue
            run_id = self._rnd.choice(list(self._runs))
            run = await store.get(Run, run_id)
            log = await store.read(run_id, 0)
            states = [event.seq for event in log if event.type not in DELTAS]
            version = run.version if run is not None else 0
            self._note(Shown(run_id, version, states[-1] if states else 0))

    async def _retire(self, store: Store) -> None:
        ended = frozenset(run_id for run_id, run in self._runs.items() if run.status in ENDED)
        self._note(Retiring(ended))
        later = self.world.now() + 1
        runs_before, deltas_before = self._rnd.choice(((later, 0), (0, later)))
        await store.trim(runs_before, deltas_before, self._rnd.randrange(1, 5))
        for run_id in ended:
            del self._runs[run_id]

    def _kept(self, run_id: str, outcome: Committed, *, state: bool) -> None:
        events = tuple(event.data for event in outcome.events)
        self._note(Kept(run_id, outcome.head, events, state))
