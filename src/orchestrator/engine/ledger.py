"""The one way into the log: load, decide, commit, publish; again when somebody was faster."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

from msgspec.structs import replace

from orchestrator.core import events as ev
from orchestrator.core import ids
from orchestrator.core.batch import Deltas
from orchestrator.core.decide import Cancel, Command
from orchestrator.core.errors import Conflict, RunNotFound, StaleWrite, Unavailable
from orchestrator.core.ops import Committed, Guard, Op, Outcome, Refused
from orchestrator.core.project import project
from orchestrator.core.records import HEAD, Run
from orchestrator.core.states import ENDED, OPEN, RunState
from orchestrator.ports import Bus, Hint, Store, World

_APPENDABLE = OPEN - {RunState.CREATED}
Said: TypeAlias = str | ev.Payload
"""What an agent says: a text is a piece of its answer."""
_PATIENCE_S = (0.05, 0.2, 0.5, 1.0, 2.0)
"""Waits between tries while the store cannot commit; the last one repeats."""


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

    async def create(self, run: Run, op: Op) -> Outcome:
        """Commit the acceptance of `run`; a refusal (a taken key) is returned, not raised."""
        outcome = (await self.store.commit(op))[0]
        if isinstance(outcome, Committed):
            self.open_runs += 1
            self._publish(run, outcome)
        return outcome

    async def execute(self, run: Run, command: Command, epoch: int | None = None) -> Run:
        """Carry out `command` and return the run after it.

        `run` may be out of date: a stale version is loaded again and decided again. With `epoch`
        the write is an owner's and raises StaleWrite once somebody else owns the run. Raises
        RunEnded or Conflict when the state does not allow the command.
        """
        while True:
            op, after = project(run, command, self.world.now(), self.event_ids(run), epoch)
            if op is None:
                return run
            outcome = (await self.store.commit(op))[0]
            if isinstance(outcome, Committed):
                return await self._carried(after, outcome)
            run = await self._reload(run, outcome)

    async def insist(self, run: Run, command: Command, epoch: int | None = None) -> Run:
        """Do as `execute`, but wait while the store cannot commit."""
        for wait in _patience():
            try:
                return await self.execute(run, command, epoch)
            except Unavailable:
                await self.world.sleep(wait)
        raise AssertionError  # _patience never ends

    async def append(self, run: Run, said: "Sequence[Said]", epoch: int) -> Committed:
        """Append events of the delta class as the owner; waits while the store cannot commit.

        Raises StaleWrite when the run has ended or changed hands.
        """
        guard = Guard(epoch=epoch, states=_APPENDABLE)
        op = Op(run_id=run.run_id, guard=guard, events=self._drafts(run, said))
        for wait in _patience():
            try:
                outcome = (await self.store.commit(op))[0]
            except Unavailable:
                await self.world.sleep(wait)
                continue
            if isinstance(outcome, Refused):
                raise StaleWrite(f"run {run.run_id} is not ours any more ({outcome.why})")
            self._publish(run, outcome)
            return outcome
        raise AssertionError  # _patience never ends

    def _drafts(self, run: Run, said: "Sequence[Said]") -> Sequence[ev.Draft]:
        """Return drafts of what an agent said; all words, which is the usual case, go together."""
        ts = self.world.now()
        texts = [text for text in said if isinstance(text, str)]
        if len(texts) == len(said):
            noise = self.world.noise(ids.NOISE_BYTES * len(texts))
            return Deltas(ts, texts, noise, run.run_id[-2:])
        mint = self.event_ids(run)
        return [
            ev.draft(mint(), ts, ev.AgentStreamDelta(text=one) if isinstance(one, str) else one)
            for one in said
        ]

    async def _carried(self, after: Run, outcome: Committed) -> Run:
        seq = outcome.head if after.attempt_seq == HEAD else after.attempt_seq
        after = replace(after, head=outcome.head, version=outcome.version, attempt_seq=seq)
        self._publish(after, outcome)
        if after.status in ENDED:
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
        for child in children:
            try:
                await self.execute(child, Cancel(reason=f"parent run {parent.status.lower()}"))
            except Conflict:
                continue  # it ended by itself meanwhile
        return len(children)

    def _publish(self, run: Run, outcome: Committed) -> None:
        hint = Hint(run.run_id, outcome.head, outcome.events)
        self.counts.update(outcome.events.types)
        self._bus.publish(f"run:{run.run_id}", hint)
        self._bus.publish(f"session:{run.tenant}/{run.session_id}", hint)
        self._bus.publish("runs", hint)


def _patience() -> Iterable[float]:
    yield from _PATIENCE_S[:-1]
    while True:
        yield _PATIENCE_S[-1]
