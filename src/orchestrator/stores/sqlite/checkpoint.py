"""Keeps the write-ahead log short: each second what is on the disk goes into the database file."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import apsw

from orchestrator.stores.sqlite.sync import Syncer
from orchestrator.stores.sqlite.writer import Writer

EVERY_S: Final = 1.0
LONG_LOG: Final = 16 << 20
"""Bytes of log from which on the writer is held for as long as the last pages take."""


class Checkpointer:
    """Copies the log beside the writer, and syncs once a second what nobody waited for.

    A passive checkpoint disturbs nobody, but under load it never reaches the end of the log, and
    only a log that was copied to its end can begin anew. So a long one is copied in two steps, and
    the writer stands still for the second.
    """

    def __init__(self, db: apsw.Connection, writer: Writer, syncer: Syncer) -> None:
        self._db = db
        self._page = int(self._db.pragma("page_size"))
        self._writer = writer
        self._syncer = syncer
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._done = self._log = 0
        self._closed = False
        self.checkpoints = self.holds = self.failures = 0
        self._timer = asyncio.get_running_loop().call_later(EVERY_S, self._tick)

    async def close(self) -> None:
        """Wait for the checkpoint that is under way and stop."""
        self._closed = True
        self._timer.cancel()
        await asyncio.get_running_loop().run_in_executor(None, self._thread.shutdown)
        self._db.close()

    def stats(self) -> dict[str, float]:
        """Return how often the log was copied, and how often the writer was held for it."""
        return {
            "checkpoints_total": self.checkpoints,
            "checkpoint_holds_total": self.holds,
            "checkpoint_failures_total": self.failures,
        }

    def _tick(self) -> None:
        self._syncer.begin()
        written = self._syncer.written
        if written == self._done:
            self._again()
        else:
            self._start(self._after_first, written)

    def _again(self) -> None:
        if not self._closed:
            self._timer = asyncio.get_running_loop().call_later(EVERY_S, self._tick)

    def _start(self, then: Callable[[int, int], None], written: int) -> None:
        loop = asyncio.get_running_loop()
        copying = loop.run_in_executor(self._thread, self._copy)
        copying.add_done_callback(lambda future: then(future.result(), written))

    def _after_first(self, left: int, written: int) -> None:
        self._note(left, written)
        if left > 0 and self._log * self._page > LONG_LOG and self._writer.hold():
            self.holds += 1
            self._start(self._after_hold, self._syncer.written)
        else:
            self._again()

    def _after_hold(self, left: int, written: int) -> None:
        self._note(left, written)
        self._writer.resume()
        self._again()

    def _note(self, left: int, written: int) -> None:
        if left == 0:
            self._done = written

    def _copy(self) -> int:
        """Return how many pages of the log are left to copy."""
        try:
            self._log, copied = self._db.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
        except apsw.Error:  # a full or sick disk: the writer hears of it, and says so
            self.failures += 1
            return -1
        self.checkpoints += 1
        if self._log == copied:
            self._writer.fresh_log = True
        return self._log - copied
