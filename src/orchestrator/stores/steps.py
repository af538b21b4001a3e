"""The steps of a schema: what each does, and which older programs run on what it leads to.

A step is a file `NNN_name.sql` that begins with a line of comment saying what it does. From the
second on it says `-- serves: N`, too: programs of schema N and later run on the result, for it
only adds. A step that takes something away raises that number, and so ends the programs below it.
"""

import re
from collections.abc import Sequence
from importlib.resources import files
from typing import Final, NamedTuple

from orchestrator.core.errors import DatabaseRefused

_SERVES: Final = re.compile(r"^-- serves: (\d+)$", re.MULTILINE)


class Step(NamedTuple):
    """One step; its number is that of the schema it leads to."""

    number: int
    script: str

    @property
    def title(self) -> str:
        """Return what the step does."""
        return self.script.partition("\n")[0].removeprefix("-- ")

    @property
    def serves(self) -> int:
        """Return the oldest schema whose programs run on the result; unsaid, only its own do."""
        said = _SERVES.search(self.script)
        return int(said[1]) if said else self.number


class Schema(NamedTuple):
    """What a database says of itself: its schema, 0 for none yet, and the oldest one it serves."""

    number: int
    serves: int


class Plan(NamedTuple):
    """What an upgrade does to a database that is to have schema `known`.

    `backup` is the copy that is made first. `beside` says that servers of the present schema may
    go on meanwhile and afterwards.
    """

    database: str
    schema: int
    known: int
    steps: Sequence[Step]
    backup: str | None = None
    beside: bool = False


def steps_of(package: str) -> list[Step]:
    """Return the steps in the folder `migrations` of a package, in order."""
    folder = files(package) / "migrations"
    return sorted(
        Step(int(file.name[:3]), file.read_text())
        for file in folder.iterdir()
        if file.name.endswith(".sql")
    )


def lacking(place: str, found: Schema, steps: Sequence[Step]) -> list[Step]:
    """Return the steps that a database lacks; raises DatabaseRefused for one that is too new."""
    known = steps[-1].number
    if found.serves > known:
        raise DatabaseRefused(
            f"{place} was written by a newer version (schema {found.number}, this one knows "
            f"{known}); start that version, or restore the backup made before the upgrade"
        )
    return [step for step in steps if step.number > found.number]


def not_now(plan: Plan) -> DatabaseRefused:
    """Return the refusal of a start that lacks steps and must not make them."""
    has = f"has schema {plan.schema}" if plan.schema else "has no schema yet"
    return DatabaseRefused(
        f"{plan.database} {has}, this version needs {plan.known}, and MIGRATE=never lets no start "
        "change it; run: ./orchestrator migrate up"
    )
