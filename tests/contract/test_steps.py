"""The rules that let versions meet: what a step may do, and what a statement must say."""

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from orchestrator.stores.postgres import schema as postgres_schema
from orchestrator.stores.sqlite import schema as sqlite_schema
from orchestrator.stores.steps import Step

STORES = Path(postgres_schema.__file__).parents[1]
POSITIONAL = re.compile(
    r"INTO\s+[\w{}.]+(\s+AS\s+\w+)?\s+(VALUES|SELECT|DEFAULT)|SELECT\s+(\w+\.)?\*"
)


def test_every_statement_names_its_columns() -> None:
    """Another column must change nothing for who does not know it."""
    sources = [*STORES.rglob("*.py"), *STORES.rglob("*.sql")]
    found = [f"{path}: {at[0]}" for path in sources for at in POSITIONAL.finditer(path.read_text())]
    assert not found
    for bad in ("INSERT INTO a VALUES (1)", "INSERT INTO a AS b SELECT 1", "SELECT s.* FROM s"):
        assert POSITIONAL.search(bad)


TAKEN_AWAY = re.compile(
    r"\bDROP\b|\bRENAME\b|\bALTER (COLUMN )?\w+ (SET DATA )?TYPE\b"
    r"|\bSET NOT NULL\b|\bCREATE UNIQUE\b|\bCREATE TRIGGER\b"
    r"|\bADD (CONSTRAINT|CHECK|UNIQUE|PRIMARY|FOREIGN)\b",
    re.IGNORECASE,
)
ADDED = re.compile(r"\bADD COLUMN\b[^;,]*", re.IGNORECASE)


def takes_away(script: str) -> list[str]:
    """Return what an older program would miss or stumble over after a step."""
    said = re.sub(r"--.*", "", script)
    found = [at[0] for at in TAKEN_AWAY.finditer(said)]
    strict = (at[0] for at in ADDED.finditer(said))
    return found + [
        column
        for column in strict
        if "NOT NULL" in column.upper() and "DEFAULT" not in column.upper()
    ]


def objections(steps: Sequence[Step], first: int) -> list[str]:
    """Return what is wrong with steps; from number `first` on there are older programs."""
    found = []
    for before, step in pairwise(steps):
        says = [f"{step.number}: {why}" for why in _objections(before, step, first)]
        found += says
    return found


def _objections(before: Step, step: Step, first: int) -> Iterator[str]:
    if f"-- serves: {step.serves}\n" not in step.script:
        yield "does not say whom it serves"
    if step.serves < before.serves:
        yield "serves whom an earlier step has ended"
    if step.number >= first and step.serves >= step.number:
        yield "ends the version just before it"
    if step.number >= first and step.serves == before.serves and takes_away(step.script):
        yield f"takes away {takes_away(step.script)} and ends nobody"


@pytest.mark.parametrize(("schema", "first"), [(sqlite_schema, 3), (postgres_schema, 2)])
def test_steps_add_first_and_take_away_one_release_later(schema: Any, first: int) -> None:
    steps = schema.migrations()
    assert [step.number for step in steps] == list(range(1, len(steps) + 1))
    assert all(step.script.startswith("-- ") and step.title.endswith(".") for step in steps)
    assert objections(steps, first) == []


FIRST = Step(1, "-- The first.\nCREATE TABLE a (b TEXT);\n")


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("ALTER TABLE a ADD COLUMN c TEXT;", ""),
        ("ALTER TABLE a ADD COLUMN c TEXT NOT NULL DEFAULT '';", ""),
        ("CREATE TABLE c (type TEXT NOT NULL); -- DROP nothing", ""),
        ("DROP TABLE a;", "ends nobody"),
        ("ALTER TABLE a RENAME COLUMN b TO c;", "ends nobody"),
        ("ALTER TABLE a ALTER COLUMN b TYPE BIGINT;", "ends nobody"),
        ("ALTER TABLE a ALTER b SET DATA TYPE BIGINT;", "ends nobody"),
        ("ALTER TABLE a ALTER b SET NOT NULL;", "ends nobody"),
        ("ALTER TABLE a ADD COLUMN c TEXT NOT NULL;", "ends nobody"),
        ("CREATE UNIQUE INDEX c ON a (b);", "ends nobody"),
    ],
)
def test_the_rule_sees_what_is_taken_away(script: str, why: str) -> None:
    second = Step(2, f"-- The second.\n-- serves: 1\n{script}\n")
    found = objections([FIRST, second], 2)
    assert (why in found[0]) if why else not found


def test_the_rule_lets_a_later_release_end_an_earlier_one() -> None:
    second = Step(2, "-- Adds.\n-- serves: 1\nALTER TABLE a ADD COLUMN c TEXT;\n")
    third = Step(3, "-- Takes away what 1 was the last to use.\n-- serves: 2\nDROP TABLE a;\n")
    assert objections([FIRST, second, third], 2) == []
    hasty = Step(2, "-- Takes away at once.\n-- serves: 2\nDROP TABLE a;\n")
    assert objections([FIRST, hasty], 2) == ["2: ends the version just before it"]
    silent = Step(2, "-- Adds.\nALTER TABLE a ADD COLUMN c TEXT;\n")
    assert objections([FIRST, silent], 9) == ["2: does not say whom it serves"]
    back = Step(4, "-- Adds.\n-- serves: 1\nALTER TABLE b ADD COLUMN c TEXT;\n")
    assert objections([third, back], 2) == ["4: serves whom an earlier step has ended"]
