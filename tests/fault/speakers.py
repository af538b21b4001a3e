"""Who speaks into runs on PostgreSQL and remembers what was acknowledged; who waits for locks."""

import asyncio
from collections.abc import Sequence
from typing import Any, Final

import asyncpg
import msgspec
from msgspec.structs import replace

from orchestrator.core import ids
from orchestrator.core.errors import Unavailable
from orchestrator.core.events import AgentStreamDelta, draft
from orchestrator.core.ops import Committed, Op
from orchestrator.core.records import Run
from orchestrator.ports import Store
from orchestrator.testing import records as r
from orchestrator.world import RealWorld

UNGRANTED: Final = "SELECT count(*) FROM pg_locks WHERE NOT granted"


def minted(session: str, at: int | None = None) -> Run:
    """Return a CREATED run whose id was minted at a time, now unless told."""
    world = RealWorld()
    at = world.now() if at is None else at
    shard = ids.shard_of("default", session)
    return replace(r.run(1, session), run_id=ids.mint("run", at, world.noise(16), shard))


async def accepted(store: Store, count: int) -> list[Run]:
    """Accept runs, each of a session of its own, with ids as minted now."""
    made = [minted(f"s{n}") for n in range(count)]
    outcomes = await store.commit(*map(r.accept, made))
    assert all(isinstance(outcome, Committed) for outcome in outcomes)
    return made


class Speaker:
    """Says numbered words into a run, again where the store was away, and knows what was taken."""

    def __init__(self, store: Store, made: Run) -> None:
        self.store = store
        self.run = made
        self.taken: list[str] = []
        self.away = 0
        self._said = 0

    async def say(self) -> None:
        """Say one word; return when it is taken."""
        self._said += 1
        text = f"{self._said} of {self.run.run_id}"
        op = Op(run_id=self.run.run_id, events=(draft("evt_w", r.AT, AgentStreamDelta(text=text)),))
        while True:
            answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
            self.store.append(op, answer.set_result)
            said = await answer
            if isinstance(said, Unavailable):
                self.away += 1
                await asyncio.sleep(0.01)
                continue
            assert isinstance(said, Committed), said
            self.taken.append(text)
            return

    async def talk(self, ended: asyncio.Event) -> None:
        """Say word after word until it is over."""
        while not ended.is_set():
            await self.say()

    async def heard(self, store: Store) -> list[str]:
        """Return the words of the run's log."""
        texts = list[str]()
        after = 0
        while batch := await store.read(self.run.run_id, after):
            assert [event.seq for event in batch] == list(range(after + 1, batch.seqs[-1] + 1))
            texts += [
                msgspec.json.decode(event.data)["payload"]["text"]
                for event in batch
                if event.type == AgentStreamDelta.type
            ]
            after = batch.seqs[-1]
        return texts


async def grown(speakers: Sequence[Speaker], by: int) -> None:
    """Wait until each has been heard that many times more."""
    wanted = [len(speaker.taken) + by for speaker in speakers]
    while any(len(s.taken) < n for s, n in zip(speakers, wanted, strict=True)):
        await asyncio.sleep(0.005)


async def waiting(holder: "asyncpg.Connection[Any]", count: int) -> None:
    """Wait until so many wait for a lock."""
    while await holder.fetchval(UNGRANTED) < count:
        await asyncio.sleep(0)
