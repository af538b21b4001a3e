"""What the histories of the store machine are made of: small specs that become ops and questions.

A spec prints short, so that a failing history can be read. The world that they speak of is small on
purpose (RUNS runs in three sessions), so that what is asked for often collides with what is there.
"""

from collections.abc import Mapping
from typing import Any, Final, TypeAlias

import msgspec
from hypothesis import strategies as st
from msgspec.structs import replace

from orchestrator.core.batch import Deltas
from orchestrator.core.events import AgentStreamDelta, Draft, draft
from orchestrator.core.ids import NOISE_BYTES
from orchestrator.core.ops import Delete, Guard, Insert, Op, Patch, Put, Write
from orchestrator.core.records import (
    HEAD,
    NEXT,
    WAITING,
    Agent,
    AuditEntry,
    Blob,
    Cursor,
    IdempotencyKey,
    Invocation,
    Message,
    Record,
    Run,
    Session,
    Timer,
)
from orchestrator.core.states import ENDED, OPEN, RunState
from orchestrator.testing import records as r

RUNS: Final = 8
_STRANGE: Final = 'a"\\\u0000\u2028\U0001f600},{"event_id":"'
_LATER: Final = [state for state in RunState if state is not RunState.CREATED]
_PAST: Final = -86_400_000


def run_of(number: int, **fields: Any) -> Run:
    """Return the run of a number; its session follows from the number unless it is said."""
    return r.run(number, f"s{number % 3}", **fields)


def number_of(run_id: str) -> int:
    """Return the number of a run."""
    return int(run_id[len("run_") : -len("aa")])


class Stand(msgspec.Struct, frozen=True):
    """How things stand when a spec becomes an op.

    `lives` says how often a number's run has been removed: an id is never used again.
    """

    runs: Mapping[str, Run]
    lives: Mapping[int, int]
    now: int

    def number(self, number: int) -> int:
        """Return the number that a number of a spec means now."""
        return number + RUNS * self.lives.get(number, 0)

    def run(self, number: int) -> Run:
        """Return the run that a number of a spec means now, as it was made."""
        return run_of(self.number(number))

    def near(self, guard: Guard, number: int) -> Guard:
        """Return a guard of distances from where a run stands as one of numbers."""
        run = self.runs.get(self.run(number).run_id)
        if run is None:
            return guard
        return Guard(
            version=None if guard.version is None else run.version + guard.version,
            epoch=None if guard.epoch is None else run.epoch + guard.epoch,
            states=guard.states,
        )


class Accept(msgspec.Struct, frozen=True):
    """A run is accepted with its message, its key and its deadline, in one op."""

    run: int
    parent: int | None = None
    key: int | None = None
    pos: int = WAITING
    words: int = 0
    due_in: int | None = None
    room: int | None = None
    parallel: bool = False

    def op(self, stand: Stand) -> Op:
        """Return the op."""
        number = stand.number(self.run)
        parent = None if self.parent is None else stand.run(self.parent).run_id
        labels = {"n": str(number)}
        made = run_of(number, parent_run_id=parent, labels=labels, parallel=self.parallel)
        writes: list[Write] = [
            Insert(r.message(number, made.session_id, self.pos, run_id=made.run_id))
        ]
        if self.key is not None:
            writes.append(Insert(r.key(f"k{self.key}", made)))
        if self.due_in is not None:
            writes.append(
                Insert(Timer(run_id=made.run_id, kind="a", due_at=stand.now + self.due_in))
            )
        op = r.accept(made, *writes)
        return replace(op, room=self.room, events=(*op.events, *r.deltas(self.words)))


class Say(msgspec.Struct, frozen=True):
    """Events are added to a run's log. The guard's numbers are distances from where it stands."""

    run: int
    count: int
    form: str
    guard: Guard = Guard()

    def op(self, stand: Stand) -> Op:
        """Return the op."""
        guard = stand.near(self.guard, self.run)
        return Op(run_id=stand.run(self.run).run_id, guard=guard, events=self._events())

    def _events(self) -> "tuple[Draft, ...] | Deltas":
        texts = [f"word {n}" for n in range(self.count)]
        match self.form:
            case "columns":
                noise = bytes(n % 251 for n in range(NOISE_BYTES * self.count))
                return Deltas(r.AT, texts, noise, "aa")
            case "strange":
                one = draft("evt_x", r.AT, AgentStreamDelta(text=_STRANGE))
                return (one,) * min(self.count, 3)
            case "state":
                return (r.started(), *r.deltas(self.count - 1))
            case _:
                return r.deltas(self.count)


class Move(msgspec.Struct, frozen=True):
    """A run that is open goes to another state, and something is written beside."""

    run: int
    to: RunState
    guard: Guard
    writes: tuple[Write, ...] = ()

    def op(self, stand: Stand) -> Op:
        """Return the op."""
        changes: dict[str, Any] = {"status": self.to}
        if self.to is RunState.RUNNING:
            changes |= {"attempt_seq": HEAD, "attempting": True, "started_at": stand.now}
        if self.to in ENDED:
            changes |= {"ended_at": stand.now, "attempting": False, "usage": {"tokens": self.run}}
        guard = stand.near(self.guard, self.run)
        op = r.append(stand.run(self.run), r.started(), guard=guard, **changes)
        return replace(op, writes=self.writes)


class Wrote(msgspec.Struct, frozen=True):
    """Records are written, by themselves or beside an event of a run."""

    writes: tuple[Write, ...]
    run: int | None = None

    def op(self, stand: Stand) -> Op:
        """Return the op."""
        if self.run is None:
            return Op(writes=self.writes)
        return Op(run_id=stand.run(self.run).run_id, events=r.deltas(1), writes=self.writes)


Spec: TypeAlias = Accept | Say | Move | Wrote


class Change(msgspec.Struct, frozen=True):
    """What one caller commits, or several do `together`; `how` names the rule in the tally."""

    how: str
    calls: list[list[Spec]]


# ---------------------------------------------------------------- what is drawn

_run_ids = st.integers(0, RUNS - 1).map(lambda n: run_of(n).run_id)
_distances = st.sampled_from([None, None, None, 0, 0, 0, 1, -1])
_sessions = st.sampled_from(["s0", "s1", "s2"])
_yes_or_no = st.booleans()
numbers = st.integers(0, RUNS - 1)
_COUNTS = st.one_of(st.integers(1, 3), st.sampled_from([64, 255, 256, 257, 300]))

accepts = st.builds(
    Accept,
    run=numbers,
    parent=st.none() | numbers,
    key=st.none() | st.integers(0, 2),
    pos=st.sampled_from([WAITING, WAITING, NEXT]),
    words=st.integers(0, 2),
    due_in=st.none() | st.sampled_from([_PAST, 10, 20_000, 2_000_000]),
    room=st.sampled_from([None, None, None, 0, 1, 2]),
    parallel=st.sampled_from([False, False, True]),
)
_guards = st.builds(
    Guard,
    version=_distances,
    epoch=_distances,
    states=st.sampled_from(
        [frozenset[RunState](), OPEN, frozenset({RunState.RUNNING}), frozenset({RunState.DONE})]
    ),
)
_open_guards = st.builds(
    Guard,
    version=_distances,
    epoch=_distances,
    states=st.sampled_from([OPEN, OPEN, frozenset({RunState.RUNNING}), OPEN - {RunState.RUNNING}]),
)
says = st.builds(
    Say,
    run=numbers,
    count=_COUNTS,
    form=st.sampled_from(["plain", "columns", "strange", "state"]),
    guard=_guards,
)
words = says.filter(lambda say: say.form != "state")
"""Specs of the delta class."""


def _agents(number: int, status: str, version: str | None, names: list[str]) -> Agent:
    return r.agent(f"a{number}", status=status, version=version, capabilities=names)


agents = st.builds(
    _agents,
    st.integers(0, 2),
    st.sampled_from(["healthy", "sick"]),
    st.sampled_from([None, "1", "2"]),
    st.lists(st.sampled_from(["x", "y", "ü"]), max_size=2),
)
_timers = st.builds(
    Timer,
    run_id=_run_ids,
    kind=st.sampled_from(["a", "b"]),
    due_at=st.integers(0, 3).map(lambda n: r.AT + n * 600_000),
)
_cursors = st.builds(
    Cursor,
    follower=st.sampled_from(["f", "g"]),
    run_id=_run_ids,
    seq=st.integers(0, 9),
    updated_at=st.just(r.AT),
)
_messages = st.builds(
    lambda number, session, content: r.message(number, session, content=content),
    st.integers(RUNS - 2, RUNS + 3),
    _sessions,
    st.sampled_from(["hi", [{"type": "text", "text": "ö"}]]),
)
_blobs = st.builds(
    Blob,
    name=st.sampled_from(["b0", "b1"]),
    data=st.binary(max_size=3),
    created_at=st.integers(1, 3),
)
_keys = st.builds(
    lambda name, number: r.key(f"k{name}", run_of(number)), st.integers(0, 2), numbers
)
_invocations = st.builds(
    Invocation,
    run_id=_run_ids,
    role=st.just("user"),
    content=st.just("hi"),
    context=st.sampled_from([None, {"a": [1, None]}]),
)
_entries = st.builds(
    AuditEntry,
    tenant=st.sampled_from(["default", "other"]),
    seq=st.just(NEXT),
    at=st.just(r.AT),
    actor=st.just("somebody"),
    action=st.sampled_from(["made", "ended"]),
    target=st.just("x"),
)
_rows: st.SearchStrategy[Record] = st.one_of(
    agents, _timers, _cursors, _messages, _blobs, _keys, _invocations
)
_puts = st.one_of(
    st.builds(Put, _rows),
    st.builds(Put, agents, st.sampled_from([(), ("status",), ("version", "capabilities")])),
)
_inserts = st.builds(Insert, _rows | _entries, _yes_or_no)
_patches = st.one_of(
    st.builds(
        Patch, st.just(Agent), st.sampled_from([("default", "a0"), ("default", "a1")]),
        st.sampled_from([{"status": "sick"}, {"version": None, "draining": True}]),
        st.sampled_from([{}, {"status": "healthy"}, {"version": None}, {"version": "1"}]),
        _yes_or_no,
    ),
    st.builds(
        Patch, st.just(Timer), st.tuples(_run_ids, st.just("a")), st.just({"due_at": r.AT + 7}),
        st.sampled_from([{}, {"due_at": r.AT}]), _yes_or_no,
    ),
    st.builds(
        Patch, st.just(Message), st.integers(0, RUNS + 3).map(lambda n: (f"msg_{n}",)),
        st.sampled_from([{"pos": NEXT}, {"pos": NEXT, "role": "tool"}]), st.just({}), _yes_or_no,
    ),
    st.builds(
        Patch, st.just(Message), st.integers(0, RUNS + 3).map(lambda n: (f"msg_{n}",)),
        st.just({"metadata": {"a": 1}}), st.sampled_from([{}, {"metadata": None}]), _yes_or_no,
    ),
)  # fmt: skip
_deletes = st.one_of(
    st.builds(Delete, st.just(Timer), st.tuples(_run_ids, st.just("a")), _yes_or_no),
    st.builds(Delete, st.just(Timer), st.tuples(_run_ids), _yes_or_no),
    st.builds(Delete, st.just(Cursor), st.sampled_from([("f",), ("g",)]), _yes_or_no),
    st.builds(Delete, st.just(Agent), st.just(("default", "a0")), _yes_or_no),
    st.builds(Delete, st.just(Blob), st.just(("b0",)), _yes_or_no),
    st.builds(Delete, st.just(Session), st.tuples(st.just("default"), _sessions), _yes_or_no),
    st.builds(
        Delete, st.just(IdempotencyKey), st.just(("default", "s1", "k0")), _yes_or_no
    ),
)  # fmt: skip
writes = st.lists(
    st.one_of(_puts, _inserts, _inserts, _patches, _deletes), min_size=1, max_size=4
).map(tuple)
wrotes = st.builds(Wrote, writes, st.none() | numbers)
moves = st.builds(
    Move,
    run=numbers,
    to=st.sampled_from([RunState.RUNNING] * 3 + [RunState.DONE] * 2 + _LATER),
    guard=_open_guards,
    writes=st.just(()) | st.just(()) | writes,
)
anything: st.SearchStrategy[Spec] = st.one_of(accepts, says, moves, wrotes)


def _changes(how: str, *calls: st.SearchStrategy[list[Spec]]) -> st.SearchStrategy[Change]:
    return st.builds(Change, st.just(how), st.tuples(*calls).map(list))


def _few(specs: st.SearchStrategy[Any], least: int = 1, most: int = 1) -> Any:
    return st.lists(specs, min_size=least, max_size=most)


_collisions = st.builds(Wrote, st.builds(Insert, _blobs | agents).map(lambda insert: (insert,)))
changes = st.one_of(
    _changes("accept", _few(accepts)),
    *[_changes("move", _few(moves)) for _ in range(4)],
    *[_changes("say", _few(says)) for _ in range(2)],
    _changes("append", _few(words, 1, 5)),
    _changes("write", _few(wrotes)),
    _changes("write", _few(_collisions)),
    *[_changes("batch", _few(anything, 2, 6)) for _ in range(2)],
    st.builds(Change, st.just("together"), _few(_few(anything, 1, 2), 2, 5)),
)
