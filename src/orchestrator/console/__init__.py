"""The web pages: static shells and small ES modules that speak the public API, no build step."""

from orchestrator.console.routes import ROUTES

__all__ = ["ROUTES"]
