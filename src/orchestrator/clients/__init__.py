"""How we call others: agents, the ingress — one file per protocol."""

from orchestrator.clients.exchange import HTTP
from orchestrator.clients.http import HTTPClient
from orchestrator.clients.invocation import AgentHTTP
from orchestrator.clients.json_agent import JSONAgent
from orchestrator.clients.native import Native
from orchestrator.clients.openai_agent import OpenAIAgent
from orchestrator.clients.probe import HTTPProbe
from orchestrator.clients.push import IngressPush
from orchestrator.ports import AgentClient

__all__ = ["HTTPClient", "HTTPProbe", "IngressPush", "agent_clients"]


def agent_clients(http: HTTP) -> dict[str, AgentClient]:
    """Return a client for each agent protocol, by the name under which agents register it."""
    return {
        "native": AgentHTTP(http, Native()),
        "json": AgentHTTP(http, JSONAgent()),
        "openai": AgentHTTP(http, OpenAIAgent()),
    }
