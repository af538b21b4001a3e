"""How others call us: HTTP and SSE — one file per noun, one table of routes."""

from orchestrator.api.application import create_app, heartbeats
from orchestrator.api.calls import APISettings

__all__ = ["APISettings", "create_app", "heartbeats"]
