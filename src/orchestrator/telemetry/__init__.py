"""What the process tells of itself: log lines, durations, and spans of the work it does."""

from orchestrator.telemetry.durations import DURATIONS
from orchestrator.telemetry.ended import Ended
from orchestrator.telemetry.logs import bind, bound, configure, get_logger, unbound
from orchestrator.telemetry.process import exporting, heard, stats
from orchestrator.telemetry.spans import Clock, Span, span, tell

__all__ = [
    "DURATIONS",
    "Clock",
    "Ended",
    "Span",
    "bind",
    "bound",
    "configure",
    "exporting",
    "get_logger",
    "heard",
    "span",
    "stats",
    "tell",
    "unbound",
]
