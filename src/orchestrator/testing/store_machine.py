"""Random histories, told to a store and to the simulator's model of one: they agree at each step.

A driver's tests say how its databases are opened and call `play`; what a history is made of stands
in `store_machine_ops`, what is compared in `store_machine_judge`.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import Any, Final, TypeAlias, TypeVar

import msgspec
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from orchestrator.core.ops import Committed, Op, Outcome, Refused
from orchestrator.core.records import RECORDS, Run
from orchestrator.ports import Store
from orchestrator.testing.fake_world import FakeWorld
from orchestrator.testing.simulator.disk import Disk
from orchestrator.testing.simulator.store import ModelStore
from orchestrator.testing.store_machine_judge import ALL, Judge, same
from orchestrator.testing.store_machine_ops import (
    RUNS,
    Change,
    Spec,
    Stand,
    accepts,
    changes,
    number_of,
    numbers,
)
from orchestrator.testing.store_machine_questions import Question, questions

T = TypeVar("T")
Open: TypeAlias = Callable[[], Awaitable[Store]]
"""Opens one more store on the database of a history; the machine closes it."""
Tally: TypeAlias = Counter[tuple[str, str]]
"""How often each rule was played, by what came of it."""

_REFUSED: Final = ("version", "epoch", "state", "missing", "exists")
EXPECTED: Final[dict[str, tuple[str, ...]]] = {
    "accept": ("committed", "exists"),
    "say": ("committed", "version", "epoch", "state", "missing"),
    "move": ("committed", "version", "epoch", "state", "missing"),
    "write": ("committed", "exists", "missing"),
    "batch": ("committed", *_REFUSED),
    "together": ("committed", *_REFUSED),
    "append": ("committed", "version", "epoch", "state", "missing"),
    "claim": ("some", "none", "of the dead"),
    "due": ("some", "none"),
    "find": ("some", "none"),
    "count": ("some", "none"),
    "read": ("some", "none"),
    "trim": ("runs", "deltas", "none"),
    "renew": ("some", "none"),
    "reopen": ("some",),
}
"""What must have come of each rule, or a round of histories has proved nothing."""

_whos = st.integers(0, 2)
_places = st.integers(0, 5) | st.integers(0, 600)
_owners = st.sampled_from(["o0", "o1", "o2"])


class Driver(msgspec.Struct, frozen=True):
    """What a driver's tests tell the machine.

    `database` makes an empty database for one history in a world and hands out what opens a store
    on it. `replicas` stores are open on it at a time. `forgets` says that opening one ends every
    lease, because nobody else can have the database.
    """

    database: Callable[[FakeWorld], AbstractAsyncContextManager[Open]]
    replicas: int = 1
    forgets: bool = False


class StoreMachine(RuleBasedStateMachine):
    """One history. Each rule is played to the model first, then to one of the stores."""

    def __init__(self, driver: Driver, tally: Tally) -> None:
        super().__init__()
        self._driver = driver
        self._tally = tally
        self._world = FakeWorld()
        self._disk = Disk()
        self._model = ModelStore(self._world, self._disk)
        self._judge = Judge(self._model)
        self._stack = AsyncExitStack()
        self._stores: list[Store] = []
        self._lives: Counter[int] = Counter()
        self._steps = 0
        self._opened = 0
        self._broken = False
        self._runner = asyncio.Runner()
        try:
            self._run(self._begin())
        except BaseException:
            self._runner.close()
            raise

    # ------------------------------------------------------------ the rules

    @initialize(first=st.lists(accepts, min_size=5, max_size=8, unique_by=lambda one: one.run))
    def begin(self, first: list[Spec]) -> None:
        """Accept some runs, so that there is something to speak of, and let somebody live."""
        self._run(self._commit("accept", 0, self._ops(first)))
        self._run(self._renew(0, "o0", 15_000))

    @rule(who=_whos, change=changes)
    def change(self, who: int, change: Change) -> None:
        """Commit one op, or several of one caller, or those of several callers at once."""
        self._run(self._change(who, change))

    @rule(
        who=_whos,
        change=changes,
        owner=_owners,
        ttl=st.sampled_from([None, 0, 5_000, 5_000, 15_000, 15_000]),
        limit=st.integers(1, 4),
        narrow=st.just([]) | st.lists(numbers, max_size=3),
        passed=st.sampled_from([0, 0, 1, 5_000, 15_000, 700_000]),
    )
    def claim(
        self,
        who: int,
        change: Change,
        owner: str,
        ttl: int | None,
        limit: int,
        narrow: list[int],
        passed: int,
    ) -> None:
        """Let time pass, and let somebody who perhaps lives claim what may run."""
        self._run(self._change(who, change))
        self._world.time += passed
        if ttl is not None:
            self._run(self._renew(who + 1, owner, ttl))
        self._run(self._claim(who, owner, limit, list(map(self._id, narrow))))

    @rule(
        who=_whos,
        change=changes,
        runs=st.sampled_from([None, None, 0, 5_000]),
        deltas=st.sampled_from([None, -1, 0, 5_000]),
        limit=st.integers(1, 3),
    )
    def trim(
        self, who: int, change: Change, runs: int | None, deltas: int | None, limit: int
    ) -> None:
        """Remove what ended more than some time ago; None keeps it."""
        self._run(self._change(who, change))
        before = [0 if ago is None else self._world.time - ago for ago in (runs, deltas)]
        self._run(self._trim(who + 1, before[0], before[1], limit))

    @rule(who=_whos, change=changes)
    @precondition(lambda self: self._steps > 8 * self._opened)
    def reopen(self, who: int, change: Change) -> None:
        """Close a store and open it again."""
        self._run(self._change(who, change))
        self._run(self._reopen(who))

    @rule(
        who=_whos,
        change=changes,
        asked=st.lists(questions, min_size=1, max_size=4),
        number=numbers,
        after=_places,
        limit=st.integers(1, 400),
    )
    def ask(
        self,
        who: int,
        change: Change,
        asked: list[Question],
        number: int,
        after: int,
        limit: int,
    ) -> None:
        """Find and count records, read a log from the midst of it, ask which timers are due."""
        self._run(self._change(who, change))
        for question in asked:
            self._run(self._find(who + 1, question))
            self._run(self._count(who, question))
        self._run(self._read(who + 1, self._id(number), after, limit))
        self._run(self._due(who, min(limit, 4)))

    def teardown(self) -> None:
        """Compare everything once more, and close."""
        with self._runner:
            try:
                for store in self._stores if not self._broken else ():
                    self._run(self._judge.everything(store))
            finally:
                self._runner.run(self._stack.aclose())

    # ------------------------------------------------------------ how

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        try:
            return self._runner.run(work)
        except BaseException:
            self._broken = True
            raise

    def _id(self, number: int) -> str:
        return Stand({}, self._lives, 0).run(number).run_id

    def _tell(self, name: str, found: int) -> None:
        self._tally[name, "some" if found else "none"] += 1

    def _store(self, who: int) -> Store:
        return self._stores[who % len(self._stores)]

    def _ops(self, specs: Sequence[Spec]) -> list[Op]:
        runs = self._there()
        ops = list[Op]()
        for spec in specs:
            self._world.time += 1  # so that no two runs end in the same moment
            ops.append(spec.op(Stand(runs, self._lives, self._world.time)))
        return ops

    def _there(self) -> dict[str, Run]:
        return {run.run_id: run for run in self._disk.tables.rows[Run].values()}

    async def _begin(self) -> None:
        database = self._driver.database(self._world)
        self._open = await self._stack.enter_async_context(database)
        for _ in range(self._driver.replicas):
            self._stores.append(await self._open())
        self._stack.push_async_callback(self._close)

    async def _close(self) -> None:
        for store in self._stores:
            await store.close()

    async def _both(self, who: int, work: Callable[[Store], Awaitable[T]]) -> tuple[T, T]:
        return await work(self._model), await work(self._store(who))

    async def _change(self, who: int, change: Change) -> None:
        match change.how:
            case "together":
                await self._together(who, change.calls)
            case "append":
                await self._append(who, change.calls[0])
            case how:
                await self._commit(how, who, self._ops(change.calls[0]))

    async def _renew(self, who: int, owner: str, ttl: int) -> None:
        self._tell("renew", ttl)
        await self._both(who, lambda store: store.renew(owner, ttl))

    async def _commit(self, name: str, who: int, ops: list[Op]) -> None:
        wanted, got = await self._both(who, lambda store: store.commit(*ops))
        await self._judged(name, who, ops, wanted, got)

    async def _together(self, who: int, calls: Sequence[Sequence[Spec]]) -> None:
        asked = [self._ops(specs) for specs in calls]
        wanted = [outcome for ops in asked for outcome in await self._model.commit(*ops)]
        async with asyncio.TaskGroup() as tasks:
            tries = [tasks.create_task(self._store(who).commit(*ops)) for ops in asked]
        got = [outcome for task in tries for outcome in task.result()]
        await self._judged("together", who, [op for ops in asked for op in ops], wanted, got)

    async def _append(self, who: int, specs: Sequence[Spec]) -> None:
        ops = self._ops(specs)
        wanted, got = await self._both(who, lambda store: _appended(store, ops))
        await self._judged("append", who, ops, wanted, got)

    async def _judged(
        self, name: str, who: int, ops: list[Op], wanted: list[Outcome], got: list[Outcome]
    ) -> None:
        for outcome in wanted:
            self._tally[name, outcome.why if isinstance(outcome, Refused) else "committed"] += 1
        self._judge.outcomes(ops, wanted, got)
        for run_id in sorted({op.run_id for op in ops if op.run_id is not None}):
            await self._judge.log(self._store(who + 1), run_id)
        await self._looked(who)

    async def _looked(self, who: int) -> None:
        """Compare all runs, and one other kind of record after another."""
        self._steps += 1
        for kind in (Run, RECORDS[self._steps % len(RECORDS)]):
            await self._judge.kind(self._store(who + 1), kind)

    async def _claim(self, who: int, owner: str, limit: int, narrow: list[str]) -> None:
        wanted, got = await self._both(who, lambda store: store.claim(owner, limit, narrow))
        self._tell("claim", len(wanted))
        self._tally["claim", "of the dead"] += sum(one.lost_by is not None for one in wanted)
        self._judge.claims(wanted, got)
        await self._looked(who)

    async def _trim(self, who: int, runs: int, deltas: int, limit: int) -> None:
        before = self._there()
        wanted, got = await self._both(who, lambda store: store.trim(runs, deltas, limit))
        self._lives.update(
            number_of(run_id) % RUNS for run_id in before.keys() - self._there().keys()
        )
        self._tally["trim", "runs"] += wanted.runs
        self._tally["trim", "deltas"] += wanted.deltas
        self._tally["trim", "none"] += not wanted.runs + wanted.deltas
        same("trimmed", wanted, got)
        for store in self._stores if wanted.runs + wanted.deltas else ():
            await self._judge.everything(store)

    async def _reopen(self, who: int) -> None:
        self._tell("reopen", 1)
        at = who % len(self._stores)
        await self._stores[at].close()
        if self._driver.forgets:
            self._disk.reopened()
        self._stores[at] = await self._open()
        self._opened += 1
        await self._judge.everything(self._stores[at])

    async def _find(self, who: int, question: Question) -> None:
        kind, where = question.kind, self._judge.where(question.where, model=True)
        wanted = await self._model.find(kind, *where, order=question.order, limit=ALL)
        where = self._judge.where(question.where, model=False)
        got = await self._store(who).find(kind, *where, order=question.order, limit=question.limit)
        self._tell("find", len(wanted))
        self._judge.found(question, wanted, got)

    async def _count(self, who: int, question: Question) -> None:
        where = self._judge.where(question.where, model=True)
        wanted = await self._model.count(question.kind, *where)
        where = self._judge.where(question.where, model=False)
        self._tell("count", wanted)
        same(f"count {question}", wanted, await self._store(who).count(question.kind, *where))

    async def _read(self, who: int, run_id: str, after: int, limit: int) -> None:
        wanted, got = await self._both(who, lambda store: store.read(run_id, after, limit))
        self._tell("read", len(wanted))
        same(f"{run_id} after {after}, whether", bool(wanted), bool(got))
        same(f"{run_id} after {after}", wanted.texts[: len(got)], got.texts)

    async def _due(self, who: int, limit: int) -> None:
        everything, got = await self._model.due(ALL), await self._store(who).due(limit)
        self._tell("due", len(everything))
        question = Question(type(everything[0]), (), "due_at", limit) if everything else None
        if question is None:
            same("due", [], got)
        else:
            self._judge.found(question, list(everything), list(got))


async def _appended(store: Store, ops: Sequence[Op]) -> list[Outcome]:
    """Return what became of ops that were appended one behind the other."""
    told: list[asyncio.Future[Any]] = [asyncio.get_running_loop().create_future() for _ in ops]
    for op, future in zip(ops, told, strict=True):
        store.append(op, future.set_result)
    outcomes = [await future for future in told]
    for outcome in outcomes:
        if not isinstance(outcome, Committed | Refused):
            raise outcome
    return outcomes


def play(driver: Driver, examples: int, steps: int, *, shorten: bool = True) -> Tally:
    """Play histories of up to `steps` steps; return what they were made of.

    Raises AssertionError where the store and the model do not agree, with the shortest history that
    was found; with `shorten` off, with the first.
    """
    tally: Tally = Counter()
    run_state_machine_as_test(
        lambda: StoreMachine(driver, tally),  # type: ignore[arg-type]  # whatever makes a machine
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            phases=[Phase.generate, *([Phase.shrink] if shorten else [])],
            suppress_health_check=list(HealthCheck),
        ),
    )
    return tally


def unseen(tally: Tally) -> list[str]:
    """Return which rules never came to one of their expected ends."""
    return [f"{name}: {end}" for name, ends in EXPECTED.items() for end in ends
            if not tally[name, end]]  # fmt: skip
