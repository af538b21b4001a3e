"""The agent protocols that an agent can be registered with."""

from orchestrator.clients.exchange import HTTP
from orchestrator.clients.invocation import AgentHTTP
from orchestrator.clients.json_agent import JSONAgent
from orchestrator.clients.native import Native
from orchestrator.clients.openai_agent import OpenAIAgent
from orchestrator.ports import AgentClient


def agent_clients(http: HTTP) -> dict[str, AgentClient]:
    """Return a client for each agent protocol, by the name under which agents register it."""
    return {
        "native": AgentHTTP(http, Native()),
        "json": AgentHTTP(http, JSONAgent()),
        "openai": AgentHTTP(http, OpenAIAgent()),
    }
