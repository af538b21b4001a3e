"""Whether the server lives, and whether it may get traffic."""

from starlette.types import ASGIApp

from orchestrator.api.calls import Call
from orchestrator.api.problems import json_response
from orchestrator.api.shapes import HealthAnswer

_UNAVAILABLE = 503


async def health(call: Call) -> ASGIApp:
    """Say whether commits reach the disk."""
    found = await call.engine.health()
    answer = HealthAnswer(
        status="healthy" if found.healthy else "unhealthy",
        version=call.settings.version,
        draining=found.draining,
        problems=found.problems,
    )
    return json_response(answer, 200 if found.healthy else _UNAVAILABLE)


async def live(call: Call) -> ASGIApp:
    """Say that the process turns."""
    return json_response(HealthAnswer(status="healthy", version=call.settings.version))


async def ready(call: Call) -> ASGIApp:
    """Say whether the server may get new work."""
    found = await call.engine.health()
    good = found.healthy and not found.draining
    answer = HealthAnswer(
        status="ready" if good else "not_ready",
        version=call.settings.version,
        draining=found.draining,
        problems=found.problems,
    )
    return json_response(answer, 200 if good else _UNAVAILABLE)
