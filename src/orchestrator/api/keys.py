"""Keys and stored secrets: make, list, rotate, revoke, encrypt anew."""

from starlette.types import ASGIApp

from orchestrator.api.calls import Call, required
from orchestrator.api.problems import json_response
from orchestrator.api.shapes import (
    CreateKeyBody,
    KeyAnswer,
    KeysAnswer,
    MadeKeyAnswer,
    ResealedAnswer,
    RotateKeyBody,
)
from orchestrator.core.errors import InvalidRequest
from orchestrator.core.records import Key
from orchestrator.engine import Made, NewKey


async def create(call: Call) -> ASGIApp:
    """Make a key; its text is in this answer and nowhere else."""
    body = await call.body(CreateKeyBody)
    _known_routes(call, body.limits or {})
    wanted = NewKey(
        name=required(body.name, "name"),
        role=required(body.role, "role"),
        tenant=body.tenant,
        person=body.person,
        agent_id=body.agent_id,
        environment=body.environment,
        expires_in_s=body.expires_in_s,
        limits=body.limits or {},
    )
    return json_response(_made(await call.engine.keys.create(wanted, call.caller)), 201)


def _known_routes(call: Call, limits: dict[str, str]) -> None:
    for name in limits:
        if name != "*" and name not in call.settings.route_names:
            raise InvalidRequest(
                f"limits: {name[:40]!r} is no route's name; docs/access.md has them, * is for all"
            )


async def find(call: Call) -> ASGIApp:
    """Return the keys of the caller's tenant; ADMIN_KEY sees everybody's."""
    keys = await call.engine.keys.list(None if call.caller.root else call.tenant)
    return json_response(KeysAnswer(keys=[key_answer(key) for key in keys]))


async def rotate(call: Call) -> ASGIApp:
    """Make the key that comes after this one."""
    body = await call.body(RotateKeyBody, optional=True)
    made = await call.engine.keys.rotate(call.path("key_id"), call.caller, body.overlap_s)
    return json_response(_made(made), 201)


async def revoke(call: Call) -> ASGIApp:
    """End a key."""
    return json_response(
        key_answer(await call.engine.keys.revoke(call.path("key_id"), call.caller))
    )


async def reseal(call: Call) -> ASGIApp:
    """Encrypt stored secrets with the first key of SECRET_KEY."""
    done = await call.engine.agents.reseal(call.caller)
    return json_response(ResealedAnswer(changed=done.changed, unreadable=done.unreadable))


def _made(made: Made) -> MadeKeyAnswer:
    return MadeKeyAnswer(key=made.text.reveal(), info=key_answer(made.key))


def key_answer(key: Key) -> KeyAnswer:
    """Return the wire form of a key, which tells nothing of its secret."""
    return KeyAnswer(
        key_id=key.key_id,
        tenant=key.tenant,
        name=key.name,
        role=key.role,
        created_at=key.created_at,
        created_by=key.created_by,
        person=key.person,
        agent_id=key.agent_id,
        limits=key.limits,
        expires_at=key.expires_at,
        revoked_at=key.revoked_at,
        rotated_to=key.rotated_to,
        last_used_at=key.last_used_at,
    )
