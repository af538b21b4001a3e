"""What a machine finds after its power failed: each unsynced write kept, dropped or torn."""

from bisect import bisect_left
from collections import Counter, defaultdict
from pathlib import Path
from random import Random
from typing import TypeAlias

from .recording import Cut, Gone, Made, Step, Synced, Wrote

SECTOR = 512
HALF = 0.5
FATES = ("kept", "dropped", "torn")
WEIGHTS = ((1, 0, 0), (0, 1, 0), (1, 1, 1), (6, 1, 1), (1, 6, 1))
"""How a crash deals with what was not synced; one line is drawn for each crash."""

Change: TypeAlias = tuple[int, Wrote | Cut]


class Image:
    """What is surely on the disk after the steps taken so far, and what only may be."""

    def __init__(self) -> None:
        self._files: defaultdict[int, bytearray] = defaultdict(bytearray)
        self._loose: defaultdict[int, list[Change]] = defaultdict(list)
        self._names: dict[str, int] = {}
        self._renamed: list[tuple[int, Made | Gone]] = []

    def take(self, at: int, step: Step) -> None:
        """Go one step further; `at` is its number."""
        match step:
            case Wrote() | Cut():
                self._loose[step.file].append((at, step))
            case Made() | Gone():
                self._renamed.append((at, step))
                if isinstance(step, Gone) and step.synced:
                    self._settle_names(at + 1)
            case Synced():
                self._settle(step)
            case _:
                return

    def fail(self, rnd: Random, folder: Path, fired: Counter[str]) -> None:
        """Write into `folder` what the disk holds after a power failure at this moment."""
        weights = rnd.choice(WEIGHTS)
        names = dict(self._names)
        kept = rnd.randint(0, len(self._renamed))  # a folder's changes reach the disk in order
        for _, step in self._renamed[:kept]:
            _rename(names, step)
        fired["dropped"] += len(self._renamed) - kept
        for name, file in names.items():
            data = bytearray(self._files[file])
            for _, change in self._loose[file]:
                [fate] = rnd.choices(FATES, weights)
                fired[_apply(data, change, fate, rnd)] += 1
            (folder / name).write_bytes(data)

    def _settle(self, step: Synced) -> None:
        loose = self._loose[step.file]
        count = bisect_left(loose, step.upto, key=lambda change: change[0])
        for _, change in loose[:count]:
            _whole(self._files[step.file], change)
        del loose[:count]
        if step.folder:
            self._settle_names(step.upto)

    def _settle_names(self, upto: int) -> None:
        while self._renamed and self._renamed[0][0] < upto:
            _rename(self._names, self._renamed.pop(0)[1])


def _rename(names: dict[str, int], step: Made | Gone) -> None:
    if isinstance(step, Made):
        names[step.name] = step.file
    else:
        names.pop(step.name, None)


def _apply(data: bytearray, change: Wrote | Cut, fate: str, rnd: Random) -> str:
    """Deal with one change as `fate` says and return what really became of it."""
    pieces = _sectors(change) if isinstance(change, Wrote) else [change]
    if fate == "torn":
        landed = [piece for piece in pieces if rnd.random() < HALF]
    else:
        landed = list(pieces) if fate == "kept" else []
    for piece in landed:
        _whole(data, piece)
    if not landed:
        return "dropped"
    return "kept" if len(landed) == len(pieces) else "torn"


def _whole(data: bytearray, change: Wrote | Cut) -> None:
    match change:
        case Cut(size=size):
            del data[size:]
            data.extend(bytes(max(0, size - len(data))))
        case Wrote(offset=offset, data=written):
            if offset > len(data):
                data.extend(bytes(offset - len(data)))
            data[offset : offset + len(written)] = written


def _sectors(write: Wrote) -> list[Wrote | Cut]:
    """Cut a write where the sectors of the disk end."""
    pieces: list[Wrote | Cut] = []
    start, end = write.offset, write.offset + len(write.data)
    while start < end:
        stop = min(end, (start // SECTOR + 1) * SECTOR)
        data = write.data[start - write.offset : stop - write.offset]
        pieces.append(Wrote(write.file, start, data))
        start = stop
    return pieces
