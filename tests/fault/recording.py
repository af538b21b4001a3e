"""A disk that remembers: every write, cut, sync and delete of SQLite's files, in one sequence.

The recording is the disk of the power-loss rig: `images.py` makes of it what a machine may find
after its power failed at any step. Nothing is really synced.
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import apsw

NAME = "recording"


class Made(NamedTuple):
    """A file came into being; until the folder is synced its name may be missing again."""

    name: str
    file: int


class Gone(NamedTuple):
    """A name was deleted."""

    name: str
    synced: bool


class Wrote(NamedTuple):
    file: int
    offset: int
    data: bytes


class Cut(NamedTuple):
    file: int
    size: int


class Synced(NamedTuple):
    """What the file had been given before step `upto` is on the disk, the folder too if it says."""

    file: int
    upto: int
    folder: bool
    at: float


class Note(NamedTuple):
    """Something that the workload was promised at this point."""

    fact: Any
    at: float


Step: TypeAlias = Made | Gone | Wrote | Cut | Synced | Note


class Recorder:
    """What happened so far, and the seam that stands in for `fdatasync`."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.names: dict[int, str] = {}
        self._file_of: dict[int, int] = {}

    def note(self, fact: Any) -> None:
        """Note what was promised by now."""
        self.steps.append(Note(fact, time.monotonic()))

    def fdatasync(self, descriptor: int) -> None:
        """Note a sync of the file behind a descriptor; what is written meanwhile is not in it."""
        upto = len(self.steps)
        time.sleep(0.0005)  # a disk takes its time, and others write meanwhile
        self._synced(self._file_of[os.fstat(descriptor).st_ino], upto, folder=False)

    def opened(self, path: str, *, new: bool) -> int:
        """Return the number of a file; a new one, or a new name for an old one, is a step."""
        inode, name = Path(path).stat().st_ino, Path(path).name
        if new or inode not in self._file_of:
            file = self._file_of[inode] = len(self.names)
            self.steps.append(Made(name, file))
            if not new:  # made beside this layer, by a program that is done with it
                self._found(file, Path(path).read_bytes())
        file = self._file_of[inode]
        if self.names.setdefault(file, name) != name:
            self.steps += [Made(name, file), Gone(self.names[file], synced=True)]
            self.names[file] = name
        return file

    def _found(self, file: int, data: bytes) -> None:
        self.steps.append(Wrote(file, 0, data))
        self.steps.append(Synced(file, len(self.steps), folder=True, at=time.monotonic()))

    def deleted(self, path: str, *, synced: bool) -> None:
        """Note that a name went."""
        self.steps.append(Gone(Path(path).name, synced))

    def _synced(self, file: int, upto: int, *, folder: bool) -> None:
        self.steps.append(Synced(file, upto, folder, time.monotonic()))


class _File(apsw.VFSFile):
    def __init__(self, recorder: Recorder, path: str, name: Any, flags: list[int]) -> None:
        new = not Path(path).exists()
        super().__init__("unix", name, flags)
        self._recorder = recorder
        self._file = recorder.opened(path, new=new)
        # As SQLite does it: the first sync of a new journal or log syncs the folder as well.
        journal = apsw.SQLITE_OPEN_MAIN_JOURNAL | apsw.SQLITE_OPEN_WAL
        self._folder = new and bool(flags[0] & journal)

    def xWrite(self, data: Any, offset: int) -> None:  # noqa: N802  # apsw's name
        super().xWrite(data, offset)
        self._recorder.steps.append(Wrote(self._file, offset, bytes(data)))

    def xTruncate(self, newsize: int) -> None:  # noqa: N802  # apsw's name
        super().xTruncate(newsize)
        self._recorder.steps.append(Cut(self._file, newsize))

    def xSync(self, flags: int) -> None:  # noqa: N802  # apsw's name
        steps = self._recorder.steps
        steps.append(Synced(self._file, len(steps), self._folder, time.monotonic()))
        self._folder = False


class _VFS(apsw.VFS):
    def __init__(self, recorder: Recorder) -> None:
        super().__init__(NAME, "unix")
        self._recorder = recorder

    def xOpen(self, name: Any, flags: list[int]) -> apsw.VFSFile:  # noqa: N802  # apsw's name
        path = name.filename() if isinstance(name, apsw.URIFilename) else name
        if path is None:
            return apsw.VFSFile("unix", name, flags)
        return _File(self._recorder, path, name, flags)

    def xDelete(self, filename: str, syncdir: bool) -> None:  # noqa: N802  # apsw's name
        super().xDelete(filename, syncdir)
        self._recorder.deleted(filename, synced=syncdir)


@contextmanager
def recording() -> Iterator[Recorder]:
    """Hand out a recorder; databases opened in the block with `vfs=NAME` are recorded."""
    recorder = Recorder()
    vfs = _VFS(recorder)
    try:
        yield recorder
    finally:
        vfs.unregister()
