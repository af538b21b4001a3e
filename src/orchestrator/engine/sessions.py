"""Conversations and their transcripts."""

from typing import Any

import msgspec

from orchestrator.core import ids, values
from orchestrator.core.access import TENANT
from orchestrator.core.errors import InvalidRequest, SessionNotFound, Unavailable
from orchestrator.core.ops import Insert, Op, Patch, Refused
from orchestrator.core.records import NEXT, Message, Session
from orchestrator.engine.ledger import Ledger
from orchestrator.engine.runs import Page, page_of
from orchestrator.ports import Where


class MessagePage(msgspec.Struct, frozen=True):
    """Messages, oldest first; `has_more` says that older ones exist."""

    messages: list[Message]
    has_more: bool


class Sessions:
    """The sessions of a tenant."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._store = ledger.store

    async def get(self, session_id: str, tenant: str = TENANT) -> Session:
        """Return a session; raises SessionNotFound."""
        session = await self._store.get(Session, tenant, session_id)
        if session is None:
            raise SessionNotFound(f"session {session_id} not found")
        return session

    async def find(
        self, tenant: str = TENANT, *, cursor: str | None = None, limit: int = 50
    ) -> Page[Session]:
        """Return sessions, newest first; the cursor names the last one seen."""
        where: list[Where] = [("tenant", "=", tenant)]
        if cursor:
            where.append(("created_at", "<=", (await self.get(cursor, tenant)).created_at))
        found = await self._store.find(Session, *where, order="-created_at", limit=limit + 2)
        fresh = _after(found, cursor)
        return page_of(fresh, limit, lambda session: session.session_id)

    async def messages(
        self,
        session_id: str,
        tenant: str = TENANT,
        *,
        limit: int = 50,
        before: str | None = None,
    ) -> MessagePage:
        """Return the newest `limit` messages before the message `before`, oldest first.

        A session nobody has spoken in is empty; an unknown `before` is InvalidRequest.
        """
        where: list[Where] = [("tenant", "=", tenant), ("session_id", "=", session_id)]
        if before:
            where.append(("pos", "<", await self._position(before, session_id, tenant)))
        newest = await self._store.find(Message, *where, order="-pos", limit=limit + 1)
        return MessagePage(newest[:limit][::-1], len(newest) > limit)

    async def _position(self, message_id: str, session_id: str, tenant: str) -> int:
        message = await self._store.get(Message, message_id)
        if message is None or (message.tenant, message.session_id) != (
            tenant,
            session_id,
        ):
            raise InvalidRequest(f"before: message {message_id} is not in session {session_id}")
        return message.pos

    async def post(
        self,
        session_id: str,
        tenant: str = TENANT,
        *,
        role: str,
        content: Any,
        run_id: str | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> Message:
        """Add a message to a transcript without running anything; the session may be new."""
        values.session_id(session_id)
        values.role(role, "role")
        now = self._ledger.world.now()
        message = Message(
            message_id=self._ledger.mint("msg", ids.shard_of(tenant, session_id)),
            tenant=tenant,
            session_id=session_id,
            run_id=run_id,
            role=role,
            content=values.content(content, "content"),
            metadata=metadata,
            pos=NEXT,
            created_at=now,
        )
        session = Session(tenant=tenant, session_id=session_id, created_at=now, updated_at=now)
        touched = Patch(Session, (tenant, session_id), {"updated_at": now})
        op = Op(writes=(Insert(session, absent_ok=True), Insert(message), touched))
        outcome = (await self._store.commit(op))[0]
        if isinstance(outcome, Refused):
            raise Unavailable(f"the message was not stored ({outcome.why}); send it again")
        return message


def _after(found: list[Session], cursor: str | None) -> list[Session]:
    """Return what follows the session named by `cursor`; several may share its millisecond."""
    names = [session.session_id for session in found]
    return found[names.index(cursor) + 1 :] if cursor in names else found
