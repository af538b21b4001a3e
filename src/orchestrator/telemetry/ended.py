"""What is told of a span when it is over."""

from typing import Any

import msgspec

from orchestrator.core.trace import Trace


class Ended(msgspec.Struct, frozen=True, kw_only=True):
    """A span that is over: `began` is in milliseconds UTC, `error` the code of what went wrong.

    `attributes` have the words of the code for names; a Run, an Agent and a `usage` may be among
    them, which are taken apart only where somebody wants to know. Without a `trace` the span is
    counted and logged, and sent to nobody.
    """

    name: str
    trace: Trace | None
    began: int
    seconds: float
    outcome: str
    error: str | None = None
    attributes: dict[str, Any]
