"""How records become rows and back, whatever the database: one column per field."""

from collections.abc import Callable, Sequence
from enum import EnumType
from typing import Any, Final, Generic, cast

import msgspec

from orchestrator.core.records import R

_PLAIN: Final = (str, int, float, bytes, type(None))


class Columns(Generic[R]):
    """The columns of one record type. Lists, objects and message contents are JSON text."""

    def __init__(self, kind: type[R]) -> None:
        self.kind = kind
        self.name = kind.TABLE
        self.columns: tuple[str, ...] = kind.__struct_fields__
        self.key = kind.KEY
        fields = msgspec.structs.fields(kind)
        self.json = frozenset(f.encode_name for f in fields if not _is_plain(f.type))
        self.enums = frozenset(f.encode_name for f in fields if isinstance(f.type, EnumType))
        self._readers = [(f.encode_name, _reader(f.type)) for f in fields if _is_read(f.type)]

    def value(self, column: str, value: Any) -> Any:
        """Return one value for binding; raises KeyError for a column that does not exist."""
        self.must_have(column)
        if column in self.json:
            return None if value is None else msgspec.json.encode(value).decode()
        return self.plain(value)

    def plain(self, value: Any) -> Any:
        """Return a value that is no JSON as the database takes it."""
        return str(value) if isinstance(value, str) else value

    def record(self, row: Sequence[Any]) -> R:
        """Return the record of a row that has every column."""
        values = dict(zip(self.columns, row, strict=True))
        for column, read in self._readers:
            if values[column] is not None:
                values[column] = read(values[column])
        return self.kind(**values)

    def ordering(self, order: str) -> str:
        """Return ` ORDER BY …` for `column` or `-column`, nothing for nothing."""
        column = order.removeprefix("-")
        if not column:
            return ""
        self.must_have(column)
        return f" ORDER BY {column}{' DESC' if order.startswith('-') else ''}"

    def must_have(self, column: str) -> None:
        """Raise KeyError for a column that does not exist."""
        if column not in self.columns:
            raise KeyError(f"{self.name} has no column {column!r}")


def _is_read(annotation: Any) -> bool:
    return annotation is bool or isinstance(annotation, EnumType) or not _is_plain(annotation)


def _reader(annotation: Any) -> Callable[[Any], Any]:
    """Return what makes a field's value of what a column keeps of it."""
    if annotation is bool or isinstance(annotation, EnumType):
        return cast("Callable[[Any], Any]", annotation)
    return msgspec.json.Decoder(annotation).decode


def _is_plain(annotation: Any) -> bool:
    kinds = getattr(annotation, "__args__", (annotation,))
    if getattr(annotation, "__origin__", None) is not None:
        return False
    return all(isinstance(kind, type) and issubclass(kind, _PLAIN) for kind in kinds)
