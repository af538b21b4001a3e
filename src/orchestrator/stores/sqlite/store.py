"""The store on one SQLite file: a writer, a reader, a lock, and what keeps the file in order."""

import asyncio
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import apsw

from orchestrator.core.errors import InvalidRequest, StorageFull, Unavailable
from orchestrator.core.events import LogEvent
from orchestrator.core.ops import Op, Outcome
from orchestrator.core.records import Lease, R, Timer
from orchestrator.ports import Claimed, Trimmed, Where, World
from orchestrator.stores.sqlite import claims, retention, schema
from orchestrator.stores.sqlite.location import Location, locate
from orchestrator.stores.sqlite.lock import LockFile
from orchestrator.stores.sqlite.reader import Reader
from orchestrator.stores.sqlite.writer import Writer

_DISK_LOOK_S: Final = 1.0
_PROBE: Final = "PRAGMA user_version=%d"


class SQLiteStore:
    """`ports.Store` on SQLite."""

    def __init__(
        self,
        location: Location,
        world: World,
        watermark: int,
        lock: LockFile | None,
        writer: Writer | None,
        reader: Reader,
    ) -> None:
        self._location = location
        self._world = world
        self._watermark = watermark
        self._lock = lock
        self._writer = writer
        self._reader = reader
        self._disk = (float("-inf"), False)

    def now(self) -> int:
        """Return this machine's time."""
        return self._world.now()

    async def commit(self, *ops: Op) -> list[Outcome]:
        """Commit ops in one transaction."""
        if self._low_on_disk() and any(op.create is not None for op in ops):
            raise StorageFull(
                f"less than {self._watermark} bytes are free on the disk (MIN_FREE_DISK): "
                "no new runs are taken until there is more; those in flight go on"
            )
        return await self._writing().commit(ops)

    async def read(self, run_id: str, after: int, limit: int = 1000) -> list[LogEvent]:
        """Return events of a run."""
        return await self._reader.read(run_id, after, limit)

    async def get(self, kind: type[R], *key: Any, deciding: bool = False) -> R | None:  # noqa: ARG002  # every answer is on disk
        """Return the record of that key."""
        return self._reader.get(kind, key)

    async def find(
        self,
        kind: type[R],
        *where: Where,
        order: str = "",
        limit: int = 100,
        deciding: bool = False,  # noqa: ARG002  # every answer is on disk
    ) -> list[R]:
        """Return records that meet every condition."""
        return self._reader.find(kind, where, order, limit)

    async def count(self, kind: type[R], *where: Where) -> int:
        """Return how many records meet every condition."""
        return self._reader.count(kind, where)

    async def claim(self, owner: str, limit: int, run_ids: Sequence[str] = ()) -> list[Claimed]:
        """Take runs that may run now."""
        now = self.now()
        found: list[Claimed] = await self._writing().work(
            lambda db: claims.claim(db.connection, owner, now, limit, run_ids)
        )
        return found

    async def renew(self, owner: str, ttl_ms: int) -> None:
        """Say that `owner` lives."""
        expires = self.now() + ttl_ms if ttl_ms else 0
        await self._writing().work(
            lambda db: claims.renew(db.connection, Lease(owner=owner, expires_at=expires))
        )

    async def due(self, limit: int = 100) -> list[Timer]:
        """Return timers whose time has come."""
        return self._reader.find(Timer, [("due_at", "<=", self.now())], "due_at", limit)

    async def trim(self, runs_before: int, deltas_before: int, limit: int = 100) -> Trimmed:
        """Remove what retention says, and give the pages back."""

        def work(db: Any) -> Trimmed:
            trimmed = retention.trim(db.connection, runs_before, deltas_before, limit)
            db.connection.execute("PRAGMA incremental_vacuum(1000)").fetchall()
            return trimmed

        trimmed: Trimmed = await self._writing().work(work)
        return trimmed

    async def backup(self, path: str) -> None:
        """Copy the database to a new file while it is in use."""

        def copy() -> None:
            if Path(path).exists():
                raise InvalidRequest(f"{path} exists already; name a new file")
            source = schema.connect(self._location, read_only=True)
            try:
                schema.backup(source, path)
            except (apsw.CantOpenError, apsw.FullError, apsw.IOError) as error:
                raise Unavailable(f"the backup to {path} failed: {error}") from error
            finally:
                source.close()

        await asyncio.get_running_loop().run_in_executor(None, copy)

    async def probe(self) -> None:
        """Commit something that changes nothing else."""
        now = self.now()
        await self._writing().work(lambda db: claims.probe(db.connection, now))

    def stats(self) -> dict[str, float]:
        """Return counters and sizes."""
        sizes = {
            "database_bytes": _size(self._location.path),
            "wal_bytes": _size(f"{self._location.path}-wal"),
        }
        return sizes | (self._writer.stats() if self._writer is not None else {})

    async def close(self) -> None:
        """Finish what is in flight and let go."""
        await self._reader.close()
        if self._writer is not None:
            await self._writer.close()  # last: whoever may write folds the log into the file
        if self._lock is not None:
            self._lock.release()

    def _writing(self) -> Writer:
        if self._writer is None:
            raise Unavailable("the database was opened with mode=ro and cannot be written")
        return self._writer

    def _low_on_disk(self) -> bool:
        at, low = self._disk
        now = self._world.monotonic()
        if now - at >= _DISK_LOOK_S:
            low = shutil.disk_usage(Path(self._location.path).parent).free < self._watermark
            self._disk = (now, low)
        return low


def _size(path: str) -> float:
    try:
        return float(Path(path).stat().st_size)
    except FileNotFoundError:
        return 0.0


def _exclusive(location: Location) -> apsw.Connection:
    """Open the writing connection; we hold the lock, so whoever had a lease here is dead."""
    db = schema.connect(location)
    db.execute("DELETE FROM leases")
    return db


async def open_store(url: str, *, world: World, watermark: int = 0) -> SQLiteStore:
    """Open the database that `DATABASE_URL` names; raises DatabaseRefused with a sentence."""
    location = locate(url)
    lock = LockFile.take(location.path) if location.mode != "ro" else None
    try:
        schema.prepare(location)
        writer = Writer(_exclusive(location)) if lock is not None else None
        reader = Reader(lambda: schema.connect(location, read_only=True))
    except BaseException:
        if lock is not None:
            lock.release()
        raise
    return SQLiteStore(location, world, watermark, lock, writer, reader)
