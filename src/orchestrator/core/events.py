"""The event catalogue: one frozen struct per event type, named and shaped as on the wire.

An event in the log is `{event_id, run_id, seq, ts, type, payload}`. `seq` is dense from 1 per run
and assigned by the store inside the commit, so a new event travels there as a `Draft` and comes
back as a `LogEvent` that holds the exact bytes which are stored, streamed and replayed.
"""

from typing import Any, ClassVar, Final, TypeAlias

import msgspec

Content: TypeAlias = str | list[dict[str, Any]]
"""The content of a message: a string, or a list of OpenAI-style parts."""


class Payload(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """The payload of one event; fields left at None are absent on the wire."""

    type: ClassVar[str]


class RunStarted(Payload, frozen=True, kw_only=True):
    """A run was accepted."""

    type = "run_started"
    request_id: str | None = None
    session_id: str
    agent_id: str
    parent_run_id: str | None = None


class UserInput(Payload, frozen=True, kw_only=True):
    """The message that the run answers; `queued` when an earlier run of the session goes first."""

    type = "user_input"
    message_id: str
    content: Content
    role: str = "user"
    queued: bool | None = None


class AgentInvokeStarted(Payload, frozen=True, kw_only=True):
    """The run's turn has come: one invocation of the agent begins."""

    type = "agent_invoke_started"
    agent_id: str
    endpoint: str
    attempt: int
    instance_id: str | None = None


class AgentStreamDelta(Payload, frozen=True, kw_only=True):
    """A piece of the agent's answer."""

    type = "agent_stream_delta"
    text: str


class AgentState(Payload, frozen=True, kw_only=True):
    """What the agent says it is doing."""

    type = "agent_state"
    state: str
    detail: Any = None


class AgentEvent(Payload, frozen=True, kw_only=True):
    """Any other SSE event of an agent, kept so that nothing is lost."""

    type = "agent_event"
    name: str
    data: Any


class AgentInvokeDone(Payload, frozen=True, kw_only=True):
    """The invocation ended well."""

    type = "agent_invoke_done"
    final_message: Content
    usage: dict[str, Any]


class AgentInvokeRetrying(Payload, frozen=True, kw_only=True):
    """Another attempt follows; what the log holds from `discard_from_seq` on is void."""

    type = "agent_invoke_retrying"
    attempt: int
    code: str
    message: str
    delay_ms: int
    discard_from_seq: int


class RunDone(Payload, frozen=True, kw_only=True):
    """The run ended well."""

    type = "run_done"
    final_message: Content | None = None
    usage: dict[str, Any] | None = None


class RunFailed(Payload, frozen=True, kw_only=True):
    """The run ended badly; `code` is the agent's own when it gave one."""

    type = "run_failed"
    code: str
    message: str


class RunCancelled(Payload, frozen=True, kw_only=True):
    """Somebody, or the end of the parent run, cancelled the run."""

    type = "run_cancelled"
    reason: str


class RunPaused(Payload, frozen=True, kw_only=True):
    """The run waits for a client or a human."""

    type = "run_paused"
    state: str


class RunResumed(Payload, frozen=True, kw_only=True):
    """Nothing is awaited any more."""

    type = "run_resumed"
    state: str


class AgentCalledChild(Payload, frozen=True, kw_only=True):
    """The agent invoked another agent through us."""

    type = "agent_called_child"
    child_run_id: str
    agent_id: str


class LLMCallStarted(Payload, frozen=True, kw_only=True):
    """A model call through the proxy began."""

    type = "llm_call_started"
    request_id: str
    model: str
    stream: bool


class LLMCallDone(Payload, frozen=True, kw_only=True):
    """A model call ended, well or not."""

    type = "llm_call_done"
    request_id: str
    model: str
    stream: bool
    latency_ms: int
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    total_tokens: int | None = None
    error: str | None = None
    ttft_ms: int | None = None
    cost: float | None = None
    upstream: str | None = None


class ToolCallCreated(Payload, frozen=True, kw_only=True):
    """The agent asked for a tool."""

    type = "tool_call_created"
    tool_call_id: str
    tool_name: str
    kind: str
    args: Any


class PolicyDecision(Payload, frozen=True, kw_only=True):
    """What policy says of a tool call: `allow`, `require_approval` or `block`."""

    type = "policy_decision"
    tool_call_id: str
    decision: str
    reason: str
    rules: list[str]


class ToolDispatched(Payload, frozen=True, kw_only=True):
    """A tool call was handed to its executor: DISPATCHED, then RUNNING."""

    type = "tool_dispatched"
    tool_call_id: str
    state: str


class ToolRequest(Payload, frozen=True, kw_only=True):
    """A tool call was sent to the user's client."""

    type = "tool_request"
    tool_call_id: str
    state: str
    tool_name: str
    args: Any
    deadline_ts: int


class ToolResult(Payload, frozen=True, kw_only=True):
    """A tool call ended; `state` is the machine's word for `status`."""

    type = "tool_result"
    tool_call_id: str
    status: str
    state: str
    result: Any = None
    error: dict[str, Any] | None = None


class ApprovalRequired(Payload, frozen=True, kw_only=True):
    """A human must decide before the tool runs."""

    type = "approval_required"
    approval_id: str
    tool_call_id: str
    tool_name: str
    args_summary: str
    args: Any
    expires_at: int


class ApprovalDecision(Payload, frozen=True, kw_only=True):
    """A human, a clock or the end of the run decided."""

    type = "approval_decision"
    approval_id: str
    decision: str
    reason: str | None = None
    decided_by: str | None = None


CATALOGUE: Final[dict[str, type[Payload]]] = {cls.type: cls for cls in Payload.__subclasses__()}
TERMINAL: Final = frozenset({"run_done", "run_failed", "run_cancelled"})
DELTAS: Final = frozenset(
    {
        "agent_stream_delta",
        "agent_state",
        "agent_event",
        "llm_call_started",
        "llm_call_done",
    }
)
"""The delta class: events that change no state and so do not count in a run's `version`."""


class Draft(msgspec.Struct, frozen=True, gc=False):
    """An event on its way into the log; `payload` is UTF-8 JSON of the type's struct."""

    event_id: str
    ts: int
    type: str
    payload: bytes


class LogEvent(msgspec.Struct, frozen=True, gc=False):
    """An event of the log; `data` is the whole event object, byte for byte as stored and served."""

    seq: int
    type: str
    data: bytes


class Envelope(msgspec.Struct, frozen=True):
    """The decoded form of a log event, its payload still raw."""

    event_id: str
    run_id: str
    seq: int
    ts: int
    type: str
    payload: msgspec.Raw

    def decoded(self) -> Payload:
        """Return the payload as its struct of the catalogue."""
        return msgspec.json.decode(self.payload, type=CATALOGUE[self.type])


_ENCODER: Final = msgspec.json.Encoder()
_ENVELOPES: Final = msgspec.json.Decoder(Envelope)


def draft(event_id: str, ts: int, payload: Payload) -> Draft:
    """Return `payload` as a draft with its id and time."""
    return Draft(event_id, ts, payload.type, _ENCODER.encode(payload))


def text_of(run_id: str, seq: int, item: Draft) -> str:
    """Return the JSON text of the event that `item` becomes as number `seq` of its run."""
    return (
        f'{{"event_id":"{item.event_id}","run_id":"{run_id}","seq":{seq},'
        f'"ts":{item.ts},"type":"{item.type}","payload":{item.payload.decode()}}}'
    )


def seal(run_id: str, seq: int, item: Draft) -> LogEvent:
    """Return the log event that `item` becomes as number `seq` of its run."""
    return LogEvent(seq, item.type, text_of(run_id, seq, item).encode())


def open_event(data: bytes) -> Envelope:
    """Decode the bytes of a log event."""
    return _ENVELOPES.decode(data)
