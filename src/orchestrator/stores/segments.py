"""Cuts batches into segments, the rows that a log is kept in whatever the database."""

from collections.abc import Iterator
from itertools import pairwise
from typing import Final

from orchestrator.core.batch import Batch

SEGMENT_EVENTS: Final = 256
SEGMENT_BYTES: Final = 1 << 16
"""Bytes of a segment; a single larger event has a segment of its own."""


def segments(batch: Batch) -> Iterator[tuple[Batch, bytes]]:
    """Cut a batch into the rows it is stored in, each of consecutive numbers, with their bytes."""
    size = 0
    for part in _parts(batch):
        data = part.stored()
        size += len(data) - len(part) - 1
        if len(data) <= SEGMENT_BYTES or len(part) == 1:
            yield part, data
        else:
            yield from ((piece, piece.stored()) for piece in _smaller(part))
    batch.measured(size)


def _parts(batch: Batch) -> Iterator[Batch]:
    seqs, count = batch.seqs, len(batch)
    if isinstance(seqs, range):
        if count <= SEGMENT_EVENTS:
            yield batch
            return
        gaps = list[int]()
    else:
        gaps = [at for at in range(1, count) if seqs[at] != seqs[at - 1] + 1]
    for start, end in pairwise([0, *gaps, count]):
        for at in range(start, end, SEGMENT_EVENTS):
            yield batch.part(at, min(at + SEGMENT_EVENTS, end))


def _smaller(batch: Batch) -> Iterator[Batch]:
    start = size = 0
    for at, event in enumerate(batch):
        size += len(event.data)
        if at > start and size > SEGMENT_BYTES:
            yield batch.part(start, at)
            start, size = at, len(event.data)
    yield batch.part(start, len(batch))
