"""An agent whose behaviour the seed decides, call by call."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

from orchestrator.core.errors import AgentCycle, AgentFailure, OrchestratorError
from orchestrator.core.frames import Delta, Deltas, Done, Failed, Frame, Other, Paused, State
from orchestrator.engine import Invoke
from orchestrator.ports import AgentCall
from orchestrator.testing.simulator.chance import Chance
from orchestrator.testing.simulator.plan import AGENTS
from orchestrator.testing.simulator.stage import Call, Gone, Stage

if TYPE_CHECKING:
    from orchestrator.testing.simulator.server import Server

_ENDS: Final = (
    *["done"] * 10, "final", "final", "error", "eof", "unavailable", "status", "hang",
    "protocol", "pause", "silent",
)  # fmt: skip
"""How a call ends, with the weights of a bad day."""


class SimAgent:
    """`ports.AgentClient` of one server: every agent that it calls."""

    def __init__(self, stage: Stage, server: "Server") -> None:
        self._stage = stage
        self._server = server

    @asynccontextmanager
    async def open(self, call: AgentCall) -> AsyncIterator[AsyncIterator[Sequence[Frame]]]:
        """Play one call; what was said and when it was cut off is kept for the checks."""
        stage = self._stage
        record = self._opened(call)
        chance = stage.chance.of(f"call {record.number}")
        end = chance.pick(_ENDS)
        try:
            await asyncio.sleep(chance.between(0, 0.02))
            if end == "unavailable":
                stage.fault("agent_unavailable")
                raise AgentFailure("agent_unavailable", "nobody listens there")
            if end == "status":
                stage.fault("agent_status")
                raise AgentFailure("agent_status", "the agent answered 500")
            yield self._play(record, call, chance, end)
        finally:
            self._closed(record)

    def _opened(self, call: AgentCall) -> Call:
        stage = self._stage
        run = stage.disk.tables.run(call.run_id)
        record = Call(
            number=len(stage.calls) + 1,
            run_id=call.run_id,
            session_id=call.session_id,
            attempt=call.attempt,
            server=self._server,
            messages=list(call.messages),
            opened=stage.loop.time(),
            root=run is not None and run.parent_run_id is None,
            in_turn=run is not None and run.parent_run_id is None and not run.parallel,
        )
        stage.calls.append(record)
        stage.note("agent", f"call {record.number}: {stage.name(call.run_id)} #{call.attempt}")
        stage.opening(record)
        return record

    def _closed(self, record: Call) -> None:
        record.closed = self._stage.loop.time()
        self._stage.note("agent", f"call {record.number} is closed")

    async def _play(
        self, record: Call, call: AgentCall, chance: Chance, end: str
    ) -> AsyncIterator[Sequence[Frame]]:
        if end == "silent":
            self._stage.fault("agent_silent")
            await asyncio.sleep(chance.between(0.2, 3))
        long = self._stage.plan.long and chance.hit(0.5)
        for _ in range(8 if long else chance.whole(0, 4)):
            slow = long and not self._stage.calm
            await asyncio.sleep(chance.between(1, 4) if slow else chance.between(0, 0.15))
            yield self._words(record, chance)
            if chance.hit(0.08):
                await self._call_child(record, call, chance)
        await asyncio.sleep(chance.between(0, 0.05))
        if end in {"eof", "hang", "protocol"}:
            await self._break(end)
            return
        yield [*self._words(record, chance), self._ending(record, end)]

    def _words(self, record: Call, chance: Chance) -> list[Frame]:
        known = len(record.words)
        words = [f"{record.number}.{known + n} " for n in range(chance.whole(0, 2))]
        record.words += words
        frames: list[Frame] = [Deltas(words)] if len(words) > 1 else list(map(Delta, words))
        if chance.hit(0.1):
            frames.append(State("thinking"))
        if chance.hit(0.1):
            frames.append(Other("note", {"call": record.number}))
        return frames

    def _ending(self, record: Call, end: str) -> Frame:
        self._stage.fault(f"agent_{end}")
        if end == "error":
            return Failed("agent_error", "it did not work out")
        if end == "pause":
            return Paused(("tc_none",))
        record.final = f"answer of call {record.number}" if end == "final" else None
        return Done(final_message=record.final, usage={"tokens": 1})

    async def _break(self, end: str) -> None:
        self._stage.fault(f"agent_{end}")
        if end == "hang" and self._stage.plan.long:
            await self._stage.calmed.wait()
        elif end == "hang":
            await asyncio.Event().wait()
        if end == "protocol":
            raise AgentFailure("agent_protocol", "that is not JSON", retryable=False)

    async def _call_child(self, record: Call, call: AgentCall, chance: Chance) -> None:
        stage = self._stage
        asked = Invoke(
            agent_id=chance.pick(AGENTS).agent_id,
            content=f"child of call {record.number}",
            request_id=f"child {len(record.words)}",
            parent_run_id=call.run_id,
        )
        try:
            child = (await self._server.call(lambda engine: engine.runs.invoke(asked))).run
        except (OrchestratorError, Gone) as error:
            if isinstance(error, AgentCycle):
                stage.fault("agent_cycle")
            stage.note("agent", f"call {record.number} gets no child: {error!r}")
        else:
            stage.fault("child")
            stage.note("agent", f"call {record.number} has a child: {stage.name(child.run_id)}")


def said(record: Call) -> Any:
    """Return the message that a call which ended well must have led to."""
    return record.final if record.final is not None else "".join(record.words)
