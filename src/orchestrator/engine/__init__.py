"""What happens: turns commands into events and drives each run to its end."""

from orchestrator.core.access import TENANT
from orchestrator.engine.access import Access
from orchestrator.engine.audit import Verified
from orchestrator.engine.engine import Engine, Health, Outside
from orchestrator.engine.intake import Accepted, Invoke
from orchestrator.engine.keys import Made, NewKey
from orchestrator.engine.limits import AccessSettings, EngineSettings
from orchestrator.engine.registry import Registration
from orchestrator.engine.runs import EventPage, Page, Tree
from orchestrator.engine.sessions import MessagePage
from orchestrator.engine.tail import SessionEvent

__all__ = [
    "TENANT",
    "Accepted",
    "Access",
    "AccessSettings",
    "Engine",
    "EngineSettings",
    "EventPage",
    "Health",
    "Invoke",
    "Made",
    "MessagePage",
    "NewKey",
    "Outside",
    "Page",
    "Registration",
    "SessionEvent",
    "Tree",
    "Verified",
]
