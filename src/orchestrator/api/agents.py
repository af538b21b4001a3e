"""Agents: register, look, heartbeat, drain, remove, and let one call another."""

from starlette.types import ASGIApp

from orchestrator.api.calls import Call, one_of, required
from orchestrator.api.problems import json_response
from orchestrator.api.runs import DISCONNECTS, Line, idempotency_key, trace_context
from orchestrator.api.sessions import rfc3339
from orchestrator.api.shapes import (
    AgentAnswer,
    AgentDetailAnswer,
    AgentsAnswer,
    CallAgentBody,
    InstanceAnswer,
    InstanceBody,
    OkAnswer,
    RegisterBody,
    RegisteredAnswer,
)
from orchestrator.api.streams import EventStream, agent_frames
from orchestrator.core import values
from orchestrator.core.errors import Forbidden, InvalidRequest, RunNotFound
from orchestrator.core.records import Agent, Retry, Timeouts
from orchestrator.core.secret import Secret
from orchestrator.core.wellness import STATUSES
from orchestrator.engine import Accepted, Found, Invoke, Registration, Seen


async def register(call: Call) -> ASGIApp:
    """Add or update an agent."""
    body = await call.body(RegisterBody)
    wanted = Registration(
        tenant=call.tenant,
        agent_id=required(body.agent_id, "agent_id"),
        name=required(body.name, "name"),
        endpoint=required(body.endpoint, "endpoint"),
        capabilities=body.capabilities or [],
        auth_token=_token(body),
        scopes=body.scopes,
        instance_id=body.instance_id,
        version=body.version,
        protocol=body.protocol,
        timeouts=body.timeouts or Timeouts(),
        retry=body.retry or Retry(),
        on_lost=body.on_lost,
        max_concurrency=body.max_concurrency,
    )
    agent = await call.engine.agents.register(wanted, call.caller)
    return json_response(RegisteredAnswer(ok=True, registered_at=agent.updated_at))


def _token(body: RegisterBody) -> Secret | None:
    if body.auth is None:
        return None
    if body.auth.type != "bearer":
        raise InvalidRequest('auth.type must be "bearer"')
    return Secret(required(body.auth.token, "auth.token"))


async def find(call: Call) -> ASGIApp:
    """Return the registered agents."""
    status = call.query("status")
    if status:
        one_of(status.lower(), "status", STATUSES)
    agents = await call.engine.agents.list(
        call.tenant, capability=call.query("capability"), status=status or None
    )
    return json_response(AgentsAnswer(agents=[_listed(agent) for agent in agents]))


async def show(call: Call) -> ASGIApp:
    """Return one agent."""
    return json_response(_detail(await call.engine.agents.look(call.path("agent_id"), call.tenant)))


async def heartbeat(call: Call) -> ASGIApp:
    """Note that an instance lives."""
    named = await _instance(call)
    await call.engine.agents.heartbeat(call.path("agent_id"), call.caller, named)
    return json_response(OkAnswer(ok=True))


async def drain(call: Call) -> ASGIApp:
    """Give an instance, or all of them, no more runs until it registers again."""
    named = await _instance(call)
    await call.engine.agents.drain(call.path("agent_id"), call.caller, named)
    return json_response(OkAnswer(ok=True))


async def remove(call: Call) -> ASGIApp:
    """Forget an instance, or the agent; its runs stay."""
    named = await _instance(call)
    await call.engine.agents.remove(call.path("agent_id"), call.caller, named)
    return json_response(OkAnswer(ok=True))


async def _instance(call: Call) -> str | None:
    """Return which instance is meant, in the body or the query; raises InvalidRequest for two."""
    body = await call.body(InstanceBody, optional=True)
    named = {name for name in (body.instance_id, call.query("instance_id")) if name}
    if len(named) > 1:
        raise InvalidRequest("instance_id came twice, and they differ; send one")
    return named.pop() if named else None


async def invoke(call: Call) -> ASGIApp:
    """Run an agent, as a child of a run where one is named, and answer as that agent would."""
    body = await call.body(CallAgentBody)
    one_of(body.on_disconnect, "on_disconnect", DISCONNECTS)
    message = body.input_message
    traceparent, tracestate = trace_context(call)
    accepted = await call.engine.runs.invoke(
        Invoke(
            tenant=call.tenant,
            agent_id=call.path("agent_id"),
            session_id=body.session_id or None,
            role=message.role if message else "user",
            content=values.content(message.content if message else None),
            request_id=idempotency_key(call, body.idempotency_key, "idempotency_key"),
            context=body.context,
            timeout_ms=body.timeout_ms,
            parent_run_id=await _parent(call, body.parent_run_id),
            traceparent=traceparent,
            tracestate=tracestate,
        )
    )
    run_id = accepted.run.run_id
    return EventStream(
        lambda sink: call.engine.tails.run(run_id, 0, sink),
        agent_frames,
        call.settings.keep_alive_s,
        run_id=run_id,
        line=Line(call, run_id, keeps=not _ends_it(call, body, accepted)),
        watch=call.watch,
    )


def _ends_it(call: Call, body: CallAgentBody, accepted: Accepted) -> bool:
    """Return whether hanging up ends the run: of one that another began only who may cancel."""
    mine = not accepted.repeated or call.caller.may("runs:cancel")
    return body.on_disconnect == "cancel" and mine


async def _parent(call: Call, parent_run_id: str | None) -> str | None:
    """Return the run that calls: a token is that of one run, an agent's key that of its runs."""
    own = call.caller.run_id
    if own is not None and parent_run_id not in {None, own}:
        raise RunNotFound(f"run {parent_run_id} is not the run of this token")
    if own is None and parent_run_id is None and not call.caller.may("runs:write"):
        raise Forbidden(
            "an agent's key calls others for one of its runs: send parent_run_id, or X-Run-Token"
        )
    if parent_run_id is not None and call.caller.agent_id is not None:
        parent = await call.engine.runs.get(parent_run_id, call.tenant)
        if parent.agent_id != call.caller.agent_id:
            raise RunNotFound(f"run {parent_run_id} is no run of agent {call.caller.agent_id}")
    return own or parent_run_id


def _listed(agent: Agent) -> AgentAnswer:
    return AgentAnswer(
        agent_id=agent.agent_id,
        name=agent.name,
        status=agent.status,
        last_heartbeat_at=agent.last_heartbeat,
        capabilities=agent.capabilities,
    )


def _detail(found: Found) -> AgentDetailAnswer:
    agent = found.agent
    return AgentDetailAnswer(
        agent_id=agent.agent_id,
        name=agent.name,
        status=agent.status,
        endpoint=agent.endpoint,
        protocol=agent.protocol,
        capabilities=agent.capabilities,
        last_heartbeat=rfc3339(agent.last_heartbeat) if agent.last_heartbeat else None,
        last_heartbeat_at=agent.last_heartbeat,
        created_at=rfc3339(agent.created_at),
        on_lost=agent.on_lost,
        timeouts=agent.timeouts,
        retry=agent.retry,
        instances=[_seen(one) for one in found.instances],
        version=agent.version,
        max_concurrency=agent.max_concurrency,
        has_auth=agent.auth is not None,
        scopes=agent.scopes,
    )


def _seen(seen: Seen) -> InstanceAnswer:
    instance = seen.instance
    return InstanceAnswer(
        instance_id=instance.instance_id,
        endpoint=instance.endpoint,
        status=seen.status,
        last_heartbeat_at=instance.last_heartbeat,
        version=instance.version,
        max_concurrency=instance.max_concurrency,
        in_flight=seen.in_flight,
        ejected_until=seen.ejected_until,
        last_error=seen.last_error,
    )
