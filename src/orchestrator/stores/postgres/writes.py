"""Writes as SQL: one statement each, or one for several that do not touch the same table."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from orchestrator.core.ops import Delete, Insert, Patch, Put, Write
from orchestrator.core.records import Record
from orchestrator.stores.postgres.tables import TABLES, matches, plain


class Shape(NamedTuple):
    """The form of a statement without its values; equal forms share their text and their plan."""

    verb: str
    table: str
    columns: tuple[str, ...] = ()
    key: tuple[str, ...] = ()
    guards: tuple[str, ...] = ()


class Statement(NamedTuple):
    """A write with its values; `why` refuses the op when nothing is changed, None does not."""

    shape: Shape
    values: tuple[Any, ...]
    why: str | None = None
    record: Record | None = None


def statement_of(write: Write) -> Statement:
    """Return the statement that carries out a write, whose record has its place already."""
    match write:
        case Insert(record=record):
            table = TABLES[type(record)]
            row = table.row(record)
            shape = Shape("insert", table.name, tuple(row))
            why = None if write.absent_ok else "exists"
            return Statement(shape, tuple(row.values()), why, record)
        case Put(record=record):
            table = TABLES[type(record)]
            row = table.row(record)
            kept = tuple(column for column in row if column not in {*table.key, *write.keep})
            shape = Shape("put", table.name, tuple(row), table.key, kept)
            return Statement(shape, tuple(row.values()))
        case Patch(kind=kind, key=key, changes=changes, where=where):
            table = TABLES[kind]
            shape = Shape("patch", table.name, tuple(changes), table.key, tuple(where))
            values = [table.value(column, value) for column, value in changes.items()]
            values += [*map(plain, key), *(table.value(c, v) for c, v in where.items())]
            return Statement(shape, tuple(values), "missing" if write.required else None)
        case Delete(kind=kind, key=key):
            table = TABLES[kind]
            shape = Shape("delete", table.name, (), table.key[: len(key)])
            why = "missing" if write.required else None
            return Statement(shape, tuple(map(plain, key)), why)


@lru_cache(1000)
def text_of(shapes: Sequence[Shape]) -> str:
    """Return the SQL of statements on different tables; it tells how many rows each changed."""
    parts, first = list[str](), 1
    for shape in shapes:
        text, bound = _text(shape, first)
        parts.append(text)
        first += bound
    named = ", ".join(f"w{n} AS ({text} RETURNING 1)" for n, text in enumerate(parts))
    counts = ", ".join(f"(SELECT count(*) FROM w{n})" for n in range(len(parts)))
    return f"WITH {named} SELECT {counts}"


def _text(shape: Shape, first: int) -> tuple[str, int]:
    """Return a statement, its marks counted from `first`, and how many values it binds."""
    table, columns = shape.table, shape.columns
    count = len(columns)
    if shape.verb == "delete":
        return f"DELETE FROM {table} WHERE {matches(shape.key, first)}", len(shape.key)
    if shape.verb == "patch":
        sets = ", ".join(f"{column} = ${n}" for n, column in enumerate(columns, first))
        after = first + count + len(shape.key)
        guards = [
            f" AND {column} IS NOT DISTINCT FROM ${n}"
            for n, column in enumerate(shape.guards, after)
        ]
        text = f"UPDATE {table} SET {sets} WHERE {matches(shape.key, first + count)}"
        return text + "".join(guards), count + len(shape.key) + len(shape.guards)
    marks = ", ".join(f"${n}" for n in range(first, first + count))
    text = f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({marks}) ON CONFLICT "
    if shape.verb == "insert":
        return f"{text}DO NOTHING", count
    sets = ", ".join(f"{column} = excluded.{column}" for column in shape.guards)
    return f"{text}({', '.join(shape.key)}) DO UPDATE SET {sets}", count
