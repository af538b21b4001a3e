"""Which runs are in the way of a new one, and the statement that creates it if there is room.

Runs of a session are created under the session's name, children too, so what one statement counts
is exact.
"""

from functools import cache
from typing import Any, Final, NamedTuple

from orchestrator.core.records import Run
from orchestrator.stores.postgres.tables import plain

_SESSION: Final = (
    "tenant = {0} AND session_id = {1} AND status IN ('CREATED', 'RUNNING') "
    "AND parent_run_id IS NULL AND parallel = {2} ORDER BY key LIMIT 1 OFFSET {3}"
)
_CHILDREN: Final = (
    "parent_run_id = {0} AND status IN "
    "('CREATED', 'RUNNING', 'PAUSED_WAITING_TOOL', 'PAUSED_WAITING_APPROVAL') "
    "ORDER BY key LIMIT 1 OFFSET {1}"
)


class Way(NamedTuple):
    """A condition that finds the first run for which there was no room, and what it binds."""

    condition: str
    values: tuple[Any, ...]

    def query(self, select: str, first: int = 1) -> str:
        """Return the query for that run, its marks counted from `first`."""
        marks = [f"${n}" for n in range(first, first + len(self.values))]
        return f"SELECT {select} FROM runs WHERE {self.condition.format(*marks)}"


def way_of(run: Run, room: int) -> Way:
    """Return where a run that is to be created looks for room."""
    if run.parent_run_id is None:
        return Way(_SESSION, (plain(run.tenant), plain(run.session_id), run.parallel, room))
    return Way(_CHILDREN, (plain(run.parent_run_id), room))


@cache
def create_sql(columns: tuple[str, ...], full: str = "") -> str:
    """Return the statement that creates a run, unless the query `full` finds another."""
    marks = ", ".join(f"${n}" for n in range(1, len(columns) + 1))
    values = f"SELECT {marks} WHERE NOT EXISTS ({full})" if full else f"VALUES ({marks})"
    return f"INSERT INTO runs ({', '.join(columns)}) {values} ON CONFLICT DO NOTHING RETURNING key"
