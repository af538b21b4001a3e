"""What a recorded workload was promised up to some step, and what of it a recovered store lacks."""

from collections import defaultdict
from collections.abc import Sequence

from orchestrator.core.records import Agent, IdempotencyKey, Message, Run
from orchestrator.ports import Store

from .agreement import ALL
from .recording import Note, Recorder, Step, Synced
from .workload import Fact, Kept, Known, Owned, Retiring, Said, Shown


class Promises:
    """Grows with `take`; `lacking` compares a store with what had been promised by then."""

    def __init__(self, recorder: Recorder, *, full: bool) -> None:
        self._full = full
        self._logs = {file for file, name in recorder.names.items() if name.endswith("-wal")}
        self._events: defaultdict[str, dict[int, bytes]] = defaultdict(dict)
        self._names: defaultdict[str, list[str]] = defaultdict(list)
        for step in recorder.steps:
            if isinstance(step, Note):
                self._foresee(step.fact)
        self._heads: dict[str, int] = {}
        self._versions: dict[str, int] = {}
        self._epochs: dict[str, int] = {}
        self._loose: list[tuple[int, Kept]] = []
        self._claimed: list[tuple[int, Owned]] = []
        self._said: list[Said] = []
        self._agents: dict[str, str] = {}
        self._retiring: set[str] = set()
        self.tails_lost = 0

    def _foresee(self, fact: Fact) -> None:
        """Learn the bytes of every event that was ever acknowledged, and every agent's names."""
        if isinstance(fact, Kept):
            first = fact.head - len(fact.events) + 1
            self._events[fact.run_id].update(enumerate(fact.events, first))
        elif isinstance(fact, Known):
            self._names[fact.agent_id].append(fact.name)

    def take(self, at: int, step: Step) -> None:
        """Go one step further; `at` is its number."""
        if isinstance(step, Note):
            self._promise(at, step.fact)
        elif isinstance(step, Synced) and step.file in self._logs:
            covered = [kept for noted, kept in self._loose if noted < step.upto]
            self._loose = [(noted, kept) for noted, kept in self._loose if noted >= step.upto]
            for kept in covered:
                self._owe(kept.run_id, kept.head)
            for noted, owned in self._claimed:
                if noted < step.upto:
                    self._epochs[owned.run_id] = max(owned.epoch, self._epochs.get(owned.run_id, 0))

    def _promise(self, at: int, fact: Fact) -> None:
        match fact:
            case Kept(run_id=run_id, head=head, state=state):
                if state or self._full:
                    self._owe(run_id, head)
                else:
                    self._loose.append((at, fact))
            case Shown(run_id=run_id, version=version, state_head=head):
                self._owe(run_id, head)
                self._versions[run_id] = max(version, self._versions.get(run_id, 0))
            case Owned():
                self._claimed.append((at, fact))  # what it leads to is committed after it
            case Said():
                self._said.append(fact)
            case Known(agent_id=agent_id, name=name):
                self._agents[agent_id] = name
            case Retiring(run_ids=run_ids):
                self._retiring |= run_ids

    def _owe(self, run_id: str, head: int) -> None:
        self._heads[run_id] = max(head, self._heads.get(run_id, 0))

    async def lacking(self, store: Store) -> list[str]:
        """Return, in words, every promise that the store does not keep."""
        found = []
        loose = {kept.run_id: kept.head for _, kept in self._loose}
        for run_id, head in self._heads.items():
            run = await store.get(Run, run_id)
            if run is None:
                if run_id not in self._retiring:
                    found.append(f"{run_id}: acknowledged, and gone")
                continue
            if run.head < loose.get(run_id, 0):
                self.tails_lost += 1
                if run.forks[-1:] != [run.head]:
                    found.append(f"{run_id}: a tail was lost, and no fork says so: {run.forks}")
            found += [f"{run_id}: {what}" for what in self._of_run(run, head)]
            found += await self._of_log(store, run)
        return found + await self._of_names(store)

    def _of_run(self, run: Run, head: int) -> list[str]:
        found = []
        if run.head < head:
            found.append(f"event {head} was promised, {run.head} are there")
        if run.version < self._versions.get(run.run_id, 0):
            found.append(f"a reader saw version {self._versions[run.run_id]}, not {run.version}")
        if run.epoch < self._epochs.get(run.run_id, 0):
            found.append(f"epoch {self._epochs[run.run_id]} was promised, not {run.epoch}")
        return found

    async def _of_log(self, store: Store, run: Run) -> list[str]:
        events = self._events[run.run_id]
        log = await store.read(run.run_id, 0, ALL)
        changed = [e.seq for e in log if events.get(e.seq, e.data) != e.data]
        return [f"{run.run_id}: events {changed[:5]} are not what was acknowledged"] * bool(changed)

    async def _of_names(self, store: Store) -> list[str]:
        messages = {message.message_id for message in await store.find(Message, limit=ALL)}
        keys = await store.find(IdempotencyKey, limit=ALL)
        led = {(key.scope, key.key): key.ref for key in keys}
        said = [one for one in self._said if one.run_id not in self._retiring]
        found = [f"message {one.message_id} is gone" for one in said
                 if one.message_id and one.message_id not in messages]  # fmt: skip
        found += [f"key {one.key} leads to {led.get(one.key)}" for one in said
                  if one.key and led.get(one.key) != one.run_id]  # fmt: skip
        for agent_id, name in self._agents.items():
            agent = await store.get(Agent, "default", agent_id)
            since = _from(self._names[agent_id], name)
            if agent is None or agent.name not in since:
                found.append(f"agent {agent_id} was registered as {name!r}")
        return found


def _from(names: Sequence[str], name: str) -> Sequence[str]:
    return names[names.index(name) :]
