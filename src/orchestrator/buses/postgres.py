"""The bus between servers that share a PostgreSQL database: hints by NOTIFY, on one connection.

A NOTIFY within each transaction would make commits wait for one another, so hints are gathered:
while one statement is on its way the next one fills. Few small events travel with their hint, for
a reader elsewhere would ask the database for them at once. What is lost with a connection is lost;
who was to be told looks at the store each second.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any, Final

import asyncpg
import msgspec

from orchestrator.buses.local import LocalBus
from orchestrator.core.batch import Batch
from orchestrator.ports import Hint, World
from orchestrator.telemetry import get_logger

log = get_logger(__name__)

CHANNEL: Final = "orchestrator"
PAYLOAD_MAX: Final = 7900
"""Bytes of one NOTIFY; the server takes less than 8,000."""
EVENTS_MAX: Final = 32
EVENTS_BYTES: Final = 4000
"""How many events of a run travel with its hint at most, and how large they may be together."""
PENDING_MAX: Final = 10_000
"""Runs whose hints wait to be sent; the oldest go when the database is away for long."""
_AGAIN_S: Final = (0.1, 5.0)
_CLOSE_S: Final = 2.0
_CONNECT_S: Final = 5.0
_SETTINGS: Final = {
    "application_name": "orchestrator bus",
    "idle_session_timeout": "0",
    "synchronous_commit": "off",  # a NOTIFY is a transaction, and nothing of it is to be kept
}
_HERE: Final = "runs"
"""The subject that stays in its process: each server looks after its own runs."""
_LOST: Final = (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError)


class _Word(msgspec.Struct, array_like=True):
    """What is told of one run: its new head, who is to hear it, the events that end there."""

    run_id: str
    head: int
    subjects: list[str]
    types: list[str] = []
    texts: list[msgspec.Raw] = []

    def take(self, subject: str, hint: Hint) -> None:
        """Tell `subject`, too, and all of this hint."""
        if subject not in self.subjects:
            self.subjects.append(subject)
        if hint.head > self.head:
            self._follow(hint.events, hint.head)
            self.head = hint.head

    def _follow(self, events: Batch, head: int) -> None:
        """Take events along that end at the head, and keep those before where none is missing."""
        if not events or events.seqs[-1] != head or events.size > EVENTS_BYTES:
            self.bare()
            return
        if events.seqs[0] != self.head + 1 or len(self.texts) + len(events) > EVENTS_MAX:
            self.bare()
        if len(events) <= EVENTS_MAX:
            self.types += events.types
            self.texts += [msgspec.Raw(text.encode()) for text in events.texts]

    def bare(self) -> None:
        """Leave the events to whoever reads the store."""
        self.types, self.texts = [], []

    def hint(self) -> Hint:
        """Return the hint, with the events that came along."""
        if not self.texts:
            return Hint(self.run_id, self.head)
        seqs = range(self.head - len(self.texts) + 1, self.head + 1)
        texts = [bytes(text).decode() for text in self.texts]
        return Hint(self.run_id, self.head, Batch(seqs, self.types, texts))


class _Words(msgspec.Struct, array_like=True):
    """One NOTIFY; `sender` tells it from our own."""

    sender: str
    words: list[_Word]


_DECODER: Final = msgspec.json.Decoder(_Words)


class PostgresBus(LocalBus):
    """`ports.Bus` over LISTEN and NOTIFY; within the process hints go directly, with events."""

    certain = False

    def __init__(self, url: str, world: World) -> None:
        super().__init__()
        self._url = url
        self._world = world
        self._sender = world.noise(8).hex()
        self._pending: dict[str, _Word] = {}
        self._wake = asyncio.Event()
        self.sent = self.heard = self.dropped = self.lost = 0

    def publish(self, subject: str, hint: Hint) -> None:
        """Tell this process now and the others soon."""
        self.deliver(subject, hint)
        if subject == _HERE:
            return
        word = self._pending.get(hint.run_id)
        if word is None:
            if len(self._pending) >= PENDING_MAX:
                del self._pending[next(iter(self._pending))]
                self.dropped += 1
            word = self._pending[hint.run_id] = _Word(hint.run_id, 0, [])
        word.take(subject, hint)
        self._wake.set()

    def stats(self) -> dict[str, float]:
        """Return counters for `/metrics`."""
        return {
            "sent_total": self.sent,
            "heard_total": self.heard,
            "dropped_total": self.dropped,
            "connections_lost_total": self.lost,
        }

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Speak and listen for as long as the context is open."""
        async with asyncio.TaskGroup() as tasks:
            talking = tasks.create_task(self._talk(), name="bus")
            try:
                yield
            finally:
                talking.cancel()

    async def _talk(self) -> None:
        pause = _AGAIN_S[0]
        while True:
            try:
                connection = await asyncpg.connect(
                    self._url, timeout=_CONNECT_S, server_settings=_SETTINGS
                )
            except _LOST as error:
                log.info("bus_away", error=str(error)[:200])
                await self._world.sleep(pause)
                pause = min(pause * 2, _AGAIN_S[1])
                continue
            pause = _AGAIN_S[0]
            try:
                await self._on(connection)
            except _LOST as error:
                self.lost += 1
                log.info("bus_lost", error=str(error)[:200])
            finally:
                connection.terminate()

    async def _on(self, connection: "asyncpg.Connection[Any]") -> None:
        """Speak and listen on one connection, until it is lost."""
        connection.add_termination_listener(lambda _: self._wake.set())
        await connection.add_listener(CHANNEL, self._hear)
        while True:
            await self._wake.wait()
            self._wake.clear()
            if connection.is_closed():
                raise ConnectionError("the server closed the connection")
            pending, self._pending = self._pending, {}
            if pending:
                await connection.execute(
                    "SELECT pg_notify($1, t) FROM unnest($2::text[]) AS t",
                    CHANNEL,
                    list(self._payloads(list(pending.values()))),
                    timeout=_CONNECT_S,
                )
                self.sent += len(pending)

    def _payloads(self, words: list[_Word]) -> Iterator[str]:
        """Return words as texts that fit; a word that fits nowhere is left to the look."""
        text = msgspec.json.encode(_Words(self._sender, words)).decode()
        if len(text.encode()) <= PAYLOAD_MAX:
            yield text
        elif len(words) > 1:
            half = len(words) // 2
            yield from self._payloads(words[:half])
            yield from self._payloads(words[half:])
        elif words[0].texts:
            words[0].bare()
            yield from self._payloads(words)

    def _hear(self, *told: object) -> None:
        """Take one NOTIFY: (connection, process id, channel, payload)."""
        try:
            said = _DECODER.decode(str(told[-1]))
        except ValueError:
            return  # somebody else uses the channel
        if said.sender == self._sender:
            return
        for word in said.words:
            self.heard += 1
            self._pass_on(word)

    def _pass_on(self, word: _Word) -> None:
        wanted = [subject for subject in word.subjects if subject in self._mailboxes]
        if wanted:
            hint = word.hint()
            for subject in wanted:
                self.deliver(subject, hint)
