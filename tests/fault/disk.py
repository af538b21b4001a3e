"""A disk that fails when told to: a layer below SQLite that counts every call and breaks one."""

import errno
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import apsw

CALLS = ("write", "sync", "truncate")


class Disk:
    """What has happened on the disk and what is going to: `break_at` counts calls down."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.fired = 0
        self.error: Callable[[], Exception] = lambda: apsw.IOError("injected")
        self._left: int | None = None
        self._kinds: frozenset[str] = frozenset()
        self._for_ever = False

    def break_at(self, n: int, *kinds: str, for_ever: bool = False) -> None:
        """Fail the n-th call from now of these kinds (1 = the next one), or all from there."""
        self._left, self._kinds, self._for_ever = n, frozenset(kinds or CALLS), for_ever

    def mend(self) -> None:
        """Fail no more."""
        self._left = None

    def note(self, kind: str) -> None:
        """Count a call, and raise if it is its turn."""
        self.calls[kind] += 1
        if self._left is None or kind not in self._kinds:
            return
        self._left -= 1
        if self._left <= 0:
            if not self._for_ever:
                self._left = None
            self.fired += 1
            raise self.error()

    def fdatasync(self, descriptor: int) -> None:
        """Stand in for the store's own way to the disk; nothing is really synced."""
        try:
            self.note("fdatasync")
        except apsw.Error as error:
            number = errno.ENOSPC if isinstance(error, apsw.FullError) else errno.EIO
            raise OSError(number, "injected") from error


class _File(apsw.VFSFile):
    def __init__(self, disk: Disk, base: str, name: Any, flags: list[int]) -> None:
        super().__init__(base, name, flags)
        self._disk = disk

    def xWrite(self, data: Any, offset: int) -> None:  # noqa: N802  # apsw's name
        self._disk.note("write")
        super().xWrite(data, offset)

    def xSync(self, flags: int) -> None:  # noqa: N802  # apsw's name
        self._disk.note("sync")
        super().xSync(flags)

    def xTruncate(self, newsize: int) -> None:  # noqa: N802  # apsw's name
        self._disk.note("truncate")
        super().xTruncate(newsize)


class _VFS(apsw.VFS):
    def __init__(self, disk: Disk, base: str) -> None:
        super().__init__("faulty", base, makedefault=True)
        self._disk = disk
        self._base = base

    def xOpen(self, name: Any, flags: list[int]) -> _File:  # noqa: N802  # apsw's name
        return _File(self._disk, self._base, name, flags)


@contextmanager
def faulty_disk() -> Iterator[Disk]:
    """Put a disk that can fail under every database opened in the block."""
    usual = apsw.vfs_names()[0]
    disk = Disk()
    vfs = _VFS(disk, usual)
    try:
        yield disk
    finally:
        disk.mend()
        vfs.unregister()
        apsw.set_default_vfs(usual)
