"""How records become rows and back: one table per record type, one column per field."""

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from orchestrator.core.records import RECORDS, R, Record
from orchestrator.stores.tables import Columns


class Table(Columns[R]):
    """The SQL pieces of one record type."""

    def __init__(self, kind: type[R]) -> None:
        super().__init__(kind)
        fields = msgspec.structs.fields(kind)
        self.numbers = frozenset(f.encode_name for f in fields if _holds_int(f.type))
        self.select = ", ".join(self.columns)
        self.by_key = matches(self.key)

    def plain(self, value: Any) -> Any:
        """Return a value that is no JSON as the database takes it."""
        return plain(value)

    def row(self, record: R, skip: frozenset[str] = frozenset()) -> dict[str, Any]:
        """Return a record's columns and their values for binding."""
        values = msgspec.structs.astuple(record)
        return {
            column: self.value(column, value)
            for column, value in zip(self.columns, values, strict=True)
            if column not in skip
        }

    def key_of(self, record: R) -> tuple[Any, ...]:
        """Return the values of a record's key."""
        return tuple(plain(getattr(record, column)) for column in self.key)


def plain(value: Any) -> Any:
    """Return a value as the database takes it: its texts have no NUL, which becomes U+FFFD."""
    return str(value).replace("\0", "\ufffd") if isinstance(value, str) else value


def matches(columns: Sequence[str], first: int = 1) -> str:
    """Return `a = $1 AND b = $2` for columns, their marks counted from `first`."""
    return " AND ".join(f"{column} = ${n}" for n, column in enumerate(columns, first))


def _holds_int(annotation: Any) -> bool:
    return int in getattr(annotation, "__args__", (annotation,))


TABLES: Final[dict[type[Record], Table[Any]]] = {kind: Table(kind) for kind in RECORDS}
