"""A run's log: a page of it, or its stream."""

from typing import Any

import msgspec
from starlette.responses import Response
from starlette.types import ASGIApp

from orchestrator.api.calls import Call
from orchestrator.api.runs import run_stream
from orchestrator.api.streams import (
    EventStream,
    log_reset,
    mark_of,
    resume_point,
    session_frames,
)
from orchestrator.core import values
from orchestrator.core.errors import InvalidRequest
from orchestrator.core.events import CATALOGUE
from orchestrator.core.states import ENDED
from orchestrator.engine import EventPage

LIMIT_MAX = 1000


async def page(call: Call) -> ASGIApp:
    """Return a page of the log, or the stream where the caller accepts one."""
    if call.wants_stream():
        return await stream(call)
    point = resume_point(None, call.query("cursor") or call.query("after_seq"))
    after_ts = call.number("after_ts", 0, 0, values.NUMBER_MAX) if call.query("after_ts") else None
    run = await call.engine.runs.get(await call.run_id(), call.tenant)
    agreed = point.agreed(run.forks)
    found = await call.engine.runs.events(
        run,
        after_seq=point.seq if agreed is None else agreed,
        after_ts=after_ts,
        types=_types(call),
        limit=call.number("limit", 100, 1, LIMIT_MAX),
    )
    body = _page_bytes(found, mark_of(run), agreed)
    return Response(body, media_type="application/json")


def _types(call: Call) -> frozenset[str]:
    wanted = {part.strip() for part in (call.query("types") or "").split(",") if part.strip()}
    if not wanted <= CATALOGUE.keys():
        raise InvalidRequest(f"types may hold {', '.join(CATALOGUE)}")
    return frozenset(wanted)


def _page_bytes(page: EventPage, mark: str, agreed: int | None) -> bytes:
    """Return the answer around the stored bytes, which go out as they are."""
    tail: dict[str, Any] = {"has_more": page.has_more, "next_cursor": f"{page.next_seq}{mark}"}
    if page.trimmed:
        tail["trimmed"] = True
    if agreed is not None:
        tail["log_reset"] = {"after_seq": agreed}
    events = b",".join(event.data for event in page.events)
    return b'{"events":[' + events + b"]," + msgspec.json.encode(tail)[1:]


async def stream(call: Call) -> ASGIApp:
    """Return the stream of a run; 204 for a reader that has seen the end.

    A cursor of a generation that ended in a power loss may lie beyond what was left of it.
    """
    _refuse(call, "types", "after_ts", "limit")
    seen = call.query("cursor") or call.query("after_seq")
    point = resume_point(call.header("last-event-id"), seen)
    run = await call.engine.runs.get(await call.run_id(), call.tenant)
    agreed = point.agreed(run.forks)
    if agreed is not None:
        return run_stream(call, run, agreed, first=log_reset(agreed))
    if point.seq and run.status in ENDED and point.seq >= run.head:
        return Response(status_code=204)
    return run_stream(call, run, point.seq)


def _refuse(call: Call, *names: str) -> None:
    for name in names:
        if call.query(name) is not None:
            raise InvalidRequest(
                f"{name} chooses the events of a page, and a stream has them all; leave it out, or "
                "ask for /v1/runs/{run_id}/events without text/event-stream in Accept"
            )


async def session_stream(call: Call) -> ASGIApp:
    """Return the stream of all runs of a session; it never ends by itself."""
    _refuse(call, "types", "after_ts", "after_seq", "limit")
    cursor = call.header("last-event-id") or call.query("cursor")
    batches = call.engine.tails.session(call.tenant, call.session_id(), cursor)
    return EventStream(
        lambda _: batches,
        session_frames,
        call.settings.keep_alive_s,
        watch=call.watch,
    )
