"""Where each open run stands, in memory: what guards ask and what the next number follows from.

This process is the file's only writer, so nothing can change behind it. The row of an open run
learns its `head` only with the next change of state; a delta costs one insert and nothing else.
"""

import apsw
import msgspec

from orchestrator.core.records import Run
from orchestrator.core.states import ENDED
from orchestrator.stores.sqlite import sql

_LOAD = "SELECT key, version, epoch, status, head FROM runs WHERE run_id = ?"
_LAST = "SELECT key, n FROM segments WHERE key >= ? AND key < ? ORDER BY key DESC LIMIT 1"


class Head(msgspec.Struct):
    """How a run was left by the last op; `key` is the store's own number of the run."""

    key: int
    version: int
    epoch: int
    status: str
    head: int


class Heads:
    """The heads of open runs, loaded when they are first asked for."""

    def __init__(self, db: apsw.Connection) -> None:
        self._db = db
        self._open: dict[str, Head] = {}

    def of(self, run_id: str) -> Head | None:
        """Return a run's head; None for a run that is not there."""
        head = self._open.get(run_id)
        if head is None:
            head = self._load(run_id)
            if head is not None:
                self.keep(run_id, head)
        return head

    def created(self, run: Run, key: int) -> None:
        """Note a run that was just inserted, with the head its row says."""
        self.keep(run.run_id, Head(key, run.version, run.epoch, run.status, run.head))

    def claimed(self, run: Run) -> None:
        """Note the epoch of a run's new owner."""
        head = self._open.get(run.run_id)
        if head is not None:
            self._open[run.run_id] = msgspec.structs.replace(head, epoch=run.epoch)

    def keep(self, run_id: str, head: Head) -> None:
        """Remember a head for as long as its run is open."""
        if head.status in ENDED:
            self._open.pop(run_id, None)
        else:
            self._open[run_id] = head

    def forget(self, run_id: str | None = None) -> None:
        """Forget a run that was changed past this, or all of them."""
        if run_id is None:
            self._open.clear()
        else:
            self._open.pop(run_id, None)

    def _load(self, run_id: str) -> Head | None:
        row = sql.row(self._db, _LOAD, (run_id,))
        if row is None:
            return None
        head = Head(*row)
        last = sql.row(self._db, _LAST, (head.key << 32, head.key + 1 << 32))
        if last is not None:  # the row is ahead where retention has removed the last of the log
            head.head = max(head.head, (last[0] & 0xFFFFFFFF) + last[1] - 1)
        return head
