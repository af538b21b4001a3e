"""What one decision changes, as data: an `Op` is stored whole or not at all.

The store executes an op in this order: `create` (a new run) or the guard of an existing one,
the events, the run's `changes`, then `writes` in their order. A guard or a unique key that does
not hold refuses this op alone and leaves the others of the same transaction standing.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol, TypeAlias

import msgspec

from orchestrator.core.batch import EMPTY, Batch, Deltas
from orchestrator.core.events import DELTAS, Draft
from orchestrator.core.records import Record, Run
from orchestrator.core.states import RunState


class Insert(msgspec.Struct, frozen=True):
    """Insert a record; when its key is taken, refuse the op, or skip with `absent_ok`."""

    record: Record
    absent_ok: bool = False


class Put(msgspec.Struct, frozen=True):
    """Insert or replace a record; the columns in `keep` stay as they are when it exists."""

    record: Record
    keep: tuple[str, ...] = ()


class Patch(msgspec.Struct, frozen=True):
    """Change columns of the record with `key`; `where` (column = value) guards it.

    With `required`, no matching record refuses the op.
    """

    kind: type[Record]
    key: tuple[Any, ...]
    changes: Mapping[str, Any]
    where: Mapping[str, Any] = {}
    required: bool = False


class Delete(msgspec.Struct, frozen=True):
    """Delete the records whose key begins with `key`; with `required`, none refuses the op."""

    kind: type[Record]
    key: tuple[Any, ...]
    required: bool = False


Write: TypeAlias = Insert | Put | Patch | Delete


class Standing(Protocol):
    """What guards ask of a run."""

    @property
    def version(self) -> int: ...
    @property
    def epoch(self) -> int: ...
    @property
    def status(self) -> str: ...


class Guard(msgspec.Struct, frozen=True):
    """What must still hold of the run: None asks nothing, an empty `states` neither.

    `version` is the one the decision was made on, `epoch` that of the owner who writes.
    """

    version: int | None = None
    epoch: int | None = None
    states: frozenset[RunState] = frozenset()

    def objection(self, head: Standing) -> str | None:
        """Return which of its conditions does not hold of a run, None when all do."""
        if self.epoch is not None and head.epoch != self.epoch:
            return "epoch"
        if self.version is not None and head.version != self.version:
            return "version"
        if self.states and head.status not in self.states:
            return "state"
        return None


ANYTIME: Final = Guard()


class Op(msgspec.Struct, frozen=True, kw_only=True):
    """Everything one decision changes. `run_id` is that of `create` when a run is created.

    `room` guards `create`: how many runs may be in its way already, or it is refused as `full`.
    In the way of a root run are those that it waits for, in that of a child the open children of
    its parent.
    """

    run_id: str | None = None
    create: Run | None = None
    room: int | None = None
    guard: Guard = ANYTIME
    events: Sequence[Draft] = ()
    changes: Mapping[str, Any] = {}
    writes: tuple[Write, ...] = ()

    @property
    def changes_state(self) -> bool:
        """Return whether this is more than words of an agent: then the disk is waited for."""
        if self.create is not None or self.changes or self.writes:
            return True
        return not isinstance(self.events, Deltas) and any(
            e.type not in DELTAS for e in self.events
        )

    @property
    def may_be_undone(self) -> bool:
        """Return whether one of the writes may refuse the op after something has been written."""
        return any(
            (isinstance(write, Insert) and not write.absent_ok)
            or (isinstance(write, Patch | Delete) and write.required)
            for write in self.writes
        )

    @property
    def versions(self) -> int:
        """Return by how much the run's version grows: by each event that is not of words."""
        if isinstance(self.events, Deltas):
            return 0
        return sum(event.type not in DELTAS for event in self.events)


class Committed(msgspec.Struct, frozen=True):
    """An op that is done: the run's new `head` and `version`, and the events as sealed."""

    head: int = 0
    version: int = 0
    key: int = 0
    events: Batch = EMPTY


class Refused(msgspec.Struct, frozen=True):
    """An op that changed nothing.

    `why` is `version`, `epoch`, `state`, `missing` (no such run or required record), `exists`, and
    then `record` is the one that holds the key, or `full`, and then it is the oldest run for which
    there was no room.
    """

    why: str
    record: Record | None = None


Outcome: TypeAlias = Committed | Refused
