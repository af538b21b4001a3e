"""Connections: made with our settings, lent for single statements, never more than were agreed."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final, TypeAlias

import asyncpg

from orchestrator.core.errors import Unavailable
from orchestrator.stores.postgres import faults

Connection: TypeAlias = "asyncpg.Connection[Any]"
CONNECT_S: Final = 5.0
STATEMENT_S: Final = 15.0
WAIT_S: Final = 5.0
"""How long somebody waits for a connection to become free."""
WAITING_MAX: Final = 2000
SETTINGS: Final = {
    "application_name": "orchestrator",
    "synchronous_commit": "on",  # whatever the server's own setting is
    "timezone": "UTC",
    "jit": "off",  # every statement is short
    "default_transaction_isolation": "read committed",  # rows are locked before they are judged
    "idle_session_timeout": "0",
    "lock_timeout": "3s",
    "statement_timeout": "15s",
    # A replica that was cut off in the middle of a batch must not hold its runs for long.
    "idle_in_transaction_session_timeout": "10s",
}


async def connect(url: str, **settings: str) -> Connection:
    """Return a new connection; raises what the driver raises."""
    return await asyncpg.connect(
        url,
        timeout=CONNECT_S,
        command_timeout=STATEMENT_S,
        statement_cache_size=500,
        server_settings=SETTINGS | settings,
    )


class Pool:
    """Lends connections to readers; who waits too long, or behind too many, hears Unavailable.

    A borrower holds a connection for its own statements and across nothing else.
    """

    def __init__(self, url: str, size: int) -> None:
        self._url = url
        self._size = size
        self._free = asyncio.Semaphore(size)
        self._idle: list[Connection] = []
        self._waiting = self._used = 0
        self.opened = self.lost = self.refused = self.busiest = 0

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """Lend a connection; errors come out as the port names them."""
        await self._turn()
        self._used += 1
        self.busiest = max(self.busiest, self._used)
        try:
            connection = await self._one()
            try:
                yield connection
            except BaseException as error:
                # Whoever left in the middle of something leaves nothing that another may find.
                broken = connection.is_closed() or connection.is_in_transaction() or _cut()
                if broken or faults.is_read_only(error):
                    self._lose(connection)
                raise
            finally:
                if not connection.is_closed():
                    self._idle.append(connection)
        except Exception as error:
            told = faults.judged(error)
            if faults.is_lost(error) or faults.is_read_only(error):
                self._forget()
            if told is error:
                raise
            raise told from error
        finally:
            self._used -= 1
            self._free.release()

    async def close(self) -> None:
        """Close the idle connections; nobody borrows any more."""
        idle, self._idle = self._idle, []
        for connection in idle:
            try:
                await connection.close(timeout=CONNECT_S)
            except (asyncpg.PostgresError, OSError, TimeoutError):
                connection.terminate()

    def stats(self) -> dict[str, float]:
        """Return how much of the pool is used."""
        return {
            "pool_size": self._size,
            "pool_used": self._used,
            "pool_busiest": self.busiest,
            "pool_waiting": self._waiting,
            "pool_refused_total": self.refused,
            "connections_opened_total": self.opened,
            "connections_lost_total": self.lost,
        }

    async def _turn(self) -> None:
        if self._waiting >= WAITING_MAX:
            self.refused += 1
            raise Unavailable("too many wait for a connection to the database; try again")
        self._waiting += 1
        try:
            async with asyncio.timeout(WAIT_S):
                await self._free.acquire()
        except TimeoutError:
            self.refused += 1
            raise Unavailable(
                f"all {self._size} connections to the database were busy for {WAIT_S:.0f} s"
            ) from None
        finally:
            self._waiting -= 1

    async def _one(self) -> Connection:
        while self._idle:
            connection = self._idle.pop()
            if not connection.is_closed():
                return connection
            self.lost += 1
        self.opened += 1
        try:
            return await connect(self._url)
        except Exception as error:
            raise Unavailable(faults.AWAY) from error

    def _lose(self, connection: Connection) -> None:
        self.lost += 1
        connection.terminate()

    def _forget(self) -> None:
        """Let the others go, too: what ended one connection has mostly ended all."""
        idle, self._idle = self._idle, []
        for connection in idle:
            self._lose(connection)


def _cut() -> bool:
    """Return whether the borrower is being cancelled in the middle of a statement."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
