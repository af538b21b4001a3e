"""Makes the rows of the log of batches, and says which day's part of it a run belongs to."""

from collections.abc import Iterator, Sequence
from datetime import date
from functools import lru_cache
from typing import Final

from orchestrator.core import ids
from orchestrator.core.batch import Batch, begun
from orchestrator.core.events import Draft
from orchestrator.stores.postgres.finishing import Row
from orchestrator.stores.postgres.heads import Head
from orchestrator.stores.segments import segments

DAY_MS: Final = 86_400_000
_EPOCH: Final = date(1970, 1, 1)
_DAYS_MAX: Final = (date.max - _EPOCH).days


@lru_cache(100_000)
def bucket_of(run_id: str) -> date:
    """Return the UTC day in which a run's id was minted, 1970-01-01 for an id not of ours."""
    try:
        days = ids.minted_at(run_id) // DAY_MS
    except ValueError:
        days = 0
    return date.fromordinal(_EPOCH.toordinal() + min(days, _DAYS_MAX))


def first_moment(bucket: date) -> int:
    """Return the millisecond in which a day begins."""
    return (bucket - _EPOCH).days * DAY_MS


def rows_of(run_id: str, head: Head, batch: Batch, drafts: Sequence[Draft]) -> Iterator[Row]:
    """Return the rows of the log that some events of a run become."""
    if batch.seqs:
        bucket, ts = bucket_of(run_id), begun(drafts)
        for part, data in segments(batch):
            yield bucket, head.key, part.seqs[0], len(part), head.epoch, ts, data
