"""The spans of runs: each run has one, which its attempts hang below."""

from asyncio import CancelledError
from typing import Final

from orchestrator.core.errors import Conflict
from orchestrator.core.records import Agent, Invocation, Run
from orchestrator.core.states import RunState
from orchestrator.core.trace import Trace, of_run
from orchestrator.engine.clocks import Stopped
from orchestrator.ports import Claimed, World
from orchestrator.telemetry import Ended, Span, get_logger, heard, span, tell

log = get_logger(__name__)

_STOPS: Final = (Stopped, Conflict, CancelledError)
"""What leaves an attempt that somebody else has ended, or that is let go of."""


class RunSpans:
    """Tells of each attempt made here, and of the end of each run, whoever decided it here.

    The trace is known of runs that are driven here at their end; the others are told of without.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._driven: dict[str, tuple[Claimed, Invocation, Agent | None]] = {}

    def drive(self, claimed: Claimed, invocation: Invocation, agent: Agent | None) -> None:
        """Note what a run belongs to that is driven from now on."""
        if heard():
            self._driven[claimed.run.run_id] = (claimed, invocation, agent)

    def let_go(self, claimed: Claimed) -> None:
        """Forget a run that is not driven any more: its span is for whoever ends it."""
        found = self._driven.get(claimed.run.run_id)
        if found is not None and found[0] is claimed:  # else it came back to us, fenced off
            del self._driven[claimed.run.run_id]

    def attempt(self, run: Run, agent: Agent) -> Span:
        """Return the span of the attempt that `run` is in."""
        return span(
            "invoke_agent", self._world, stops=_STOPS, run=run, agent=agent, attempt=run.attempt
        )

    def ended(self, run: Run) -> None:
        """Tell of the end of a run."""
        _, invocation, agent = self._driven.pop(run.run_id, (None, None, None))
        if run.status is RunState.FAILED:
            log.info(
                "run_failed", run_id=run.run_id, session_id=run.session_id, agent_id=run.agent_id,
                code=run.error_code, attempt=run.attempt,
            )  # fmt: skip
        taken_ms = (run.ended_at or run.created_at) - run.created_at
        tell(
            Ended(
                name="run",
                trace=None if invocation is None else _place(invocation),
                began=run.created_at,
                seconds=max(0, taken_ms) / 1000,
                outcome=run.status.lower(),
                error=run.error_code if run.status is RunState.FAILED else None,
                attributes={"run": run, "agent_name": agent.name if agent else None},
            )
        )


def _place(invocation: Invocation) -> Trace:
    return of_run(invocation.run_id, invocation.traceparent, invocation.tracestate)
