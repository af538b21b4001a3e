"""Commits a batch of ops: again where a connection or another transaction broke it."""

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final

import asyncpg

from orchestrator.core.errors import Unavailable
from orchestrator.core.ops import Op, Outcome
from orchestrator.core.states import OPEN
from orchestrator.stores.postgres import faults
from orchestrator.stores.postgres.apply import Applier, Refusal
from orchestrator.stores.postgres.buckets import Buckets
from orchestrator.stores.postgres.finishing import COPY_ROWS, Fenced, Missed, finish, write_words
from orchestrator.stores.postgres.heads import Head
from orchestrator.stores.postgres.line import Line
from orchestrator.stores.postgres.pool import Connection
from orchestrator.stores.postgres.segments import bucket_of
from orchestrator.stores.postgres.unsettled import Sent, Unsettled
from orchestrator.stores.postgres.words import Words, words_of

REDOS_MAX: Final = 10
REDO_S: Final = 10.0
"""Seconds after which a batch that others keep from being committed is refused."""
_HEADS_MAX: Final = 100_000
_DRIVER: Final = (asyncpg.PostgresError, asyncpg.InterfaceError, OSError)


class _Unknown(Exception):
    """The connection was lost while a commit was on its way; `sent` says what it would lead to."""

    def __init__(self, sent: Sent) -> None:
        super().__init__(sent.number)
        self.sent = sent


class Committer:
    """Makes one transaction of a batch, on the writer's connection.

    A batch that changes state locks its runs, judges the guards and writes. Words alone go in one
    statement, with the heads that we left their runs at and with the guards beside them; where a
    head is another one by now, nothing is written, and the batch goes the long way.
    """

    def __init__(self, line: Line, buckets: Buckets, unsettled: Unsettled) -> None:
        self._line = line
        self._buckets = buckets
        self._unsettled = unsettled
        self._heads: dict[str, Head] = {}
        self.commits = self.redos = self.missed = self.words = 0

    async def commit(self, ops: Sequence[Op], away: Callable[[], None]) -> Sequence[Outcome]:
        """Return what became of each op; raises what their callers are told.

        `away` is called whenever the database cannot be reached to ask what became of them.
        """
        until = time.perf_counter() + REDO_S
        for left in reversed(range(REDOS_MAX)):
            try:
                return await self._once(ops)
            except _Unknown as unknown:
                if await self._unsettled.settle(unknown.sent, away):
                    self.commits += 1
                    return unknown.sent.outcomes
            except (*_DRIVER, Fenced) as error:
                over = not left or time.perf_counter() > until
                if faults.is_read_only(error):
                    self._line.drop()
                if over or not self._may_redo(error):
                    raise
            self.redos += 1
        raise Unavailable(faults.AWAY)

    def stats(self) -> dict[str, float]:
        """Return how often a transaction was made, and how often one had to be made again."""
        return {
            "commits_total": self.commits,
            "commits_of_words_total": self.words,
            "commit_redos_total": self.redos,
            "commit_heads_missed_total": self.missed,
        }

    def _may_redo(self, error: Exception) -> bool:
        if faults.lacks_bucket(error):
            self._buckets.forget()
            return True
        return isinstance(error, Fenced) or faults.is_lost(error) or faults.is_contended(error)

    async def _once(self, ops: Sequence[Op]) -> Sequence[Outcome]:
        lacking = self._buckets.lacking(bucket_of(op.run_id) for op in ops if op.run_id)
        if lacking:
            await self._buckets.ensure(lacking)
        words = words_of(ops, self._heads)
        if words is not None and len(words.rows) <= COPY_ROWS:
            try:
                return await self._words(ops, words)
            except Missed:
                self.missed += 1
                for run_id in words.runs:
                    self._heads.pop(run_id, None)
        return await self._transaction(ops)

    async def _words(self, ops: Sequence[Op], words: Words) -> Sequence[Outcome]:
        db, number = await self._line.connection(), self._line.next()

        async def statement() -> None:
            await write_words(db, words.rows, words.runs, self._line.writer, number)

        await self._last(statement, Sent(number, ops, words.outcomes))
        self._keep({run_id: now for run_id, (_, now) in words.runs.items()})
        self.words += 1
        return words.outcomes

    async def _transaction(self, ops: Sequence[Op]) -> Sequence[Outcome]:
        db, number = await self._line.connection(), self._line.next()
        applier = Applier(db)
        outcomes: list[Outcome]
        try:
            await db.execute("BEGIN")
            await applier.begin(ops)
            if len(ops) == 1:  # a refusal undoes all there is
                outcomes = [await applier.whole(ops[0])]
            else:
                outcomes = [await applier.apply(op) for op in ops]
            await finish(db, applier.rows, applier.moved.values(), self._line.writer, number)
        except Refusal as refusal:
            await self._leave(db, lost=False)
            return [refusal.refused]
        except Exception as error:
            await self._leave(db, lost=faults.is_lost(error))
            raise

        async def commit() -> None:
            if await db.execute("COMMIT") != "COMMIT":  # the server has rolled it back
                raise Fenced

        await self._last(commit, Sent(number, ops, outcomes))
        self._keep(applier.heads)
        return outcomes

    async def _last(self, statement: Callable[[], Awaitable[None]], sent: Sent) -> None:
        """Run the statement after which all is on the disk; raises _Unknown without an answer."""
        try:
            await statement()
        except _DRIVER as error:
            if faults.is_lost(error):
                self._line.drop()
                raise _Unknown(sent) from error
            raise
        self.commits += 1

    async def _leave(self, db: Connection, *, lost: bool) -> None:
        """Undo what a transaction has done; a connection that cannot is let go."""
        if not lost and not db.is_closed():
            try:
                await db.execute("ROLLBACK")
            except _DRIVER:
                pass
            else:
                return
        self._line.drop()

    def _keep(self, heads: Mapping[str, Head]) -> None:
        """Remember where runs were left, for as long as they are open."""
        if len(self._heads) > _HEADS_MAX:
            self._heads.clear()
        for run_id, head in heads.items():
            if head.status in OPEN:
                self._heads[run_id] = head
            else:
                self._heads.pop(run_id, None)
