"""Words of agents whose runs stand where we left them: sealed beforehand, committed in one go."""

from collections.abc import Mapping, Sequence

import msgspec
from msgspec.structs import replace

from orchestrator.core.batch import seal_all
from orchestrator.core.ops import Committed, Op, Outcome
from orchestrator.stores.postgres.finishing import Row
from orchestrator.stores.postgres.heads import Head
from orchestrator.stores.postgres.segments import rows_of


class Words(msgspec.Struct):
    """What one statement has to write, and what it leads to if every run is where we think."""

    rows: list[Row] = []
    runs: dict[str, tuple[Head, Head]] = {}
    outcomes: list[Outcome] = []


def words_of(ops: Sequence[Op], heads: Mapping[str, Head]) -> Words | None:
    """Return a batch as words, None where it is more than that or a head is not known."""
    words = Words()
    for op in ops:
        run_id = op.run_id
        if run_id is None or op.changes_state:
            return None
        was, head = words.runs.get(run_id) or (heads.get(run_id),) * 2
        if was is None or head is None or op.guard.objection(head) is not None:
            return None
        batch = seal_all(run_id, head.head + 1, op.events)
        words.rows += rows_of(run_id, head, batch, op.events)
        now = replace(head, head=head.head + len(batch))
        words.runs[run_id] = (was, now)
        words.outcomes.append(Committed(now.head, now.version, now.key, batch))
    return words
