"""Events as one commit writes them or one read brings them: together, encoded once, shared by all.

A `Batch` is a sequence of `LogEvent`s that keeps its events as JSON text, or as columns of it,
until somebody asks for them one by one, and makes the bytes of its server-sent events once, for all
who read along.
"""

from collections.abc import Iterator, Sequence
from typing import Final, overload

import msgspec

from orchestrator.core import ids
from orchestrator.core.columns import Columns
from orchestrator.core.events import AgentStreamDelta, Draft, LogEvent, text_of

DELTA: Final = AgentStreamDelta.type
_ONE: Final = (DELTA,)
_ENCODER: Final = msgspec.json.Encoder()
_BETWEEN: Final = '},{"event_id":"'
_BEFORE_TYPE: Final = '"type":"'


class Batch(Sequence[LogEvent]):
    """Events of one run in order: their numbers, their types and their JSON texts, one each."""

    __slots__ = ("_columns", "_events", "_frames", "_parts", "_size", "_texts", "seqs", "types")

    def __init__(
        self,
        seqs: Sequence[int],
        types: Sequence[str],
        texts: list[str] | None = None,
        columns: Columns | None = None,
    ) -> None:
        self.seqs = seqs
        self.types = types
        self._texts = texts
        self._columns = columns
        self._parts: Sequence[Batch] = ()
        self._events: list[LogEvent] | None = None
        self._frames: bytes | None = None
        self._size = -1

    @classmethod
    def chain(cls, parts: "Sequence[Batch]") -> "Batch":
        """Return one batch of several that follow each other; what they have made is kept."""
        if len(parts) == 1:
            return parts[0]
        chained = cls(
            [seq for part in parts for seq in part.seqs],
            [kind for part in parts for kind in part.types],
        )
        chained._parts = parts
        return chained

    @property
    def texts(self) -> list[str]:
        """Return the JSON text of each event."""
        if self._texts is None:
            if self._columns is not None:
                self._texts = self._columns.texts(self.seqs)
            else:
                self._texts = [text for part in self._parts for text in part.texts]
        return self._texts

    def frames(self) -> bytes:
        """Return the events as server-sent events whose `id:` is the seq; made once for all."""
        if self._frames is None:
            if self._parts:
                self._frames = b"".join([part.frames() for part in self._parts])
            else:
                self._frames = self.framed("")
        return self._frames

    def framed(self, mark: str) -> bytes:
        """Return the events as server-sent events whose `id:` ends in `mark`."""
        if self._columns is not None:
            return self._columns.frames(self.seqs, mark, DELTA).encode()
        rows = zip(self.seqs, self.types, self.texts, strict=True)
        return "".join(
            [f"id: {n}{mark}\nevent: {kind}\ndata: {text}\n\n" for n, kind, text in rows]
        ).encode()

    def after(self, seq: int) -> "Batch":
        """Return the part with larger numbers, which may be all of it."""
        if not self.seqs or self.seqs[0] > seq:
            return self
        at = next((i for i, n in enumerate(self.seqs) if n > seq), len(self.seqs))
        return self.part(at, len(self.seqs))

    def before(self, seq: int) -> "Batch":
        """Return the part with smaller numbers, which may be all of it."""
        if not self.seqs or self.seqs[-1] < seq:
            return self
        return self.part(0, next(i for i, n in enumerate(self.seqs) if n >= seq))

    def part(self, start: int, end: int) -> "Batch":
        """Return the events at positions `start` to `end`, which is not among them."""
        seqs, types = self.seqs[start:end], self.types[start:end]
        if self._columns is not None:
            return Batch(seqs, types, columns=self._columns.part(start, end))
        return Batch(seqs, types, self.texts[start:end])

    def chosen(self, places: Sequence[int]) -> "Batch":
        """Return the events at these positions."""
        return Batch(
            [self.seqs[at] for at in places],
            [self.types[at] for at in places],
            [self.texts[at] for at in places],
        )

    def measured(self, size: int) -> None:
        """Note the bytes of the texts, where somebody has just counted them."""
        self._size = size

    @property
    def size(self) -> int:
        """Return the bytes of its texts."""
        if self._size < 0:
            self._size = sum(
                [len(text) if text.isascii() else len(text.encode()) for text in self.texts]
            )
        return self._size

    def stored(self) -> bytes:
        """Return what a segment of the log holds: a JSON array of the events."""
        if self._columns is not None:
            return self._columns.array(self.seqs).encode()
        return f"[{','.join(self.texts)}]".encode()

    def __len__(self) -> int:
        return len(self.seqs)

    def __iter__(self) -> Iterator[LogEvent]:
        return iter(self._listed())

    @overload
    def __getitem__(self, at: int) -> LogEvent: ...
    @overload
    def __getitem__(self, at: slice) -> list[LogEvent]: ...
    def __getitem__(self, at: int | slice) -> LogEvent | list[LogEvent]:
        return self._listed()[at]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and self._listed() == list(other)

    def __hash__(self) -> int:
        return hash(tuple(self.texts))

    def __repr__(self) -> str:
        return f"Batch({self._listed()!r})"

    def _listed(self) -> list[LogEvent]:
        if self._events is None:
            rows = zip(self.seqs, self.types, self.texts, strict=True)
            self._events = [LogEvent(n, kind, text.encode()) for n, kind, text in rows]
        return self._events


EMPTY: Final = Batch((), (), [])


class Deltas(Sequence[Draft]):
    """Consecutive `agent_stream_delta` events on their way into the log, as cheap as they get.

    `noise` has 16 bytes of randomness for each text, `shard` is the two characters of its run.
    """

    __slots__ = ("_noise", "_shard", "_texts", "ts")

    def __init__(self, ts: int, texts: list[str], noise: bytes, shard: str) -> None:
        self.ts = ts
        self._texts = texts
        self._noise = ids.letters(noise)
        self._shard = shard

    def sealed(self, run_id: str, first: int) -> Batch:
        """Return the batch that they become as numbers from `first` on."""
        before = f'{{"event_id":"evt_{ids.stamp(self.ts)}'
        between = f'{self._shard}","run_id":"{run_id}","seq":'
        behind = f',"ts":{self.ts},"type":"{DELTA}","payload":{{"text":"'
        noise, size = self._noise, ids.NOISE_BYTES
        if len(self._texts) == 1:
            body = _ENCODER.encode(self._texts[0]).decode()
            return Batch((first,), _ONE, [f"{before}{noise}{between}{first}{behind}{body[1:]}}}}}"])
        # A quote inside a text is escaped, so this parts exactly the texts.
        bodies = _ENCODER.encode(self._texts)[2:-2].decode().split('","')
        count = len(bodies)
        noises = [noise[at : at + size] for at in range(0, count * size, size)]
        columns = Columns(before, between, behind, noises, bodies)
        return Batch(range(first, first + count), _ONE * count, columns=columns)

    def __len__(self) -> int:
        return len(self._texts)

    @overload
    def __getitem__(self, at: int) -> Draft: ...
    @overload
    def __getitem__(self, at: slice) -> list[Draft]: ...
    def __getitem__(self, at: int | slice) -> Draft | list[Draft]:
        if isinstance(at, slice):
            return [self[n] for n in range(*at.indices(len(self)))]
        n = range(len(self))[at]
        noise = self._noise[n * ids.NOISE_BYTES : (n + 1) * ids.NOISE_BYTES]
        event_id = f"evt_{ids.stamp(self.ts)}{noise}{self._shard}"
        payload = _ENCODER.encode(AgentStreamDelta(text=self._texts[n]))
        return Draft(event_id, self.ts, DELTA, payload)


def begun(drafts: Sequence[Draft]) -> int:
    """Return the time of the first of some drafts."""
    return drafts.ts if isinstance(drafts, Deltas) else drafts[0].ts


def seal_all(run_id: str, first: int, drafts: Sequence[Draft]) -> Batch:
    """Return the batch that `drafts` become as numbers from `first` on."""
    if isinstance(drafts, Deltas):
        return drafts.sealed(run_id, first)
    if not drafts:
        return EMPTY
    seqs = range(first, first + len(drafts))
    texts = [text_of(run_id, seq, item) for seq, item in zip(seqs, drafts, strict=True)]
    return Batch(seqs, [item.type for item in drafts], texts)


def unpack(first: int, count: int, data: bytes) -> tuple[list[str], list[str]]:
    """Return the types and the texts of a segment's events, which have consecutive numbers.

    Where an agent's own data looks like the seam between two events, the count tells.
    """
    parts = data.decode()[1:-1].split(_BETWEEN)
    if len(parts) != count:
        raws = msgspec.json.decode(data, type=list[msgspec.Raw])
        texts = [bytes(raw).decode() for raw in raws]
        if len(texts) != count:
            raise ValueError(f"the segment at {first} holds {len(texts)} events, not {count}")
    elif count == 1:
        texts = parts
    else:
        middle = [f'{{"event_id":"{part}}}' for part in parts[1:-1]]
        texts = [f"{parts[0]}}}", *middle, f'{{"event_id":"{parts[-1]}']
    return list(map(_type_in, texts)), texts


def joined(parts: Sequence[tuple[int, list[str], list[str]]]) -> Batch:
    """Return one batch of (first seq, types, texts) parts."""
    if len(parts) == 1:
        first, types, texts = parts[0]
        return Batch(range(first, first + len(texts)), types, texts)
    seqs: list[int] = []
    all_types: list[str] = []
    all_texts: list[str] = []
    for first, types, texts in parts:
        seqs += range(first, first + len(texts))
        all_types += types
        all_texts += texts
    return Batch(seqs, all_types, all_texts)


def _type_in(text: str) -> str:
    """Return the type of an event from its text: what stands before it has no quotes of its own."""
    start = text.index(_BEFORE_TYPE) + len(_BEFORE_TYPE)
    return text[start : text.index('"', start)]
