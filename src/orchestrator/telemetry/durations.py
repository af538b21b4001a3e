"""How long things took, as histograms by outcome that `/metrics` serves."""

from functools import cache
from typing import Final

from prometheus_client import Histogram

_BUCKETS_S: Final = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 900, 3600)


def _histogram(name: str, text: str, *outcomes: str) -> Histogram:
    """Return a histogram that no registry keeps; its outcomes are there, at zero, from the start.

    Outcomes are words of ours: what an agent calls its failure has no bound and is not among them.
    """
    made = Histogram(f"orchestrator_{name}", text, ["outcome"], registry=None, buckets=_BUCKETS_S)
    for outcome in outcomes:
        made.labels(outcome)
    return made


DURATIONS: Final = {
    "run": _histogram("run_seconds", "runs, from acceptance to end", "done", "failed", "cancelled"),
    "invoke_agent": _histogram(
        "attempt_seconds", "invocations of agents", "done", "failed", "stopped"
    ),
}
"""The spans whose durations are counted, and where."""


def observe(span: str, outcome: str, seconds: float) -> None:
    """Count the duration of a span that ended; one that is not in `DURATIONS` is not counted."""
    child = _child(span, outcome)
    if child is not None:
        child.observe(seconds)


@cache
def _child(span: str, outcome: str) -> Histogram | None:
    return DURATIONS[span].labels(outcome) if span in DURATIONS else None
