"""The one way into the log: load, decide, commit, publish; again when somebody was faster."""

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final, TypeAlias, cast

from msgspec.structs import replace

from orchestrator.core import events as ev
from orchestrator.core import ids
from orchestrator.core.batch import Deltas
from orchestrator.core.decide import Cancel, Command
from orchestrator.core.errors import (
    Conflict,
    OrchestratorError,
    RunNotFound,
    StaleWrite,
    Unavailable,
)
from orchestrator.core.ops import Committed, Guard, Op, Outcome, Refused, Write
from orchestrator.core.project import RUN_MAX, project
from orchestrator.core.records import HEAD, Run, Timer
from orchestrator.core.states import ENDED, OPEN, RunState
from orchestrator.engine.patience import patiently, waits
from orchestrator.ports import Bus, Hint, Store, World

_APPENDABLE = OPEN - {RunState.CREATED}
ENDS: Final = "ends"
"""The subject of every end of a run: who drives it lets go of it at once."""
Said: TypeAlias = str | ev.Payload
"""What an agent says: a text is a piece of its answer."""
_WORDS = {str}


class Ledger:
    """Commits decisions and tells the bus; every change of a run passes through here."""

    def __init__(self, store: Store, bus: Bus, world: World) -> None:
        self.store = store
        self.world = world
        self.open_runs = 0
        self.counts: Counter[str] = Counter()
        self._bus = bus
        self._ended: list[Callable[[Run], None]] = []

    def on_ended(self, listener: Callable[[Run], None]) -> None:
        """Have `listener` called in this process for each run whose end was committed here."""
        self._ended.append(listener)

    def mint(self, prefix: str, shard: str) -> str:
        """Return a new id."""
        return ids.mint(prefix, self.world.now(), self.world.noise(ids.NOISE_BYTES), shard)

    def event_ids(self, run: Run) -> Callable[[], str]:
        """Return the source of event ids for a run."""
        shard = run.run_id[-2:]
        return lambda: self.mint("evt", shard)

    async def load(self, run_id: str, *, deciding: bool = False) -> Run:
        """Return a run as last committed; raises RunNotFound."""
        run = await self.store.get(Run, run_id, deciding=deciding)
        if run is None:
            raise RunNotFound(f"run {run_id} not found")
        return run

    async def count_open(self) -> None:
        """Count the open runs anew: other servers of the database accept and end them, too.

        Each open run has one timer for its longest life, and those are fewer rows than the runs.
        """
        before = self.open_runs
        counted = await self.store.count(Timer, ("kind", "=", RUN_MAX))
        self.open_runs += counted - before  # what was accepted or ended here meanwhile stays

    async def create(self, run: Run, op: Op) -> Outcome:
        """Commit the acceptance of `run`; a refusal (a taken key) is returned, not raised."""
        outcome = (await self.store.commit(op))[0]
        if isinstance(outcome, Committed):
            self.open_runs += 1
            self.publish(run, outcome)
        return outcome

    async def execute(
        self, run: Run, command: Command, epoch: int | None = None, *also: Write
    ) -> Run:
        """Carry out `command`, with what is written `also`, and return the run after it.

        `run` may be out of date: a stale version is loaded again and decided again. With `epoch`
        the write is an owner's and raises StaleWrite once somebody else owns the run. Raises
        RunEnded or Conflict when the state does not allow the command.
        """
        while True:
            op, after = project(run, command, self.world.now(), self.event_ids(run), epoch)
            if op is None:
                return run
            if also:
                op = replace(op, writes=(*op.writes, *also))
            outcome = (await self.store.commit(op))[0]
            if isinstance(outcome, Committed):
                return await self._carried(after, outcome)
            run = await self._reload(run, outcome)

    async def insist(self, run: Run, command: Command, epoch: int | None = None) -> Run:
        """Do as `execute`, but wait while the store cannot commit."""
        return await patiently(self.world, self.execute, run, command, epoch)

    def words(self, run: Run) -> "Words":
        """Return what appends the words of the agent of a run that is ours."""
        return Words(self, run)

    def drafts(self, run: Run, said: "Sequence[Said]") -> Sequence[ev.Draft]:
        """Return drafts of what an agent said; all words, which is the usual case, go together."""
        ts = self.world.now()
        if set(map(type, said)) == _WORDS:
            noise = self.world.noise(ids.NOISE_BYTES * len(said))
            return Deltas(ts, cast("list[str]", said), noise, run.run_id[-2:])
        mint = self.event_ids(run)
        return [
            ev.draft(mint(), ts, ev.AgentStreamDelta(text=one) if isinstance(one, str) else one)
            for one in said
        ]

    async def _carried(self, after: Run, outcome: Committed) -> Run:
        seq = outcome.head if after.attempt_seq == HEAD else after.attempt_seq
        after = replace(after, head=outcome.head, version=outcome.version, attempt_seq=seq)
        self.publish(after, outcome)
        if after.status in ENDED:
            self._bus.publish(ENDS, Hint(after.run_id, outcome.head, outcome.events))
            self.open_runs -= 1
            for listener in self._ended:
                listener(after)
            await self.end_children(after)
        return after

    async def _reload(self, run: Run, outcome: Outcome) -> Run:
        if isinstance(outcome, Refused) and outcome.why in {"version", "state"}:
            return await self.load(run.run_id, deciding=True)
        why = outcome.why if isinstance(outcome, Refused) else "unknown"
        raise StaleWrite(f"run {run.run_id}: somebody else decided first ({why})")

    async def end_children(self, parent: Run) -> int:
        """Cancel the open children of a run that has ended; returns how many."""
        children = await self.store.find(
            Run,
            ("parent_run_id", "=", parent.run_id),
            ("status", "in", sorted(OPEN)),
            limit=1000,
            deciding=True,
        )
        await self.end_all(children, f"parent run {parent.status.lower()}")
        return len(children)

    async def end_all(self, runs: Sequence[Run], reason: str) -> None:
        """Cancel runs, all at once, which is one commit as a rule."""
        try:
            async with asyncio.TaskGroup() as tasks:
                for run in runs:
                    tasks.create_task(self._end(run, reason), name=run.run_id)
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from failed

    async def _end(self, run: Run, reason: str) -> None:
        with suppress(Conflict):  # it has come to its own end meanwhile
            await self.execute(run, Cancel(reason=reason))

    def publish(self, run: Run, outcome: Committed) -> None:
        hint = Hint(run.run_id, outcome.head, outcome.events)
        self.counts.update(outcome.events.types)
        self._bus.publish(f"run:{run.run_id}", hint)
        self._bus.publish(f"session:{run.tenant}/{run.session_id}", hint)
        self._bus.publish("runs", hint)


class Words:
    """Appends what an agent says; one append is on its way while the next piece is read.

    The append is the back-pressure: who says more before the last is committed waits for it.
    """

    __slots__ = ("_guard", "_ledger", "_op", "_problem", "_run", "_waiter", "bytes")

    def __init__(self, ledger: Ledger, run: Run) -> None:
        self._ledger = ledger
        self._run = run
        self._guard = Guard(epoch=run.epoch, states=_APPENDABLE)
        self._op: Op | None = None
        self._problem: OrchestratorError | None = None
        self._waiter: asyncio.Future[None] | None = None
        self.bytes = 0

    async def say(self, said: Sequence[Said]) -> None:
        """Append events of the delta class; raises what became of those before, as `settled`."""
        if self._op is not None or self._problem is not None:
            await self.settled()
        self._append(
            Op(
                run_id=self._run.run_id,
                guard=self._guard,
                events=self._ledger.drafts(self._run, said),
            )
        )

    async def settled(self) -> None:
        """Return when everything said is committed; waits while the store cannot commit.

        Raises StaleWrite when the run has ended or changed hands.
        """
        patience = waits()
        while self._op is not None:
            if self._problem is None:
                await self._wait()
            elif isinstance(self._problem, Unavailable):
                await self._ledger.world.sleep(next(patience))
                self._problem = None
                self._append(self._op)
            else:
                raise self._problem

    def _append(self, op: Op) -> None:
        self._op = op
        self._ledger.store.append(op, self._done)

    def _done(self, outcome: Outcome | OrchestratorError) -> None:
        if isinstance(outcome, Committed):
            self._op = None
            self.bytes += outcome.events.size
            self._ledger.publish(self._run, outcome)
        elif isinstance(outcome, Refused):
            why = f"run {self._run.run_id} is not ours any more ({outcome.why})"
            self._problem = StaleWrite(why)
        else:
            self._problem = outcome
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def _wait(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None
