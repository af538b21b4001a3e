"""An ingress that is slow, refuses, and counts what it was given."""

import asyncio
from collections.abc import Sequence

import msgspec

from orchestrator.core.errors import Unavailable
from orchestrator.ports import PushAnswer
from orchestrator.testing.simulator.stage import Stage


class Pushed(msgspec.Struct):
    """One pushed event, as far as the order of events is concerned."""

    run_id: str
    seq: int


_DECODER = msgspec.json.Decoder(Pushed)


class SimPush:
    """`ports.PushClient` of one server."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._chance = stage.chance.of(f"push {len(stage.servers)}")

    async def push(self, tenant: str, session_id: str, events: Sequence[bytes]) -> PushAnswer:
        """Take events, or fail before or after taking them."""
        stage, chance = self._stage, self._chance
        await asyncio.sleep(chance.between(0, 0.03))
        if not stage.calm and chance.hit(0.1):
            stage.fault("push_refused")
            raise Unavailable("the ingress is away")
        del tenant, session_id
        for data in events:
            pushed = _DECODER.decode(data)
            stage.pushed.setdefault(pushed.run_id, []).append((pushed.seq, data))
        if not stage.calm and chance.hit(0.05):
            stage.fault("push_answer_lost")
            raise Unavailable("the ingress took it, and its answer was lost")
        return PushAnswer(batch=chance.hit(0.5))
