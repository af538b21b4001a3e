"""Runs: invoke, read, wait, cancel, run again."""

import asyncio
from contextlib import AbstractContextManager
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp

from orchestrator.api.calls import Call, one_of, required
from orchestrator.api.problems import json_response
from orchestrator.api.shapes import (
    CancelAnswer,
    CancelBody,
    InvokeAnswer,
    InvokeBody,
    RunAnswer,
    RunError,
    RunIdAnswer,
    RunsAnswer,
    StartRunBody,
    TreeAnswer,
)
from orchestrator.api.streams import EventStream, mark_of
from orchestrator.core import values
from orchestrator.core.batch import Batch
from orchestrator.core.errors import Forbidden, InvalidRequest, SessionNotFound
from orchestrator.core.records import Run
from orchestrator.core.states import ENDED
from orchestrator.core.trace import accepted
from orchestrator.engine import Accepted, Invoke, Tree

DISCONNECTS = ("keep", "cancel")


async def invoke(call: Call) -> ASGIApp:
    """Answer once the run is durable."""
    run = (await _accept(call, await call.body(InvokeBody))).run
    return json_response(
        InvokeAnswer(run_id=run.run_id, session_id=run.session_id, agent_id=run.agent_id)
    )


async def start(call: Call) -> ASGIApp:
    """Start a run; answer with it, with its stream, or with its end."""
    body = await call.body(StartRunBody)
    one_of(body.on_disconnect, "on_disconnect", DISCONNECTS)
    accepted = await _accept(call, body, session_needed=False)
    run_id = accepted.run.run_id
    if body.stream or call.wants_stream():
        return run_stream(call, accepted.run, cancel=body.on_disconnect == "cancel")
    if body.wait:
        run = await _waited_for(call, run_id, cancel=body.on_disconnect == "cancel")
        await call.engine.access.still(call.caller)
        if run.status not in ENDED:
            return json_response(RunIdAnswer(run_id=run_id), 202)
        return json_response(run_answer(run))
    return json_response(run_answer(accepted.run), 200 if accepted.repeated else 201)


async def _waited_for(call: Call, run_id: str, *, cancel: bool) -> Run:
    """Return a run at its end, or when waiting is over; with `cancel`, hanging up ends it."""
    waiting = call.engine.runs.wait(run_id, call.settings.wait_s, call.tenant)
    if not cancel:
        return await waiting
    line = Line(call, run_id)
    try:
        async with asyncio.TaskGroup() as tasks:
            waited = tasks.create_task(waiting, name="wait")
            gone = tasks.create_task(call.gone(), name="caller")
            with line.open():
                await asyncio.wait({waited, gone}, return_when=asyncio.FIRST_COMPLETED)
            waited.cancel()
            gone.cancel()
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from failed
    if waited.cancelled():
        await line.hung_up()
        raise ClientDisconnect
    return waited.result()


def run_stream(
    call: Call, run: Run, after: int = 0, *, first: bytes = b"", cancel: bool = False
) -> EventStream[Batch]:
    """Return the stream of a run's events after `after`, behind the frames `first`.

    With `cancel`, hanging up ends the run.
    """
    mark = mark_of(run)
    tails, run_id = call.engine.tails, run.run_id
    return EventStream(
        lambda sink: tails.run(run_id, after, sink),
        (lambda batch: batch.framed(mark)) if mark else Batch.frames,
        call.settings.keep_alive_s,
        first=first,
        run_id=run_id,
        line=Line(call, run_id) if cancel else None,
        watch=call.watch,
    )


class Line:
    """Between a caller and the run that he began: when he hangs up, and nobody else waits, it ends.

    With `keeps` he only keeps others from ending it.
    """

    __slots__ = ("_keeps", "_run_id", "_runs", "_tenant")

    def __init__(self, call: Call, run_id: str, *, keeps: bool = False) -> None:
        self._runs = call.engine.runs
        self._tenant = call.tenant
        self._run_id = run_id
        self._keeps = keeps

    def open(self) -> AbstractContextManager[None]:
        """Return the time in which the caller waits."""
        return self._runs.line(self._run_id)

    async def hung_up(self) -> None:
        """End the run of a caller who has gone."""
        if not self._keeps:
            await self._runs.hung_up(self._run_id, self._tenant)


async def _accept(call: Call, body: InvokeBody, *, session_needed: bool = True) -> Accepted:
    session_id = required(body.session_id, "session_id") if session_needed else body.session_id
    session_id = _own_session(call, session_id or None)
    agent_id = required(body.agent_id, "agent_id")
    message = body.input_message
    if body.on_busy == "interrupt" and not call.caller.may("runs:cancel"):
        raise Forbidden("on_busy interrupt ends other runs, which needs the permission runs:cancel")
    traceparent, tracestate = trace_context(call)
    return await call.engine.runs.invoke(
        Invoke(
            tenant=call.tenant,
            session_id=session_id,
            agent_id=agent_id,
            role=message.role if message else "user",
            content=values.content(message.content if message else None),
            request_id=idempotency_key(call, body.request_id, "request_id"),
            context=_own_user(call, body.context),
            labels=body.labels or {},
            timeout_ms=body.timeout_ms,
            on_busy=body.on_busy,
            traceparent=traceparent,
            tracestate=tracestate,
        )
    )


def _own_session(call: Call, session_id: str | None) -> str | None:
    """Return the session that is meant; the token of one is for no other."""
    own = call.caller.session_id
    if own is not None and session_id not in {None, own}:
        raise SessionNotFound(f"session {session_id} not found")
    return own or session_id


def _own_user(call: Call, context: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return the context of an invocation; a session's user cannot name another."""
    user = call.caller.person if call.caller.kind == "session" else None
    if user is None:
        return context
    if (context or {}).get("user_id", user) != user:
        raise Forbidden("context.user_id is not the user that this token was made for")
    return {**(context or {}), "user_id": user}


def idempotency_key(call: Call, given: str | None, field: str) -> str | None:
    """Return the caller's key from the body or the header; raises InvalidRequest if they differ."""
    header = call.sole_header("Idempotency-Key")
    if given and header and given != header:
        raise InvalidRequest(f"{field} and the Idempotency-Key header differ; send one of them")
    return given or header


def trace_context(call: Call) -> tuple[str | None, str | None]:
    """Return the caller's W3C trace context, `traceparent` and `tracestate`, where it is good."""
    headers = call.request.headers
    return accepted(headers.getlist("traceparent"), headers.getlist("tracestate"))


async def show(call: Call) -> ASGIApp:
    """Return one run."""
    return json_response(run_answer(await call.engine.runs.get(await call.run_id(), call.tenant)))


async def find(call: Call) -> ASGIApp:
    """Return runs, newest first."""
    status = [part.strip() for part in (call.query("status") or "").split(",") if part.strip()]
    before = call.query("created_before")
    page = await call.engine.runs.find(
        call.tenant,
        status=status,
        agent_id=call.query("agent_id"),
        session_id=_own_session(call, call.query("session_id")),
        parent_run_id=call.query("parent_run_id"),
        created_before=call.number("created_before", 0, 0, values.NUMBER_MAX) if before else None,
        cursor=call.query("cursor"),
        limit=call.number("limit", 50, 1, 1000),
    )
    return json_response(
        RunsAnswer(
            runs=[run_answer(run) for run in page.items],
            has_more=page.next_cursor is not None,
            next_cursor=page.next_cursor,
        )
    )


async def tree(call: Call) -> ASGIApp:
    """Return a run with the runs below it."""
    return json_response(
        _tree_answer(await call.engine.runs.tree(await call.run_id(), call.tenant))
    )


def _tree_answer(tree: Tree) -> TreeAnswer:
    return TreeAnswer(
        run=run_answer(tree.run),
        children=[_tree_answer(child) for child in tree.children],
        has_more=tree.has_more,
    )


async def cancel(call: Call) -> ASGIApp:
    """End a run."""
    body = await call.body(CancelBody, optional=True)
    reason = body.reason or "cancelled by request"
    run = await call.engine.runs.cancel(await call.run_id(), reason, call.tenant, call.caller)
    return json_response(
        CancelAnswer(run_id=run.run_id, status=run.status, message=run.error_message or reason)
    )


async def rerun(call: Call) -> ASGIApp:
    """Start the same again."""
    run_id = await call.run_id()
    if call.caller.kind == "session":
        _own_user(call, (await call.engine.runs.invocation(run_id)).context)
    accepted = await call.engine.runs.rerun(run_id, call.tenant)
    return json_response(run_answer(accepted.run), 201)


def run_answer(run: Run) -> RunAnswer:
    """Return the wire form of a run."""
    failed = run.error_code is not None
    return RunAnswer(
        run_id=run.run_id,
        session_id=run.session_id,
        agent_id=run.agent_id,
        status=run.status,
        attempt=run.attempt,
        last_seq=run.head,
        created_at=run.created_at,
        deadline_at=run.deadline_at,
        labels=run.labels,
        started_at=run.started_at,
        ended_at=run.ended_at,
        parent_run_id=run.parent_run_id,
        request_id=run.request_id,
        final_message=run.final_message,
        usage=run.usage,
        error=RunError(code=run.error_code or "", message=run.error_message or "")
        if failed
        else None,
        trimmed=run.trimmed,
        parallel=run.parallel,
        generation=len(run.forks),
    )
