"""What attributes of spans are called: OpenTelemetry's names for generative AI, else our own.

By https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-agent-spans/. Those names are still in
development, so they stand here and nowhere else.
"""

from collections.abc import Mapping
from typing import Any, Final, TypeAlias
from urllib.parse import urlsplit

from orchestrator.core.records import Agent, Run
from orchestrator.telemetry.ended import Ended

Attributes: TypeAlias = dict[str, str | int]

VALUE_MAX: Final = 256
"""Characters that are told of a value: an agent may give its failure a name of any length."""

COUNT_MAX: Final = (1 << 63) - 1
"""The largest number that has room in a span; one that has none would spoil all sent with it."""

OPERATION: Final = "gen_ai.operation.name"
PROVIDER: Final = "gen_ai.provider.name"
AGENT_ID: Final = "gen_ai.agent.id"
AGENT_NAME: Final = "gen_ai.agent.name"
AGENT_VERSION: Final = "gen_ai.agent.version"
CONVERSATION_ID: Final = "gen_ai.conversation.id"
INPUT_TOKENS: Final = "gen_ai.usage.input_tokens"
OUTPUT_TOKENS: Final = "gen_ai.usage.output_tokens"
ERROR_TYPE: Final = "error.type"
SERVER_ADDRESS: Final = "server.address"
SERVER_PORT: Final = "server.port"

OURS: Final = "orchestrator."
"""What names of our own begin with; behind it stands the word that the code uses."""

_OPERATIONS: Final = frozenset({"invoke_agent"})
"""Spans that are operations of the conventions."""
_NAMES: Final = {"operation": OPERATION, "agent_name": AGENT_NAME, "error": ERROR_TYPE}
_PROVIDERS: Final = {"openai": "openai"}
"""Whose way of speaking a protocol is; the others are our own."""
_PORTS: Final = {"http": 80, "https": 443}
_COUNTS: Final = {
    INPUT_TOKENS: ("prompt_tokens", "input_tokens"),
    OUTPUT_TOKENS: ("completion_tokens", "output_tokens"),
}
"""What agents call the counts of tokens in their `usage`."""


def told(ended: Ended) -> Attributes:
    """Return everything that is told of a span that is over, under its names."""
    operation = ended.name if ended.name in _OPERATIONS else None
    own = {"operation": operation, "outcome": ended.outcome, "error": ended.error}
    return named({**ended.attributes, **own})


def named(attributes: Mapping[str, Any]) -> Attributes:
    """Return attributes under their names; a Run, an Agent and a `usage` become several each."""
    found: Attributes = {}
    for word, value in attributes.items():
        match value:
            case Run():
                found |= _run(value)
            case Agent():
                found |= _agent(value)
            case dict():
                found |= _usage(value)
            case str():
                found[_NAMES.get(word, OURS + word)] = value[:VALUE_MAX]
            case int():
                found[_NAMES.get(word, OURS + word)] = value
            case _:
                pass  # nothing is known of it, as of the error of what went well
    return found


def fields(attributes: Mapping[str, Any]) -> Attributes:
    """Return attributes as fields of a log line, under the words of the code."""
    found: Attributes = {}
    for word, value in attributes.items():
        if isinstance(value, Run):
            ids = {"run_id": value.run_id, "session_id": value.session_id}
            found |= {**ids, "agent_id": value.agent_id}
        elif isinstance(value, str | int):
            found[word] = value[:VALUE_MAX] if isinstance(value, str) else value
    return found


def _run(run: Run) -> Attributes:
    parent = {OURS + "parent_run_id": run.parent_run_id} if run.parent_run_id else {}
    return {
        OURS + "run_id": run.run_id,
        OURS + "tenant": run.tenant,
        CONVERSATION_ID: run.session_id,
        AGENT_ID: run.agent_id,
        **parent,
    }


def _agent(agent: Agent) -> Attributes:
    url = urlsplit(agent.endpoint)
    found: Attributes = {
        AGENT_ID: agent.agent_id,
        AGENT_NAME: agent.name[:VALUE_MAX],
        PROVIDER: _PROVIDERS.get(agent.protocol, "orchestrator"),
    }
    if agent.version:
        found[AGENT_VERSION] = agent.version[:VALUE_MAX]
    if url.hostname:
        found[SERVER_ADDRESS] = url.hostname
        found[SERVER_PORT] = url.port or _PORTS.get(url.scheme, 0)
    return found


def _usage(usage: Mapping[str, Any]) -> Attributes:
    counts = {
        name: next((usage[word] for word in words if word in usage), None)
        for name, words in _COUNTS.items()
    }
    return {
        name: count
        for name, count in counts.items()
        if type(count) is int and 0 <= count <= COUNT_MAX
    }
