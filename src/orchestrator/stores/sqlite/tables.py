"""How records become rows and back: one table per record type, one column per field."""

from typing import Any, Final

import msgspec

from orchestrator.core.records import RECORDS, R, Record, Run
from orchestrator.stores.tables import Columns

HEAD: Final = (
    "CASE WHEN ended_at IS NOT NULL THEN head ELSE coalesce((SELECT (s.key & 4294967295) + s.n - 1 "
    "FROM segments AS s WHERE s.key >= runs.key << 32 AND s.key < (runs.key + 1) << 32 "
    "ORDER BY s.key DESC LIMIT 1), head) END"
)
"""A run's head in SQL: the row of an open run learns it with the next change of state only."""


class Table(Columns[R]):
    """The SQL pieces of one record type."""

    def __init__(self, kind: type[R]) -> None:
        super().__init__(kind)
        self._converted = self.json | self.enums
        self.select = ", ".join(
            f"{HEAD} AS head" if kind is Run and column == "head" else column
            for column in self.columns
        )
        self.by_key = " AND ".join(f"{column} = ?" for column in self.key)

    def asked(self, column: str) -> str:
        """Return what conditions compare: the column, or what stands for it in SQL."""
        return f"CAST({HEAD} AS INTEGER)" if self.kind is Run and column == "head" else column

    def row(self, record: R, skip: frozenset[str] = frozenset()) -> dict[str, Any]:
        """Return a record's columns and their values for binding."""
        values = msgspec.structs.astuple(record)
        row = dict(zip(self.columns, values, strict=True))
        for column in skip:
            del row[column]
        for column in self._converted & row.keys():
            row[column] = self.value(column, row[column])
        return row

    def key_of(self, record: R) -> tuple[Any, ...]:
        """Return the values of a record's key."""
        return tuple(getattr(record, column) for column in self.key)


TABLES: Final[dict[type[Record], Table[Any]]] = {kind: Table(kind) for kind in RECORDS}
