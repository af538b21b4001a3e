"""What every bus must keep to: hints reach whoever listens, and nobody is ever made to wait."""

import asyncio

from orchestrator.core.batch import Batch
from orchestrator.ports import Bus, Hint

WAIT_S = 5.0


async def heads(mailbox: object, wanted: int) -> list[int]:
    """Take until a hint says at least `wanted`, and return every head that came."""
    found: list[int] = []
    async with asyncio.timeout(WAIT_S):
        while not found or found[-1] < wanted:
            found += [hint.head for hint in await mailbox.take()]  # type: ignore[attr-defined]  # a Mailbox
    return found


class BusContract:
    """Every bus that delivers; `bus` is a fixture."""

    async def test_hints_come_in_order_to_every_subscriber(self, bus: Bus) -> None:
        with bus.subscribe("run:a") as one, bus.subscribe("run:a") as two:
            for head in range(1, 101):
                bus.publish("run:a", Hint("a", head))
            assert await heads(one, 100) == await heads(two, 100) == sorted({*range(1, 101)})

    async def test_subjects_do_not_mix(self, bus: Bus) -> None:
        with bus.subscribe("run:a") as mailbox:
            bus.publish("run:b", Hint("b", 1))
            bus.publish("run:a", Hint("a", 2))
            assert await heads(mailbox, 2) == [2]

    async def test_a_sleeper_is_woken(self, bus: Bus) -> None:
        with bus.subscribe("runs") as mailbox:
            async with asyncio.TaskGroup() as tasks:
                taking = tasks.create_task(heads(mailbox, 7))
                await asyncio.sleep(0)
                bus.publish("runs", Hint("a", 7))
            assert taking.result() == [7]

    async def test_who_left_is_not_written_to(self, bus: Bus) -> None:
        with bus.subscribe("run:a"):
            pass
        bus.publish("run:a", Hint("a", 1))
        with bus.subscribe("run:a") as mailbox:
            bus.publish("run:a", Hint("a", 2))
            assert await heads(mailbox, 2) == [2]

    async def test_a_taker_that_is_cancelled_loses_nothing(self, bus: Bus) -> None:
        with bus.subscribe("run:a") as mailbox:
            async with asyncio.TaskGroup() as tasks:
                taking = tasks.create_task(mailbox.take())
                await asyncio.sleep(0)
                taking.cancel()
            bus.publish("run:a", Hint("a", 1))
            assert await heads(mailbox, 1) == [1]

    async def test_a_taker_that_is_cancelled_as_it_wakes_loses_nothing(self, bus: Bus) -> None:
        with bus.subscribe("run:a") as mailbox:
            async with asyncio.TaskGroup() as tasks:
                taking = tasks.create_task(mailbox.take())
                await asyncio.sleep(0)
                bus.publish("run:a", Hint("a", 1))
                taking.cancel()
            assert taking.cancelled()
            assert await heads(mailbox, 1) == [1]

    async def test_who_does_not_take_costs_bounded_memory(self, bus: Bus) -> None:
        with bus.subscribe("run:a") as mailbox:
            for head in range(1, 101):
                events = Batch((head,), ("agent_stream_delta",), ["x" * 100_000])
                bus.publish("run:a", Hint("a", head, events))
            async with asyncio.timeout(WAIT_S):
                hints = await mailbox.take()
        assert sum(len(e.data) for hint in hints for e in hint.events) <= 2 << 20
        assert max(hint.head for hint in hints) == 100, "the newest head is never lost"
