"""A server with an ADMIN_KEY, and what tests of callers do with it."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from orchestrator.core.frames import Delta, Frame
from orchestrator.core.secret import Secret
from orchestrator.engine import AccessSettings
from orchestrator.ports import AgentCall

from ..engine.rig import until
from .conftest import Client, Database, invocation, serving

ADMIN = secrets.token_hex(32)


async def hang(call: AgentCall) -> AsyncIterator[Sequence[Frame]]:
    """Say a word, and stay."""
    yield [Delta("a word")]
    await asyncio.Event().wait()


@asynccontextmanager
async def keyed(
    database: Database, script: Any = hang, admin: str = ADMIN
) -> AsyncIterator[Client]:
    """Serve with an ADMIN_KEY."""
    access = AccessSettings(admin_key=Secret(admin))
    async with serving(database, script, {"access": access}) as client:
        yield client


def bearer(text: str) -> dict[str, str]:
    """Return the header that shows a credential."""
    return {"Authorization": f"Bearer {text}"}


async def made_key(api: Client, **fields: Any) -> dict[str, Any]:
    """Return a new key and what is known of it."""
    body = {"name": "n", "role": "ingress"} | fields
    answer = await api.post("/v1/keys", body, **bearer(ADMIN))
    assert answer.status == 201, answer.raw
    return dict(answer.json)


async def token_for(api: Client, session: str, key: str = ADMIN, **fields: Any) -> str:
    """Return a token for a session."""
    answer = await api.post(f"/v1/sessions/{session}/tokens", fields, **bearer(key))
    assert answer.status == 201, answer.raw
    return str(answer.json["token"])


async def started(api: Client, **fields: Any) -> tuple[str, AgentCall]:
    """Return a run whose agent is at work, and how it was called."""
    answer = await api.post("/internal/invoke", invocation(**fields), **bearer(ADMIN))
    run_id = answer.json["run_id"]
    await until(lambda: any(call.run_id == run_id for call in api.rig.agent.calls))
    return run_id, next(call for call in api.rig.agent.calls if call.run_id == run_id)


def run_token(call: AgentCall) -> str:
    """Return the token that an agent was given."""
    assert call.run_token is not None
    return call.run_token.reveal()


async def ended_in_time(reader: asyncio.StreamReader) -> None:
    """Return when a stream that was open has ended; a second is what is promised."""
    async with asyncio.timeout(5):
        await reader.read()
