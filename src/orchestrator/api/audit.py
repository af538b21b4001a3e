"""The audit log: read it, and walk along its chain."""

from typing import Any

from starlette.types import ASGIApp

from orchestrator.api.calls import Call
from orchestrator.api.problems import json_response
from orchestrator.api.shapes import AuditAnswer, AuditEntryAnswer, VerifiedAnswer
from orchestrator.core import jsontext, values
from orchestrator.core.errors import Conflict
from orchestrator.core.records import AuditEntry
from orchestrator.engine import Verified


async def page(call: Call) -> ASGIApp:
    """Return entries of one tenant, oldest first."""
    limit = call.number("limit", 100, 1, 1000)
    found = await call.engine.audit.page(
        _tenant(call),
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
    """Say whether every entry of one tenant is as it was written; who may, hears of the others."""
    audit = call.engine.audit
    others = await audit.tenants() if call.caller.root else []
    return json_response(verified_answer(await audit.verify(_tenant(call)), others))


def _tenant(call: Call) -> str:
    return call.caller.tenant_named(call.query("tenant"))


def entry_answer(entry: AuditEntry) -> AuditEntryAnswer:
    """Return the wire form of an entry."""
    return AuditEntryAnswer(
        seq=entry.seq,
        at=entry.at,
        tenant=entry.tenant,
        actor=entry.actor,
        action=entry.action,
        target=entry.target,
        detail=_detail(entry),
        hash=entry.hash.hex(),
    )


def _detail(entry: AuditEntry) -> dict[str, Any]:
    try:
        return jsontext.decode(entry.detail, dict[str, Any])
    except ValueError as error:
        raise Conflict(
            f"entry {entry.seq} of the audit log cannot be read any more: somebody changed it; "
            "./orchestrator audit verify says more"
        ) from error


def verified_answer(verified: Verified, tenants: list[str]) -> VerifiedAnswer:
    """Return the wire form of a walk along a chain."""
    return VerifiedAnswer(
        ok=verified.broken_at is None,
        tenant=verified.tenant,
        entries=verified.entries,
        head=verified.head,
        broken_at=verified.broken_at,
        tenants=tenants,
    )
