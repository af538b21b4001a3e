"""Records and logs in plain dictionaries, with a journal that takes back what was not kept."""

from collections.abc import Sequence
from typing import Any, TypeAlias, cast

from orchestrator.core.batch import EMPTY, Batch
from orchestrator.core.records import RECORDS, R, Record, Run
from orchestrator.ports import Where

Key: TypeAlias = tuple[Any, ...]
Change: TypeAlias = tuple[dict[Any, Any], Any, Any]
"""A dictionary, one of its keys, and what stood there before."""

_ABSENT = object()


class Tables:
    """One dictionary per record type (key → record) and one of logs (run id → batch)."""

    def __init__(self) -> None:
        self.rows: dict[type[Record], dict[Key, Any]] = {kind: {} for kind in RECORDS}
        self.logs: dict[str, Batch] = {}
        self._numbers = {"run": 0}
        self.journal: list[Change] = []

    def set(self, table: dict[Any, Any], key: Any, value: Any) -> None:
        """Write one entry."""
        self.journal.append((table, key, table.get(key, _ABSENT)))
        table[key] = value

    def remove(self, table: dict[Any, Any], key: Any) -> None:
        """Remove one entry."""
        self.journal.append((table, key, table.pop(key, _ABSENT)))

    def put(self, record: Record) -> None:
        """Insert or replace a record."""
        self.set(self.rows[type(record)], key_of(record), record)

    def run(self, run_id: str | None) -> Run | None:
        """Return a run."""
        return cast("Run | None", self.rows[Run].get((run_id,)))

    def log(self, run_id: str) -> Batch:
        """Return a run's events."""
        return self.logs.get(run_id, EMPTY)

    def next_key(self) -> int:
        """Return the number of the next run."""
        number = self._numbers["run"] + 1
        self.set(self._numbers, "run", number)
        return number

    def take(self) -> list[Change]:
        """Return the journal since the last call, and begin a new one."""
        taken, self.journal = self.journal, []
        return taken

    def copy(self) -> "Tables":
        """Return the same contents, independent of these."""
        other = Tables()
        other.rows = {kind: dict(rows) for kind, rows in self.rows.items()}
        other.logs = dict(self.logs)
        other._numbers = dict(self._numbers)
        return other

    def find(self, kind: type[R], where: Sequence[Where], order: str, limit: int) -> list[R]:
        """Return records as the port says."""
        found = [record for record in self.rows[kind].values() if meets(record, where)]
        column = order.removeprefix("-")
        if column:
            found.sort(key=lambda record: _rank(record, column), reverse=order.startswith("-"))
        return found[:limit]


def undo(changes: list[Change], down_to: int = 0) -> None:
    """Take changes back, the latest first, until `down_to` of them are left."""
    while len(changes) > down_to:
        table, key, before = changes.pop()
        if before is _ABSENT:
            table.pop(key, None)
        else:
            table[key] = before


def key_of(record: Record) -> Key:
    """Return the values of a record's key."""
    return tuple(getattr(record, column) for column in record.KEY)


def meets(record: Record, where: Sequence[Where]) -> bool:
    """Return whether a record meets every condition, by the rules of SQL for absent values."""
    return all(_meets(getattr(record, column), how, value) for column, how, value in where)


def _meets(have: Any, how: str, value: Any) -> bool:
    if how == "in":
        return have is not None and str(have) in map(str, value)
    if value is None:
        return (have is not None) == (how == "!=")
    if how in {"=", "!="}:
        return bool((have == value) == (how == "="))
    if have is None:
        return False
    if how == "has":
        return value in have
    return _compares(have, how, value)


def _compares(have: Any, how: str, value: Any) -> bool:
    match how:
        case "<":
            return bool(have < value)
        case "<=":
            return bool(have <= value)
        case ">":
            return bool(have > value)
        case ">=":
            return bool(have >= value)
        case _:
            raise ValueError(f"unknown comparison {how!r}")


def _rank(record: Record, column: str) -> tuple[bool, Any]:
    value = getattr(record, column)
    return (value is not None, value)
