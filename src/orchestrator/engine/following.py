"""What tails of runs and of sessions share: how much is read at once, and what follows a cursor."""

from typing import Final

from orchestrator.core.batch import EMPTY, Batch
from orchestrator.core.events import TERMINAL
from orchestrator.ports import Hint

PAGE: Final = 1000


def is_end(batch: Batch) -> bool:
    """Return whether a batch ends with the terminal event."""
    return bool(batch) and batch.types[-1] in TERMINAL


def contiguous(hints: list[Hint], cursor: int) -> tuple[Batch, bool]:
    """Return the new events that directly follow `cursor`, and whether more must be read."""
    found: list[Batch] = []
    hole = False
    for hint in hints:
        if hint.head <= cursor:
            # Whoever asked for more than there will be learns of the end by a look at the run.
            hole = hole or is_end(hint.events)
            continue
        fresh = hint.events.after(cursor)
        if not fresh or fresh.seqs[0] != cursor + 1:
            hole = True
            break
        found.append(fresh)
        cursor = fresh.seqs[-1]
    return Batch.chain(found) if found else EMPTY, hole
