"""The store on one SQLite file: a writer, a reader, a lock, and what keeps the file in order."""

import asyncio
import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import apsw
import msgspec

from orchestrator.core.batch import Batch
from orchestrator.core.errors import InvalidRequest, StorageFull, StoreFailure, Unavailable
from orchestrator.core.ops import Op, Outcome
from orchestrator.core.records import Lease, R, Timer
from orchestrator.ports import Claimed, Done, Trimmed, Where, World
from orchestrator.stores.sqlite import claims, migrating, opening, retention, schema
from orchestrator.stores.sqlite.apply import Applier
from orchestrator.stores.sqlite.checkpoint import Checkpointer
from orchestrator.stores.sqlite.location import Location, locate
from orchestrator.stores.sqlite.lock import LockFile
from orchestrator.stores.sqlite.reader import Reader
from orchestrator.stores.sqlite.sync import Sync, Syncer, fdatasync
from orchestrator.stores.sqlite.writer import Writer

_DISK_LOOK_S: Final = 1.0


class _Writing:
    """What only the process that holds the lock has: the writer and what serves it."""

    def __init__(
        self, location: Location, world: World, sync: Sync, *, full: bool, migrate: bool
    ) -> None:
        self._world = world
        self._boot = world.boot()
        schema.inspect(location)  # nothing of ours is left beside a file that is refused
        self.lock = LockFile.take(location.path)
        try:
            migrating.prepare(location, migrate=migrate)
            db = opening.open_writing(location, self._boot, world.now())
            # After the first commit: only then is there a log to sync.
            self.syncer = Syncer(f"{location.path}-wal", sync)
            self.writer = Writer(db, self.syncer, full=full)
            self.checkpointer = Checkpointer(
                schema.connect(location, synchronous="NORMAL"), self.writer, self.syncer
            )
        except BaseException:
            self.lock.release()
            raise

    def stats(self) -> dict[str, float]:
        return self.writer.stats() | self.checkpointer.stats() | self.syncer.stats()

    async def close(self) -> None:
        await self.checkpointer.close()
        with suppress(StoreFailure, Unavailable):  # whoever was promised something has heard it
            await self.writer.work(self._let_go)
        await self.writer.close()
        await self.syncer.close()
        self.lock.release()

    def _let_go(self, applier: Applier) -> None:
        opening.mark(applier.connection, self._boot, self._world.now(), clean=True)


class SQLiteStore:
    """`ports.Store` on SQLite."""

    in_order = True

    def __init__(
        self,
        location: Location,
        world: World,
        watermark: int,
        reader: Reader,
        writing: _Writing | None,
    ) -> None:
        self._location = location
        self._world = world
        self._watermark = watermark
        self._reader = reader
        self._writing = writing
        self._writer = writing.writer if writing is not None else None
        self._disk = (float("-inf"), False)

    def now(self) -> int:
        """Return this machine's time."""
        return self._world.now()

    async def commit(self, *ops: Op) -> list[Outcome]:
        """Commit ops in one transaction."""
        if any(op.create is not None for op in ops) and self._low_on_disk():
            raise StorageFull(
                f"less than {self._watermark} bytes are free on the disk (MIN_FREE_DISK): "
                "no new runs are taken until there is more; those in flight go on"
            )
        return await self._must_write().commit(ops)

    def append(self, op: Op, done: Done) -> None:
        """Commit an op of the delta class."""
        self._must_write().append(op, done)

    async def read(self, run_id: str, after: int, limit: int = 1000) -> Batch:
        """Return events of a run, as far as they may be shown."""
        found = await self._reader.read(run_id, after, limit)
        if self._writer is None:
            return found
        await self._writer.returned()
        end = self._writer.held_from(run_id)  # looked at last: the read may have seen more
        return found if end is None else found.before(end)

    async def get(self, kind: type[R], *key: Any, deciding: bool = False) -> R | None:
        """Return the record of that key."""
        found = self._reader.get(kind, key)
        if not deciding:
            await self._shown()
        return found

    async def find(
        self,
        kind: type[R],
        *where: Where,
        order: str = "",
        limit: int = 100,
        deciding: bool = False,
    ) -> list[R]:
        """Return records that meet every condition."""
        found = self._reader.find(kind, where, order, limit)
        if not deciding:
            await self._shown()
        return found

    async def count(self, kind: type[R], *where: Where) -> int:
        """Return how many records meet every condition."""
        found = self._reader.count(kind, where)
        await self._shown()
        return found

    async def _shown(self) -> None:
        if self._writer is not None:
            await self._writer.shown()

    async def claim(self, owner: str, limit: int, run_ids: Sequence[str] = ()) -> list[Claimed]:
        """Take runs that may run now."""
        now = self.now()
        # What a claim leads to is committed after it, so the claim itself need not be waited for.
        return await self._must_write().work(
            lambda db: claims.claim(db, owner, now, limit, run_ids), synced=False
        )

    async def renew(self, owner: str, ttl_ms: int) -> None:
        """Say that `owner` lives."""
        expires = self.now() + ttl_ms if ttl_ms else 0
        await self._must_write().work(
            lambda db: claims.renew(db.connection, Lease(owner=owner, expires_at=expires)),
            synced=False,
        )

    async def due(self, limit: int = 100) -> list[Timer]:
        """Return timers whose time has come."""
        return self._reader.find(Timer, [("due_at", "<=", self.now())], "due_at", limit)

    async def trim(self, runs_before: int, deltas_before: int, limit: int = 100) -> Trimmed:
        """Remove what retention says, and give the pages back."""

        def work(db: Applier) -> Trimmed:
            trimmed = retention.trim(db.connection, runs_before, deltas_before, limit)
            db.connection.execute("PRAGMA incremental_vacuum(1000)").fetchall()
            return trimmed

        return await self._must_write().work(work, slow=True)

    async def backup(self, path: str) -> None:
        """Copy the database to a new file while it is in use."""

        def copy() -> None:
            try:
                # Made here, so that of two who name the same file one is refused.
                os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
            except FileExistsError:
                raise InvalidRequest(f"{path} exists already; name a new file") from None
            except OSError as error:
                raise InvalidRequest(f"{path} cannot be made: {error.strerror}") from error
            source = schema.connect(self._location, read_only=True)
            try:
                schema.backup(source, path)
            except (apsw.CantOpenError, apsw.FullError, apsw.IOError) as error:
                Path(path).unlink(missing_ok=True)
                raise Unavailable(f"the backup to {path} failed: {error}") from error
            finally:
                source.close()

        await asyncio.get_running_loop().run_in_executor(None, copy)

    async def probe(self) -> None:
        """Commit something that changes nothing else."""
        now = self.now()
        await self._must_write().work(lambda db: claims.probe(db.connection, now))

    def stats(self) -> dict[str, float]:
        """Return counters and sizes."""
        sizes = {
            "database_bytes": _size(self._location.path),
            "wal_bytes": _size(f"{self._location.path}-wal"),
        }
        return sizes | (self._writing.stats() if self._writing is not None else {})

    async def close(self) -> None:
        """Finish what is in flight and let go."""
        await self._reader.close()
        if self._writing is not None:
            await self._writing.close()  # last: whoever may write folds the log into the file

    def _must_write(self) -> Writer:
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


async def open_store(
    url: str,
    *,
    world: World,
    watermark: int = 0,
    durability: str = "balanced",
    migrate: bool = True,
    sync: Sync = fdatasync,
    vfs: str | None = None,
) -> SQLiteStore:
    """Open the database that `DATABASE_URL` names; raises DatabaseRefused with a sentence.

    `durability` `full` answers an agent's words from the disk, too. Without `migrate` a database of
    an older schema is refused. `sync` and `vfs` are the ways to the disk, which rigs record and
    break.
    """
    location = msgspec.structs.replace(locate(url), vfs=vfs)
    full = durability == "full"
    with schema.refusing(location):
        writing = None
        if location.mode == "ro":
            migrating.prepare(location)
        else:
            writing = _Writing(location, world, sync, full=full, migrate=migrate)
        return _opened(location, world, watermark, writing)


def _opened(
    location: Location, world: World, watermark: int, writing: _Writing | None
) -> SQLiteStore:
    beside = writing.writer.connection if writing is not None else lambda: None
    reader = Reader(lambda: schema.connect(location, read_only=True), beside)
    return SQLiteStore(location, world, watermark, reader, writing)
