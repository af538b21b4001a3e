"""The route table: every path of the public contract that this server answers."""

from typing import Final

from orchestrator.api import agents, audit, events, health, keys, metrics, pages, runs, sessions
from orchestrator.api import shapes as s
from orchestrator.api.table import Other, Query, Route

_LIMIT = Query("limit", "integer", "how many at most (1 to 1000)")
_CURSOR = Query("cursor", "string", "`next_cursor` of the page before")
_AFTER_SEQ = Query("after_seq", "integer", "only events with a larger seq")
_INSTANCE = Query("instance_id", "string", "which instance; the body may say it as well")
_KEY = Query("Idempotency-Key", "string", "makes the request idempotent, as the body's field does")
_LAST = Query("Last-Event-ID", "string", "the `id:` of the last event seen; only later ones come")
_TENANT = Query("tenant", "string", "whose; another than the caller's is for `ADMIN_KEY`")
_SEEN = Other(status=204, text="the reader has seen the terminal event")
_KNOWN = Query("If-None-Match", "string", "the `ETag` of what the caller has")
_UNCHANGED = Other(status=304, text="the caller has the current one")
_SICK = Other(status=503, text="not now", answer=s.HealthAnswer)
_INVOKE = ("session_id", "agent_id", "input_message")
_TAKING = ("agent_not_found", "idempotency_key_reused", "queue_full", "draining", "agent_draining",
           "unavailable", "storage_full")  # fmt: skip

ROUTES: Final[tuple[Route, ...]] = (
    Route(
        method="GET", path="/health", handler=health.health, permission="open", name="health",
        summary="Whether commits reach the disk; 503 and what is wrong when they do not",
        answer=s.HealthAnswer, others=(_SICK,), group="Server",
    ),
    Route(
        method="GET", path="/health/live", handler=health.live, permission="open", name="live",
        summary="Whether the process turns", answer=s.HealthAnswer, group="Server",
    ),
    Route(
        method="GET", path="/health/ready", handler=health.ready, permission="open", name="ready",
        summary="Whether the server commits and is not draining", answer=s.HealthAnswer,
        others=(_SICK,), group="Server",
    ),
    Route(
        method="GET", path="/metrics", handler=metrics.metrics, permission="metrics:read",
        name="metrics", summary="Counters and gauges in the Prometheus text format",
        raw="text/plain", group="Server",
    ),
    Route(
        method="GET", path="/openapi.json", handler=pages.openapi, permission="open",
        name="openapi", summary="This API as an OpenAPI 3.1 document", raw="application/json",
        group="Server",
    ),
    Route(
        method="GET", path="/docs", handler=pages.docs, permission="open", name="docs",
        summary="This API as a page to read", raw="text/html", group="Server",
    ),
    Route(
        method="GET", path="/sdk/{name}", handler=pages.sdk, permission="open", name="sdk",
        summary="The JavaScript SDK for pages: `client.mjs`, `ingress.mjs` and their types",
        raw="text/javascript", headers=(_KNOWN,), others=(_UNCHANGED,), group="Server",
    ),
    Route(
        method="POST", path="/internal/invoke", handler=runs.invoke, permission="runs:write",
        name="invoke", summary="Invoke an agent; answered once the run is durable",
        body=s.InvokeBody, requires=_INVOKE, answer=s.InvokeAnswer, headers=(_KEY,),
        errors=("session_busy", *_TAKING),
    ),
    Route(
        method="POST", path="/v1/runs", handler=runs.start, permission="runs:write",
        name="start_run",
        summary="Invoke an agent in a session or a new one: in the background, waiting (202 after "
        "50 s), or with its stream as the answer",
        body=s.StartRunBody, requires=("agent_id", "input_message"), answer=s.RunAnswer,
        status=201, headers=(_KEY,), errors=("session_busy", *_TAKING),
        others=(
            Other(status=200, text="the run of a repeated key, the ended run that was waited for, "
                  "or the stream", answer=s.RunAnswer, stream=True),
            Other(status=202, text="the run goes on after 50 s", answer=s.RunIdAnswer),
        ),
        stream='`Accept: text/event-stream` or `"stream": true`',
    ),
    Route(
        method="GET", path="/v1/runs", handler=runs.find, permission="runs:list", name="list_runs",
        summary="Runs, newest first", answer=s.RunsAnswer,
        query=(
            Query("status", "string", "comma list of states, in any case"),
            Query("agent_id", "string", "only this agent's"),
            Query("session_id", "string", "only this session's"),
            Query("parent_run_id", "string", "only those that this run called"),
            Query("created_before", "integer", "only older ones, milliseconds UTC"),
            _CURSOR, _LIMIT,
        ),
        errors=("session_not_found",),
    ),
    Route(
        method="GET", path="/v1/runs/{run_id}", handler=runs.show, permission="runs:read",
        name="get_run", summary="One run as last committed", answer=s.RunAnswer,
        errors=("run_not_found",),
    ),
    Route(
        method="GET", path="/v1/runs/{run_id}/tree", handler=runs.tree, permission="runs:read",
        name="get_run_tree", summary="A run and all runs below it", answer=s.TreeAnswer,
        errors=("run_not_found",),
    ),
    Route(
        method="GET", path="/v1/runs/{run_id}/events", handler=events.page,
        permission="runs:read", name="list_events",
        summary="A page of a run's log, byte for byte as stored", answer=s.EventsAnswer,
        query=(
            Query("after_ts", "integer", "only events written later, milliseconds UTC"),
            Query("types", "string", "comma list of event types"),
            _AFTER_SEQ, _CURSOR, _LIMIT,
        ),
        headers=(_LAST,), others=(_SEEN,), errors=("run_not_found",),
        stream="`Accept: text/event-stream`",
    ),
    Route(
        method="GET", path="/v1/runs/{run_id}/events/stream", handler=events.stream,
        permission="runs:read", name="stream_events",
        summary="A run's log as a stream: replay, then live, to the terminal event; 204 for a "
        "reader that has seen the end",
        query=(_AFTER_SEQ, _CURSOR), headers=(_LAST,), others=(_SEEN,), errors=("run_not_found",),
        stream="always",
    ),
    Route(
        method="POST", path="/v1/runs/{run_id}:cancel", handler=runs.cancel,
        permission="runs:cancel", name="cancel_run",
        summary="End a run, its children and the agent's stream; again is the same answer",
        also=("/v1/runs/{run_id}/cancel", "/internal/runs/{run_id}/cancel"),
        body=s.CancelBody, answer=s.CancelAnswer, errors=("run_not_found", "run_ended"),
    ),
    Route(
        method="POST", path="/v1/runs/{run_id}:rerun", handler=runs.rerun,
        permission="runs:write", name="rerun",
        summary="A new run of the same agent with the same message, in the same session",
        also=("/v1/runs/{run_id}/rerun",), answer=s.RunAnswer, status=201,
        errors=("run_not_found", "conflict", *_TAKING),
    ),
    Route(
        method="GET", path="/v1/sessions", handler=sessions.find, permission="sessions:list",
        name="list_sessions", summary="Sessions, newest first", answer=s.SessionsAnswer,
        query=(_CURSOR, _LIMIT), group="Sessions",
    ),
    Route(
        method="GET", path="/v1/sessions/{session_id}", handler=sessions.show,
        permission="sessions:read", name="get_session",
        summary="One session; from its `cursor` the stream brings only what comes from now on",
        answer=s.SessionAnswer, errors=("session_not_found",), group="Sessions",
    ),
    Route(
        method="GET", path="/v1/sessions/{session_id}/messages", handler=sessions.messages,
        permission="sessions:read", name="list_messages",
        summary="The newest messages of a transcript, oldest first; an unknown session is empty",
        answer=s.MessagesAnswer,
        query=(Query("before", "string", "only messages before this message_id"), _LIMIT),
        group="Sessions",
    ),
    Route(
        method="POST", path="/v1/sessions/{session_id}/messages", handler=sessions.post,
        permission="sessions:write", name="post_message",
        summary="Add a message to a transcript without running anything",
        body=s.PostMessageBody, requires=("role", "content"), answer=s.PostedAnswer,
        group="Sessions",
    ),
    Route(
        method="GET", path="/v1/sessions/{session_id}/events", handler=events.session_stream,
        permission="sessions:read", name="stream_session",
        summary="All runs of a session, children included; `id:` is an opaque cursor",
        query=(_CURSOR,), headers=(_LAST,), stream="always", group="Sessions",
    ),
    Route(
        method="POST", path="/v1/sessions/{session_id}/tokens", handler=sessions.token,
        permission="tokens:write", name="make_session_token",
        summary="A token for one session, for a browser or a device; it may go into the address of "
        "an event stream as `?token=`",
        body=s.SessionTokenBody, answer=s.SessionTokenAnswer, status=201, group="Sessions",
    ),
    Route(
        method="POST", path="/v1/agents/register", handler=agents.register,
        permission="agents:write", name="register_agent",
        summary="Add or update an agent; `created_at` is kept", body=s.RegisterBody,
        requires=("agent_id", "name", "endpoint"), answer=s.RegisteredAnswer,
        errors=("egress_refused",), group="Agents",
    ),
    Route(
        method="GET", path="/v1/agents", handler=agents.find, permission="agents:read",
        name="list_agents", summary="The registered agents, by name", answer=s.AgentsAnswer,
        query=(
            Query("capability", "string", "only agents that say they have it"),
            Query("status", "string", "healthy, unknown, degraded, unhealthy or draining"),
        ),
        group="Agents",
    ),
    Route(
        method="GET", path="/v1/agents/{agent_id}", handler=agents.show,
        permission="agents:read", name="get_agent", summary="One agent; credentials stay here",
        answer=s.AgentDetailAnswer, errors=("agent_not_found",), group="Agents",
    ),
    Route(
        method="DELETE", path="/v1/agents/{agent_id}", handler=agents.remove,
        permission="agents:write", name="remove_agent",
        summary="Forget an instance, or the agent with all of them; its runs stay",
        query=(_INSTANCE,), body=s.InstanceBody, answer=s.OkAnswer,
        errors=("agent_not_found", "not_found", "conflict"), group="Agents",
    ),
    Route(
        method="POST", path="/v1/agents/{agent_id}/heartbeat", handler=agents.heartbeat,
        permission="agents:write", name="heartbeat",
        summary="Say that an instance lives; after 90 s of silence it counts as unhealthy",
        query=(_INSTANCE,), body=s.InstanceBody, answer=s.OkAnswer,
        errors=("agent_not_found", "not_found"), group="Agents",
    ),
    Route(
        method="POST", path="/v1/agents/{agent_id}:drain", handler=agents.drain,
        permission="agents:write", name="drain_agent",
        summary="Give an instance, or all of them, no more runs until it registers again",
        also=("/v1/agents/{agent_id}/drain",), query=(_INSTANCE,), body=s.InstanceBody,
        answer=s.OkAnswer, errors=("agent_not_found", "not_found", "conflict"), group="Agents",
    ),
    Route(
        method="POST", path="/v1/agents/{agent_id}:invoke", handler=agents.invoke,
        permission="agents:invoke", name="call_agent",
        summary="Run an agent, as a child where `parent_run_id` is given, and answer in the frames "
        "of the agent protocol",
        also=("/v1/agents/{agent_id}/invoke",), body=s.CallAgentBody,
        requires=("input_message",), headers=(_KEY,),
        errors=("run_not_active", "agent_cycle", *_TAKING),
        stream="always",
        group="Agents",
    ),
    Route(
        method="POST", path="/v1/keys", handler=keys.create, permission="keys:write",
        name="create_key", summary="Make a key; its text is in this answer and kept nowhere",
        body=s.CreateKeyBody, requires=("name", "role"), answer=s.MadeKeyAnswer, status=201,
        group="Access",
    ),
    Route(
        method="GET", path="/v1/keys", handler=keys.find, permission="keys:read",
        name="list_keys", summary="The keys of the caller's tenant, oldest first; `ADMIN_KEY` "
        "sees everybody's", answer=s.KeysAnswer, group="Access",
    ),
    Route(
        method="POST", path="/v1/keys/{key_id}:rotate", handler=keys.rotate,
        permission="keys:write", name="rotate_key",
        summary="Make the key that comes after this one, which goes on for `overlap_s`",
        also=("/v1/keys/{key_id}/rotate",), body=s.RotateKeyBody, answer=s.MadeKeyAnswer,
        status=201, errors=("key_not_found", "conflict"), group="Access",
    ),
    Route(
        method="POST", path="/v1/keys/{key_id}:revoke", handler=keys.revoke,
        permission="keys:write", name="revoke_key",
        summary="End a key, the tokens it made and the streams it opened; again is the same answer",
        also=("/v1/keys/{key_id}/revoke",), answer=s.KeyAnswer, errors=("key_not_found",),
        group="Access",
    ),
    Route(
        method="GET", path="/v1/audit", handler=audit.page, permission="audit:read",
        name="list_audit", summary="Who did what, oldest first", answer=s.AuditAnswer,
        query=(
            Query("action", "string", "only this one, such as `key.create`"), _TENANT, _CURSOR,
            _LIMIT,
        ),
        group="Access",
    ),
    Route(
        method="GET", path="/v1/audit/verify", handler=audit.verify, permission="audit:read",
        name="verify_audit", summary="Whether every entry is as it was written: each one's hash "
        "covers it and the one before", answer=s.VerifiedAnswer, query=(_TENANT,), group="Access",
    ),
    Route(
        method="POST", path="/v1/secrets:rotate", handler=keys.reseal,
        permission="secrets:write", name="rotate_secrets",
        summary="Encrypt every stored secret with the first key of `SECRET_KEY`, so that the "
        "others may go", also=("/v1/secrets/rotate",), answer=s.ResealedAnswer, group="Access",
    ),
)  # fmt: skip
