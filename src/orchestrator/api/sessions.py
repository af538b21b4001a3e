"""Sessions and their transcripts."""

from datetime import UTC, datetime

import msgspec
from starlette.types import ASGIApp

from orchestrator.api.calls import Call, required
from orchestrator.api.problems import json_response
from orchestrator.api.shapes import (
    MessageAnswer,
    MessagesAnswer,
    PostedAnswer,
    PostMessageBody,
    SessionAnswer,
    SessionsAnswer,
    SessionTokenAnswer,
    SessionTokenBody,
)
from orchestrator.core import values
from orchestrator.core.records import Message, Session

_SCOPES = ["read", "invoke"]


async def messages(call: Call) -> ASGIApp:
    """Return the newest messages before a cursor, oldest first."""
    page = await call.engine.sessions.messages(
        call.session_id(),
        call.tenant,
        limit=call.number("limit", 50, 1, 1000),
        before=call.query("before"),
    )
    return json_response(
        MessagesAnswer(messages=[_message(m) for m in page.messages], has_more=page.has_more)
    )


async def post(call: Call) -> ASGIApp:
    """Add a message without running anything."""
    body = await call.body(PostMessageBody)
    message = await call.engine.sessions.post(
        call.session_id(),
        call.tenant,
        role=required(body.role, "role"),
        content=values.content(body.content, "content"),
        run_id=body.run_id,
        metadata=body.metadata,
    )
    return json_response(
        PostedAnswer(message_id=message.message_id, created_at=rfc3339(message.created_at))
    )


async def token(call: Call) -> ASGIApp:
    """Make a token for one session, for a browser or a device."""
    body = await call.body(SessionTokenBody, optional=True)
    text, claims = await call.engine.tokens.for_session(
        call.session_id(),
        call.caller,
        scopes=_SCOPES if body.scopes is None else body.scopes,
        ttl_s=body.ttl_s,
        user_id=body.user_id,
    )
    return json_response(
        SessionTokenAnswer(
            token=text.reveal(),
            session_id=claims.session_id,
            scopes=claims.scopes,
            expires_at=claims.expires_at,
            user_id=claims.user_id,
        ),
        201,
    )


async def show(call: Call) -> ASGIApp:
    """Return one session, and the cursor behind all that its stream has by now."""
    session = await call.engine.sessions.get(call.session_id(), call.tenant)
    cursor = await call.engine.tails.cursor(call.tenant, session.session_id)
    return json_response(msgspec.structs.replace(_session(session), cursor=cursor))


async def find(call: Call) -> ASGIApp:
    """Return sessions, newest first."""
    page = await call.engine.sessions.find(
        call.tenant, cursor=call.query("cursor"), limit=call.number("limit", 50, 1, 1000)
    )
    return json_response(
        SessionsAnswer(
            sessions=[_session(session) for session in page.items],
            has_more=page.next_cursor is not None,
            next_cursor=page.next_cursor,
        )
    )


def rfc3339(ts: int) -> str:
    """Return milliseconds UTC as RFC 3339 text."""
    moment = datetime.fromtimestamp(ts / 1000, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _message(message: Message) -> MessageAnswer:
    return MessageAnswer(
        message_id=message.message_id,
        session_id=message.session_id,
        run_id=message.run_id,
        role=message.role,
        content=message.content,
        created_at=rfc3339(message.created_at),
        metadata=message.metadata,
    )


def _session(session: Session) -> SessionAnswer:
    return SessionAnswer(
        session_id=session.session_id,
        user_id=session.user_id,
        created_at=session.created_at,
        updated_at=session.updated_at,
    )
