"""How records become rows and back: one table per record type, one column per field."""

from collections.abc import Sequence
from typing import Any, Final, Generic

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
        self.select = ", ".join(self.columns)
        self.by_key = " AND ".join(f"{column} = ?" for column in self.key)
        self._decode = tuple(column in self.json for column in self.columns)

    def row(self, record: R, skip: frozenset[str] = frozenset()) -> dict[str, Any]:
        """Return a record's columns and their values for binding."""
        return {c: self.value(c, getattr(record, c)) for c in self.columns if c not in skip}

    def value(self, column: str, value: Any) -> Any:
        """Return one value for binding; raises KeyError for a column that does not exist."""
        if column not in self.columns:
            raise KeyError(f"{self.name} has no column {column!r}")
        if column in self.json:
            return None if value is None else msgspec.json.encode(value).decode()
        return str(value) if isinstance(value, str) else value

    def record(self, row: Sequence[Any]) -> R:
        """Return the record of a row selected with `select`."""
        values = {
            column: msgspec.json.decode(value) if is_json and value is not None else value
            for column, value, is_json in zip(self.columns, row, self._decode, strict=True)
        }
        return msgspec.convert(values, self.kind, strict=False)

    def key_of(self, record: R) -> tuple[Any, ...]:
        """Return the values of a record's key."""
        return tuple(getattr(record, column) for column in self.key)


def _is_plain(annotation: Any) -> bool:
    kinds = getattr(annotation, "__args__", (annotation,))
    if getattr(annotation, "__origin__", None) is not None:
        return False
    return all(isinstance(kind, type) and issubclass(kind, _PLAIN) for kind in kinds)


TABLES: Final[dict[type[Record], Table[Any]]] = {kind: Table(kind) for kind in RECORDS}
