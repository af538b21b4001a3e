"""The WebSocket front door, a separate process that speaks only the public contract."""

from orchestrator.ingress.server import serve
from orchestrator.ingress.told import IngressSettings

__all__ = ["IngressSettings", "serve"]
