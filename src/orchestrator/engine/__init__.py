"""What happens: turns commands into events and drives each run to its end."""

from orchestrator.core.access import TENANT
from orchestrator.engine.access import Access
from orchestrator.engine.audit import Verified
from orchestrator.engine.engine import Engine, Health, Outside
from orchestrator.engine.instances import Seen
from orchestrator.engine.intake import Accepted, Invoke
from orchestrator.engine.keys import Made, NewKey
from orchestrator.engine.limits import AccessSettings, EngineSettings
from orchestrator.engine.registry import Found, Registration
from orchestrator.engine.runs import EventPage, Page, Tree
from orchestrator.engine.session_tail import LogReset, SessionEvent, SessionItem
from orchestrator.engine.sessions import MessagePage

__all__ = [
    "TENANT",
    "Accepted",
    "Access",
    "AccessSettings",
    "Engine",
    "EngineSettings",
    "EventPage",
    "Found",
    "Health",
    "Invoke",
    "LogReset",
    "Made",
    "MessagePage",
    "NewKey",
    "Outside",
    "Page",
    "Registration",
    "Seen",
    "SessionEvent",
    "SessionItem",
    "Tree",
    "Verified",
]
