"""How records become rows and back: one table per record type, one column per field."""

from collections.abc import Callable, Sequence
from enum import EnumType
from typing import Any, Final, Generic, cast

import msgspec

from orchestrator.core.records import RECORDS, R, Record

_PLAIN: Final = (str, int, float, bytes, type(None))


class Table(Generic[R]):
    """The SQL pieces of one record type. Lists, objects and message contents are JSON text."""

    def __init__(self, kind: type[R]) -> None:
        self.kind = kind
        self.name = kind.TABLE
        self.columns: tuple[str, ...] = kind.__struct_fields__
        self.key = kind.KEY
        fields = msgspec.structs.fields(kind)
        self.json = frozenset(f.encode_name for f in fields if not _is_plain(f.type))
        self.enums = frozenset(f.encode_name for f in fields if isinstance(f.type, EnumType))
        self.numbers = frozenset(f.encode_name for f in fields if _holds_int(f.type))
        self.select = ", ".join(self.columns)
        self.by_key = matches(self.key)
        self._readers = [(f.encode_name, _reader(f.type)) for f in fields if _is_read(f.type)]

    def row(self, record: R, skip: frozenset[str] = frozenset()) -> dict[str, Any]:
        """Return a record's columns and their values for binding."""
        values = msgspec.structs.astuple(record)
        return {
            column: self.value(column, value)
            for column, value in zip(self.columns, values, strict=True)
            if column not in skip
        }

    def value(self, column: str, value: Any) -> Any:
        """Return one value for binding; raises KeyError for a column that does not exist."""
        if column not in self.columns:
            raise KeyError(f"{self.name} has no column {column!r}")
        if column in self.json:
            return None if value is None else msgspec.json.encode(value).decode()
        return plain(value)

    def record(self, row: Sequence[Any]) -> R:
        """Return the record of a row selected with `select`."""
        values = dict(zip(self.columns, row, strict=True))
        for column, read in self._readers:
            if values[column] is not None:
                values[column] = read(values[column])
        return self.kind(**values)

    def key_of(self, record: R) -> tuple[Any, ...]:
        """Return the values of a record's key."""
        return tuple(plain(getattr(record, column)) for column in self.key)


def plain(value: Any) -> Any:
    """Return a value as the database takes it: its texts have no NUL, which becomes U+FFFD."""
    return str(value).replace("\0", "\ufffd") if isinstance(value, str) else value


def matches(columns: Sequence[str], first: int = 1) -> str:
    """Return `a = $1 AND b = $2` for columns, their marks counted from `first`."""
    return " AND ".join(f"{column} = ${n}" for n, column in enumerate(columns, first))


def _is_read(annotation: Any) -> bool:
    return isinstance(annotation, EnumType) or not _is_plain(annotation)


def _reader(annotation: Any) -> Callable[[Any], Any]:
    """Return what makes a field's value of what a column keeps of it."""
    if isinstance(annotation, EnumType):
        return cast("Callable[[Any], Any]", annotation)
    return msgspec.json.Decoder(annotation).decode


def _holds_int(annotation: Any) -> bool:
    return int in getattr(annotation, "__args__", (annotation,))


def _is_plain(annotation: Any) -> bool:
    kinds = getattr(annotation, "__args__", (annotation,))
    if getattr(annotation, "__origin__", None) is not None:
        return False
    return all(isinstance(kind, type) and issubclass(kind, _PLAIN) for kind in kinds)


TABLES: Final[dict[type[Record], Table[Any]]] = {kind: Table(kind) for kind in RECORDS}
