"""The clocks of one invocation, and the switch that stops it from outside."""

import asyncio
from types import TracebackType
from typing import Self

from orchestrator.core.errors import AgentFailure
from orchestrator.core.records import Timeouts
from orchestrator.engine.limits import EngineSettings

HEARING_S = 0.05
"""How long after its time a silence is judged."""
_NEVER = float("inf")
_SENTENCES = {
    "agent_timeout": "the agent did not finish within {ms} ms",
    "agent_first_byte_timeout": "the agent sent nothing within {ms} ms",
    "agent_idle_timeout": "the agent sent nothing for {ms} ms",
}


class Stopped(Exception):  # not an error: somebody threw the switch
    """The invocation was stopped from outside: `ended`, `drain` or `fenced`."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Switch:
    """Stops whatever a run is doing, once and for all; throwing it twice changes nothing."""

    __slots__ = ("_clocks", "reason")

    def __init__(self) -> None:
        self.reason: str | None = None
        self._clocks: Clocks | None = None

    def throw(self, reason: str) -> None:
        """Stop the run's present and later waits with `reason`."""
        if self.reason is None:
            self.reason = reason
            if self._clocks is not None:
                self._clocks.fire()

    def guard(self, limits: dict[str, int | None]) -> "Clocks":
        """Return a context that ends with AgentFailure (a clock) or Stopped (the switch)."""
        self._clocks = Clocks(self, limits)
        return self._clocks


class Clocks:
    """The context of one invocation: its whole time, the silence before and between bytes.

    Silence is judged a moment after its time: when this process itself stood still, what the agent
    said meanwhile waits in the socket and is heard first.
    """

    __slots__ = (
        "_limits", "_loop", "_open", "_quiet", "_quiet_code", "_silent", "_switch", "_timeout",
        "_timer",
    )  # fmt: skip

    def __init__(self, switch: Switch, limits: dict[str, int | None]) -> None:
        self._switch = switch
        self._limits = limits
        self._loop = asyncio.get_running_loop()
        self._timeout = asyncio.timeout(None)
        self._open = self._silent = False
        self._quiet = _NEVER
        self._quiet_code = "agent_first_byte_timeout"
        self._timer: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> Self:
        if self._switch.reason is not None:
            raise Stopped(self._switch.reason)
        await self._timeout.__aenter__()
        self._open = True
        self._quiet = self._from_now("agent_first_byte_timeout")
        self._watch()
        whole = self._from_now("agent_timeout")
        self._reschedule(None if whole == _NEVER else whole)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self._open = False
        if self._timer is not None:
            self._timer.cancel()
        try:
            await self._timeout.__aexit__(kind, error, tb)
        except TimeoutError:
            raise self._verdict() from None

    def alive(self) -> None:
        """Note that the agent was heard: from here on the idle clock runs, if there is one."""
        if self._quiet == _NEVER and self._limits.get("agent_idle_timeout") is None:
            return
        self._quiet_code = "agent_idle_timeout"
        self._quiet = self._from_now("agent_idle_timeout")
        if self._timer is not None and self._timer.when() > self._quiet:
            self._timer.cancel()
            self._timer = None
        if self._timer is None:  # else it will see for itself how much is left
            self._watch()

    def fire(self) -> None:
        """End the context now."""
        self._reschedule(self._loop.time())

    def _from_now(self, code: str) -> float:
        limit = self._limits.get(code)
        return self._loop.time() + limit / 1000 if limit else _NEVER

    def _watch(self) -> None:
        if self._quiet != _NEVER:
            self._timer = self._loop.call_at(self._quiet, self._look)

    def _look(self) -> None:
        if self._quiet > self._loop.time():
            self._timer = None
            self._watch()
        else:
            self._timer = self._loop.call_later(HEARING_S, self._judge, self._quiet)

    def _judge(self, quiet: float) -> None:
        self._timer = None
        if self._quiet == quiet:
            self._silent = True
            self.fire()
        else:
            self._watch()

    def _reschedule(self, when: float | None) -> None:
        if self._open and not self._timeout.expired():
            self._timeout.reschedule(when)

    def _verdict(self) -> Exception:
        if self._switch.reason is not None:
            return Stopped(self._switch.reason)
        code = self._quiet_code if self._silent else "agent_timeout"
        return AgentFailure(code, _SENTENCES[code].format(ms=self._limits[code]))


def limits_of(
    settings: EngineSettings, timeouts: Timeouts, wanted_ms: int | None
) -> dict[str, int | None]:
    """Return an invocation's clocks: the agent's before the server's; the caller may shorten."""
    whole = timeouts.invoke_ms or settings.agent_timeout_ms
    return {
        "agent_timeout": min(whole, wanted_ms) if wanted_ms else whole,
        "agent_first_byte_timeout": timeouts.first_byte_ms or settings.first_byte_timeout_ms,
        "agent_idle_timeout": timeouts.idle_ms or settings.idle_timeout_ms,
    }
