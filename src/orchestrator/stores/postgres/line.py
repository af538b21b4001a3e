"""The writer's own connection: made again when it is lost, and asked what became of a batch."""

from typing import Any, Final
from uuid import UUID

import asyncpg

from orchestrator.core.errors import StoreFailure, Unavailable
from orchestrator.stores.postgres import faults
from orchestrator.stores.postgres.clock import NOW
from orchestrator.stores.postgres.pool import CONNECT_S, Connection, connect

_FENCE: Final = f"""
INSERT INTO commits AS c (writer, number, fenced, at) VALUES ($1, 0, $2, {NOW.format(mark="NULL")})
ON CONFLICT (writer) DO UPDATE SET fenced = excluded.fenced
RETURNING number
"""


class Line:
    """One connection at a time, and the numbers of the batches that went over it.

    Numbers rise, and one batch is under way at a time; so the row of this writer in `commits` says
    of the last one whether it is there.
    """

    def __init__(self, url: str, writer: UUID) -> None:
        self.writer = writer
        self.number = 0
        self.lost = 0
        self._url = url
        self._open: Connection | None = None

    async def connection(self) -> Connection:
        """Return the connection; raises Unavailable while there is none to be had."""
        if self._open is not None and self._open.is_closed():
            self.drop()
        if self._open is None:
            try:
                # Few statements, all by key: their plans are made once.
                self._open = await connect(
                    self._url,
                    application_name="orchestrator writer",
                    plan_cache_mode="force_generic_plan",
                )
            except Exception as error:
                if _will_not_pass(error):
                    raise StoreFailure(f"the database lets us in no more: {error}") from error
                raise Unavailable(faults.AWAY) from error
        return self._open

    def next(self) -> int:
        """Return the number of a batch that is about to begin."""
        self.number += 1
        return self.number

    def drop(self) -> None:
        """Let a connection go whose state is not known."""
        if self._open is not None:
            self.lost += 1
            self._open.terminate()
            self._open = None

    async def committed(self, number: int) -> bool:
        """Return whether a batch whose answer was lost is there, and see to it that it stays so.

        Waits for a transaction that is still at work; whatever may yet arrive of one that is not is
        fenced off. Raises Unavailable when that cannot be said now.
        """
        db = await self.connection()
        try:
            found: int = await db.fetchval(_FENCE, self.writer, number)
        except Exception as error:
            self.drop()
            raise _passing(error) from error
        return found == number

    async def close(self) -> None:
        """Say goodbye to the server."""
        if self._open is not None and not self._open.is_closed():
            try:
                await self._open.close(timeout=CONNECT_S)
            except (asyncpg.PostgresError, OSError, TimeoutError):
                self._open.terminate()
        self._open = None


def _passing(error: Exception) -> Exception:
    told: Any = faults.judged(error)
    return told if isinstance(told, StoreFailure) else Unavailable(faults.AWAY)


def _will_not_pass(error: Exception) -> bool:
    """Return whether the database is gone for good, as far as this process can tell."""
    return isinstance(error, asyncpg.InvalidCatalogNameError)
