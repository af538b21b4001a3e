"""Security events: what was refused is counted in the audit log, and a flood stays one entry."""

import json
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from orchestrator.core.access import ROLES, Caller, local
from orchestrator.core.errors import AgentFailure, EgressRefused
from orchestrator.core.frames import Frame
from orchestrator.core.records import AuditEntry
from orchestrator.engine import Registration
from orchestrator.guards.egress import EgressGuard
from orchestrator.ports import AgentCall

from .rig import Rig, running


async def refused(call: AgentCall) -> AsyncIterator[Sequence[Frame]]:
    """Fail as a client does whose guard forbade the dial."""
    if call.attempt:
        text = "10.0.0.7 is private"
        raise AgentFailure("agent_unavailable", text, retryable=False, refused=True)
    yield []


async def entries(rig: Rig) -> list[AuditEntry]:
    await rig.engine.audit.flush(now=True)
    found = await rig.engine.audit.page("default", limit=1000)
    return [entry for entry in found if entry.action.startswith("security.")]


async def test_a_dial_that_was_refused_is_in_the_audit(tmp_path: Path) -> None:
    async with running(tmp_path / "o.db", refused) as rig:
        for _ in range(3):
            run = await rig.ended(await rig.invoke())
            assert run.error_code == "agent_unavailable"
        (entry,) = await entries(rig)
        assert (entry.action, entry.target) == ("security.egress_refused", "agent demo")
        assert json.loads(entry.detail) == {"times": 3}


async def test_a_registration_that_was_refused_is_in_the_audit(tmp_path: Path) -> None:
    async with running(tmp_path / "o.db") as rig:
        rig.engine.agents._egress = EgressGuard(loopback=True)
        by = Caller(kind="key", tenant="default", name="key:k", permissions=ROLES["agent"])
        wanted = Registration(agent_id="a", name="a", endpoint="http://10.0.0.7:8000")
        with pytest.raises(EgressRefused):
            await rig.engine.agents.register(wanted, by)
        (entry,) = await entries(rig)
        assert (entry.action, entry.target) == ("security.egress_refused", "key:k for a")
        agent = await rig.engine.agents.register(wanted, local("default"))
        assert agent.operator  # an operator's may be private


async def test_a_flood_of_different_events_is_bounded(tmp_path: Path) -> None:
    async with running(tmp_path / "o.db") as rig:
        for number in range(100_000):
            rig.engine.audit.security("bad_credential", f"10.0.{number >> 8}.{number & 255}")
        found = await entries(rig)
        assert len(found) == 257
        assert sum(json.loads(entry.detail)["times"] for entry in found) == 100_000
        assert (await rig.engine.audit.verify("default")).broken_at is None
