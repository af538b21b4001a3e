"""Every bus that delivers keeps the bus's contract; what holds for one alone stands below it."""

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest

from orchestrator.buses.local import LocalBus
from orchestrator.buses.null import NullBus
from orchestrator.buses.postgres import (
    EVENTS_BYTES,
    EVENTS_MAX,
    PAYLOAD_MAX,
    PENDING_MAX,
    PostgresBus,
)
from orchestrator.core.batch import EMPTY, Batch
from orchestrator.ports import Bus, Hint, Mailbox
from orchestrator.testing.bus_contract import BusContract, heads
from orchestrator.world import RealWorld

from .. import postgres
from ..engine.rig import until


class TestLocalBus(BusContract):
    @pytest.fixture
    def bus(self) -> Bus:
        return LocalBus()


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """Hand out the address of a server."""
    with postgres.address() as url:
        yield url


@pytest.fixture
async def bus(server: str) -> AsyncIterator[PostgresBus]:
    """Hand out a bus that is connected."""
    one = PostgresBus(server, RealWorld())
    async with one.running():
        yield one


@pytest.fixture
async def other(server: str, bus: PostgresBus) -> AsyncIterator[PostgresBus]:
    """Hand out the bus of another process, once the two hear each other."""
    two = PostgresBus(server, RealWorld())
    async with two.running():
        await acquainted(bus, two)
        yield two


async def hints_of(mailbox: Mailbox, head: int) -> list[Hint]:
    """Take until the newest hint says `head`."""
    found = list[Hint]()
    async with asyncio.timeout(10):
        while not found or found[-1].head < head:
            found += await mailbox.take()
    return found


async def acquainted(one: PostgresBus, two: PostgresBus) -> None:
    for speaker, listener in ((one, two), (two, one)):
        before = listener.heard
        async with asyncio.timeout(10):
            while listener.heard == before:
                speaker.publish("run:hello", Hint("hello", 1))
                await asyncio.sleep(0.02)


class TestPostgresBus(BusContract):
    @pytest.fixture
    def bus(self, bus: PostgresBus) -> Bus:
        return bus


class TestPostgresBusFromElsewhere:
    """What another process hears."""

    async def test_the_newest_head_comes_without_its_events(
        self, bus: PostgresBus, other: PostgresBus
    ) -> None:
        with other.subscribe("run:a") as mailbox:
            for head in range(1, 1001):
                bus.publish("run:a", Hint("a", head))
            found = await heads(mailbox, 1000)
        assert found == sorted(set(found))
        assert len(found) < 1000, "they are gathered, or commits would wait for one another"

    async def test_small_events_travel_with_their_hint_byte_for_byte(
        self, bus: PostgresBus, other: PostgresBus
    ) -> None:
        said = [f'{{"text":"ü \\u0000 {n} 🦀"}}' for n in range(1, 21)]
        with other.subscribe("run:a") as mailbox:
            for n, text in enumerate(said, 1):
                bus.publish("run:a", Hint("a", n, Batch((n,), ("agent_stream_delta",), [text])))
            came = await hints_of(mailbox, 20)
        assert [text for hint in came for text in hint.events.texts] == said
        assert [n for hint in came for n in hint.events.seqs] == list(range(1, 21))

    @pytest.mark.parametrize("before", [1, 5])
    async def test_what_is_large_or_has_a_hole_before_it_is_left_to_the_store(
        self, bus: PostgresBus, other: PostgresBus, before: int
    ) -> None:
        large = Batch((6,), ("agent_event",), ['"' + "x" * EVENTS_BYTES + '"'])
        many = range(7, 7 + EVENTS_MAX + 1)
        with other.subscribe("run:a") as mailbox:
            bus.publish("run:a", Hint("a", before, Batch((before,), ("agent_event",), ["1"])))
            bus.publish("run:a", Hint("a", 6, large))
            assert [hint.events for hint in await hints_of(mailbox, 6)][-1] == EMPTY
            words = Batch(many, ["agent_event"] * len(many), ["1"] * len(many))
            bus.publish("run:a", Hint("a", many[-1], words))
            assert (await hints_of(mailbox, many[-1]))[-1].events == EMPTY

    async def test_subjects_do_not_mix_and_runs_stay_at_home(
        self, bus: PostgresBus, other: PostgresBus
    ) -> None:
        with other.subscribe("session:t/s") as mailbox, other.subscribe("runs") as runs:
            bus.publish("runs", Hint("a", 1))
            bus.publish("run:a", Hint("a", 1))
            bus.publish("session:t/s", Hint("b", 2))
            assert await heads(mailbox, 2) == [2]
            other.deliver("runs", Hint("c", 3))
            assert await heads(runs, 3) == [3]

    async def test_many_runs_at_once_are_told_in_payloads_that_fit(
        self, bus: PostgresBus, other: PostgresBus
    ) -> None:
        names = [f"run_{number:028}" for number in range(2000)]
        with other.subscribe("session:t/s") as mailbox:
            for name in names:
                bus.publish("session:t/s", Hint(name, 7))
            found: set[str] = set()
            async with asyncio.timeout(10):
                while len(found) < len(names):
                    found |= {hint.run_id for hint in await mailbox.take()}
        assert found == set(names)
        assert PAYLOAD_MAX < 2000 * 30

    async def test_a_lost_connection_heals(
        self, bus: PostgresBus, other: PostgresBus, server: str
    ) -> None:
        lost = (bus.lost, other.lost)
        await postgres.ask(
            server,
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE (query LIKE '%pg_notify%' OR query LIKE 'LISTEN%') AND pid <> pg_backend_pid()",
        )
        await until(lambda: bus.lost > lost[0] and other.lost > lost[1])
        await acquainted(bus, other)

    async def test_what_waits_for_a_server_that_is_away_is_bounded(self) -> None:
        away = PostgresBus("postgresql://nobody@127.0.0.1:1/none", RealWorld())
        async with away.running():
            for number in range(PENDING_MAX + 100):
                away.publish(f"run:{number}", Hint(str(number), 1))
            assert away.stats()["dropped_total"] == 100


async def test_the_null_bus_brings_nothing_but_what_was_looked_for() -> None:
    bus = NullBus()
    assert not bus.certain
    with bus.subscribe("run:a") as mailbox:
        bus.publish("run:a", Hint("a", 1))
        bus.deliver("run:a", Hint("a", 2))
        assert await heads(mailbox, 2) == [2]
        assert bus.subjects() == ["run:a"]
