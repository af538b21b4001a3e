"""What happens: turns commands into events and drives each run to its end."""

from orchestrator.engine.engine import Engine, Health, Outside
from orchestrator.engine.intake import Accepted, Invoke
from orchestrator.engine.limits import TENANT, EngineSettings
from orchestrator.engine.registry import Registration
from orchestrator.engine.runs import EventPage, Page, Tree
from orchestrator.engine.sessions import MessagePage
from orchestrator.engine.tail import SessionEvent

__all__ = [
    "TENANT",
    "Accepted",
    "Engine",
    "EngineSettings",
    "EventPage",
    "Health",
    "Invoke",
    "MessagePage",
    "Outside",
    "Page",
    "Registration",
    "SessionEvent",
    "Tree",
]
