"""The audit log: read it, and walk along its chain."""

from starlette.types import ASGIApp

from orchestrator.api.calls import Call
from orchestrator.api.problems import json_response
from orchestrator.api.shapes import AuditAnswer, AuditEntryAnswer, VerifiedAnswer
from orchestrator.core import values
from orchestrator.core.records import AuditEntry
from orchestrator.engine import Verified


async def page(call: Call) -> ASGIApp:
    """Return entries of the caller's tenant, oldest first."""
    limit = call.number("limit", 100, 1, 1000)
    found = await call.engine.audit.page(
        call.tenant,
        after=call.number("cursor", 0, 0, values.NUMBER_MAX),
        action=call.query("action"),
        limit=limit + 1,
    )
    entries = found[:limit]
    return json_response(
        AuditAnswer(
            entries=[entry_answer(entry) for entry in entries],
            has_more=len(found) > limit,
            next_cursor=str(entries[-1].seq) if len(found) > limit else None,
        )
    )


async def verify(call: Call) -> ASGIApp:
    """Say whether every entry of the caller's tenant is as it was written."""
    return json_response(verified_answer(await call.engine.audit.verify(call.tenant)))


def entry_answer(entry: AuditEntry) -> AuditEntryAnswer:
    """Return the wire form of an entry."""
    return AuditEntryAnswer(
        seq=entry.seq,
        at=entry.at,
        tenant=entry.tenant,
        actor=entry.actor,
        action=entry.action,
        target=entry.target,
        detail=entry.detail,
        hash=entry.hash.hex(),
    )


def verified_answer(verified: Verified) -> VerifiedAnswer:
    """Return the wire form of a walk along a chain."""
    return VerifiedAnswer(
        ok=verified.broken_at is None,
        tenant=verified.tenant,
        entries=verified.entries,
        head=verified.head,
        broken_at=verified.broken_at,
    )
