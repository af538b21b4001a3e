"""The store on a PostgreSQL database: a writer, readers, and the database's clock."""

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Any, Final
from uuid import UUID

from orchestrator.core.batch import Batch
from orchestrator.core.errors import DatabaseRefused, InvalidRequest, Unavailable
from orchestrator.core.ops import Op, Outcome
from orchestrator.core.records import R, Timer
from orchestrator.ports import Claimed, Done, Trimmed, Where, World
from orchestrator.stores.postgres import claims, retention, schema
from orchestrator.stores.postgres.buckets import Buckets
from orchestrator.stores.postgres.clock import Clock, DatabaseClock
from orchestrator.stores.postgres.committer import Committer
from orchestrator.stores.postgres.line import Line
from orchestrator.stores.postgres.location import locate, shown
from orchestrator.stores.postgres.pool import Pool
from orchestrator.stores.postgres.reader import Reader
from orchestrator.stores.postgres.unsettled import Unsettled
from orchestrator.stores.postgres.writer import Writer

POOL: Final = 8
"""Connections beside the writer's own."""
_FORGET_MS: Final = 30 * 86_400_000
"""After so long without a commit a writer's row goes; nobody of that time waits for an answer."""


class PostgresStore:
    """`ports.Store` on PostgreSQL; many processes may share one database."""

    in_order = False

    def __init__(
        self, pool: Pool, writer: Writer, world: World, clock: Clock, owned: AsyncExitStack
    ) -> None:
        self._pool = pool
        self._writer = writer
        self._reader = Reader(pool)
        self._world = world
        self._clock = clock
        self._owned = owned

    def now(self) -> int:
        """Return the database's time, off by half a round trip at most."""
        return self._clock.now()

    async def commit(self, *ops: Op) -> list[Outcome]:
        """Commit ops in one transaction."""
        return await self._writer.commit(ops)

    def append(self, op: Op, done: Done) -> None:
        """Commit an op of the delta class."""
        self._writer.append(op, done)

    async def read(self, run_id: str, after: int, limit: int = 1000) -> Batch:
        """Return events of a run."""
        return await self._reader.read(run_id, after, limit)

    async def get(self, kind: type[R], *key: Any, deciding: bool = False) -> R | None:
        """Return the record of that key; it is on the disk in any case."""
        del deciding
        return await self._reader.get(kind, key)

    async def find(
        self,
        kind: type[R],
        *where: Where,
        order: str = "",
        limit: int = 100,
        deciding: bool = False,
    ) -> list[R]:
        """Return records that meet every condition; they are on the disk in any case."""
        del deciding
        return await self._reader.find(kind, where, order, limit)

    async def count(self, kind: type[R], *where: Where) -> int:
        """Return how many records meet every condition."""
        return await self._reader.count(kind, where)

    async def claim(self, owner: str, limit: int, run_ids: Sequence[str] = ()) -> list[Claimed]:
        """Take runs that may run now."""
        async with self._pool.connection() as db:
            return await claims.claim(db, owner, self._clock.given(), limit, run_ids)

    async def renew(self, owner: str, ttl_ms: int) -> None:
        """Say that `owner` lives, on a connection that no batch keeps waiting."""
        async with self._pool.connection() as db:
            began = self._world.monotonic()
            told = await claims.renew(db, owner, self._clock.given(), ttl_ms)
            self._clock.heard(began, self._world.monotonic(), told)

    async def due(self, limit: int = 100) -> list[Timer]:
        """Return timers whose time has come."""
        return await self._reader.due(self._clock.given(), limit)

    async def trim(self, runs_before: int, deltas_before: int, limit: int = 100) -> Trimmed:
        """Remove what retention says, and days of the log that nothing is left of."""
        async with self._pool.connection() as db:
            trimmed = await retention.trim(db, runs_before, deltas_before, limit)
            if runs_before and trimmed.runs < limit:
                await retention.drop_days(db, self.now())
            return trimmed

    async def backup(self, path: str) -> None:
        """Refuse: PostgreSQL has its own, better way."""
        raise InvalidRequest(
            f"a PostgreSQL database is not copied to {path} by this server; "
            "use pg_dump, which copies it while it is in use: pg_dump --format=custom"
        )

    async def probe(self) -> None:
        """Commit something that changes nothing else."""
        await _probe(self._pool, self._world, self._clock)

    def stats(self) -> dict[str, float]:
        """Return counters and sizes."""
        return self._writer.stats() | self._pool.stats()

    async def close(self) -> None:
        """Finish what is in flight and let go."""
        await self._writer.close()
        await self._owned.aclose()


async def open_store(
    url: str,
    *,
    world: World,
    pool: int = POOL,
    clock: Clock | None = None,
    migrate: bool = True,
) -> PostgresStore:
    """Open the database that `DATABASE_URL` names; raises DatabaseRefused with a sentence.

    `pool` is how many connections there are beside the writer's. `clock` is the time to judge
    leases and deadlines by, the database's own unless tests bring another. Without `migrate` a
    database of an older schema is refused.
    """
    address = locate(url)
    await schema.prepare(address, migrate=migrate)
    async with AsyncExitStack() as stack:
        connections = Pool(address, pool)
        stack.push_async_callback(connections.close)
        time = clock if clock is not None else DatabaseClock(world)
        try:  # before there are tasks, whose group would wrap the refusal
            line = Line(address, await _introduced(connections))
            await _probe(connections, world, time)
        except Unavailable as error:
            raise DatabaseRefused(f"{shown(address)} cannot be written: {error}") from error
        tasks = await stack.enter_async_context(asyncio.TaskGroup())
        unsettled = Unsettled(line, world.monotonic, world.sleep)
        committer = Committer(line, Buckets(connections), unsettled)
        writer = Writer(line, committer, unsettled, tasks)
        return PostgresStore(connections, writer, world, time, stack.pop_all())


async def _probe(pool: Pool, world: World, clock: Clock) -> None:
    """Commit one row of no meaning, and note what time the database has."""
    async with pool.connection() as db:
        began = world.monotonic()
        told = await claims.probe(db, clock.given())
        clock.heard(began, world.monotonic(), told)


async def _introduced(pool: Pool) -> UUID:
    """Return the name of a new writer, and forget those that have long been gone."""
    async with pool.connection() as db:
        name: UUID = await db.fetchval("SELECT gen_random_uuid()")
        await db.execute(
            "DELETE FROM commits WHERE at < (extract(epoch FROM now()) * 1000)::bigint - $1",
            _FORGET_MS,
        )
        return name
