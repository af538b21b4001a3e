"""What a start finds: leases of the dead, heads that are behind, a host that stopped uncleanly.

The deltas of the last second before a power loss may be gone, though readers saw them. So a run
that was open when its host stopped without our word goes on as another generation of its log, and
`forks` keeps how far the generations agree.
"""

from typing import Final

import apsw
import msgspec

from orchestrator.core.records import Blob
from orchestrator.core.states import OPEN
from orchestrator.stores.sqlite import schema, sql
from orchestrator.stores.sqlite.location import Location
from orchestrator.stores.sqlite.tables import HEAD

_NAME: Final = "host"
OPEN_STATES: Final = ", ".join(f"'{state}'" for state in sorted(OPEN))
_MARK: Final = f"SELECT data FROM {Blob.TABLE} WHERE name = '{_NAME}'"
_PUT_MARK: Final = (
    f"INSERT OR REPLACE INTO {Blob.TABLE} (name, data, created_at) VALUES ('{_NAME}', ?, ?)"
)
_REPAIR: Final = f"UPDATE runs SET head = {HEAD} WHERE status IN ({OPEN_STATES})"
_FORK: Final = (
    f"UPDATE runs SET forks = json_insert(forks, '$[#]', head) WHERE status IN ({OPEN_STATES})"
)


class _Mark(msgspec.Struct, frozen=True):
    """Which run of the host has the file, and whether we let go of it ourselves."""

    boot: str
    clean: bool


def open_writing(location: Location, boot: str, now: int) -> apsw.Connection:
    """Return the writing connection; we hold the lock, so whoever had a lease here is dead."""
    db = schema.connect(location)
    db.execute("PRAGMA wal_autocheckpoint=0")
    db.execute("BEGIN IMMEDIATE")
    db.execute("DELETE FROM leases")
    db.execute(_REPAIR)
    if unclean(db, boot):
        db.execute(_FORK)
    mark(db, boot, now, clean=False)
    db.execute("COMMIT")  # synced, so that a power cut at any later moment is seen
    db.execute("PRAGMA synchronous=NORMAL")
    return db


def mark(db: apsw.Connection, boot: str, now: int, *, clean: bool) -> None:
    """Note, in the open transaction, that the file is ours now or that we are done with it."""
    db.execute(_PUT_MARK, (msgspec.json.encode(_Mark(boot, clean)), now))


def unclean(db: apsw.Connection, boot: str) -> bool:
    """Return whether another run of the host had the file last and did not let go of it."""
    found = sql.value(db, _MARK)
    if found is None:
        return False
    last = msgspec.json.decode(found, type=_Mark)
    return last.boot != boot and not last.clean
