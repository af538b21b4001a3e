"""Conditions of the port as SQL; only columns that exist get there."""

from collections.abc import Sequence
from typing import Any, Final

from orchestrator.ports import Where
from orchestrator.stores.postgres.tables import Table, plain

_COMPARE: Final = frozenset({"=", "<", "<=", ">", ">="})
_HAS: Final = (
    "EXISTS (SELECT 1 FROM json_array_elements(replace({column}, '\\u0000', '\\ufffd')::json) AS e "
    "(value) WHERE e.value #>> '{{}}' = {mark})"
)


class Bound:
    """The values that a statement binds, in the order of their marks."""

    def __init__(self) -> None:
        self.values: list[Any] = []

    def mark(self, value: Any) -> str:
        """Bind a value and return its mark."""
        self.values.append(value)
        return f"${len(self.values)}"


def condition(table: Table[Any], where: Sequence[Where], bound: Bound) -> str:
    """Return ` WHERE …` (or nothing), its values bound; KeyError for an unknown column."""
    parts = [_part(table, one, bound) for one in where]
    return f" WHERE {' AND '.join(parts)}" if parts else ""


def _part(table: Table[Any], where: Where, bound: Bound) -> str:
    column, operator, value = where
    table.must_have(column)
    if operator == "in":
        return _among(table, column, value, bound)
    if value is None:
        return f"{column} IS {'NOT ' if operator == '!=' else ''}NULL"
    if operator == "has":
        return _HAS.format(column=column, mark=bound.mark(plain(value)))
    if operator == "!=":
        return f"{column} IS DISTINCT FROM {bound.mark(table.value(column, value))}"
    if operator not in _COMPARE:
        raise ValueError(f"unknown comparison {operator!r}")
    return f"{column} {operator} {bound.mark(table.value(column, value))}"


def _among(table: Table[Any], column: str, values: Sequence[Any], bound: Bound) -> str:
    if column in table.enums:
        # Literals, not parameters: only then can the partial indexes on a state be used.
        literal = ", ".join(_quoted(plain(str(item))) for item in values)
        return f"{column} IN ({literal})" if literal else "FALSE"
    kind = "bigint" if column in table.numbers else "text"
    return f"{column} = ANY({bound.mark([table.value(column, one) for one in values])}::{kind}[])"


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
