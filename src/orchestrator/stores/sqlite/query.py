"""Conditions of the port as SQL; only columns that exist get there."""

from collections.abc import Sequence
from typing import Any, Final

from orchestrator.ports import Where
from orchestrator.stores.sqlite.tables import Table

_COMPARE: Final = frozenset({"=", "<", "<=", ">", ">="})


def condition(table: Table[Any], where: Sequence[Where]) -> tuple[str, tuple[Any, ...]]:
    """Return ` WHERE …` (or nothing) and the values to bind; KeyError for an unknown column."""
    parts, bound = [], list[Any]()
    for one in where:
        text, values = _part(table, one)
        parts.append(text)
        bound += values
    return (f" WHERE {' AND '.join(parts)}" if parts else ""), tuple(bound)


def _part(table: Table[Any], where: Where) -> tuple[str, list[Any]]:
    column, operator, value = where
    table.must_have(column)
    asked = table.asked(column)
    if operator == "in":
        literal = ", ".join(_quoted(str(item)) for item in value)
        # Literals, not parameters: only then can the partial indexes on a state be used.
        return f"{asked} IN ({literal})", []
    if value is None:
        return f"{asked} IS {'NOT ' if operator == '!=' else ''}NULL", []
    if operator == "has":
        return f"EXISTS (SELECT 1 FROM json_each({column}) WHERE value = ?)", [value]
    if operator == "!=":
        return f"{asked} IS NOT ?", [table.value(column, value)]
    if operator not in _COMPARE:
        raise ValueError(f"unknown comparison {operator!r}")
    return f"{asked} {operator} ?", [table.value(column, value)]


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
