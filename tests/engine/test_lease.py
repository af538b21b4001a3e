"""A server drives what it has a lease for: it stops in time, and goes on when the store is back."""

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest

from orchestrator.buses.local import LocalBus
from orchestrator.core.decide import Cancel
from orchestrator.core.errors import Unavailable
from orchestrator.core.frames import Delta, Done, Frame
from orchestrator.core.records import Lease, Run
from orchestrator.core.states import RunState
from orchestrator.engine.ledger import Ledger
from orchestrator.engine.limits import FENCE_S, LEASE_MS
from orchestrator.engine.replica import Replica
from orchestrator.ports import AgentCall

from .virtual import Virtual, free, play

LEASE_S = LEASE_MS / 1000


async def hangs(_: str) -> None:
    await asyncio.Event().wait()


async def fails(_: str) -> None:
    raise Unavailable("cut off")


class Lasting:
    """An agent whose first call is never over; the others answer at once."""

    def __init__(self, virtual: Virtual) -> None:
        self._world = virtual.world
        self.closed_at: int | None = None

    async def __call__(self, call: AgentCall) -> AsyncIterator[Sequence[Frame]]:
        yield [Delta("word")]
        if call.attempt == 1:
            try:
                await asyncio.Event().wait()
            finally:
                self.closed_at = self._world.now()
        yield [Done("answer")]


@pytest.mark.parametrize("how", ["hangs", "fails"])
@pytest.mark.parametrize("at", [0.5, 4.9, 7.0, 9.9])
def test_a_server_cut_off_stops_before_its_lease_ends_and_goes_on_after(
    how: str, at: float
) -> None:
    async def story(virtual: Virtual) -> None:
        lasting, mended = Lasting(virtual), asyncio.Event()

        async def cut(_: str) -> None:
            if how == "fails" and not mended.is_set():
                raise Unavailable("cut off")
            await mended.wait()

        async with virtual.running(lasting) as rig:
            await rig.register(on_lost="retry")
            run = await rig.invoke()
            await asyncio.sleep(at)
            [lease] = await rig.store.find(Lease)
            virtual.store.passage = cut
            await asyncio.sleep(2 * LEASE_S)
            assert lasting.closed_at is not None
            assert lasting.closed_at < lease.expires_at
            mended.set()
            done = await rig.ended(run, timeout_s=60)
            assert (done.status, done.final_message, done.attempt) == (RunState.DONE, "answer", 2)
            [fresh] = await rig.store.find(Lease)
            assert fresh.owner != lease.owner

    play(story)


def test_a_clock_that_jumps_takes_no_run_from_its_server() -> None:
    async def story(virtual: Virtual) -> None:
        async def script(_: AgentCall) -> AsyncIterator[Sequence[Frame]]:
            yield [Delta("word")]
            await asyncio.sleep(4)
            yield [Done()]

        async with virtual.running(script, run_max_ms=1 << 40) as rig:
            await rig.register()
            run = await rig.invoke()
            await asyncio.sleep(0.5)
            virtual.world.jumped_ms += 7_200_000
            await rig.invoke("a reason to look for work", session_id="s2")
            done = await rig.ended(run, timeout_s=60)
            assert (done.status, done.epoch) == (RunState.DONE, 1)
            assert [call.attempt for call in rig.agent.calls] == [1, 1]

    play(story)


def test_a_renewal_counts_from_when_it_was_asked_for() -> None:
    async def story(virtual: Virtual) -> None:
        async def slow(_: str) -> None:
            await asyncio.sleep(4)

        replica = Replica(virtual.store, virtual.world)  # type: ignore[arg-type]
        virtual.store.passage, virtual.store.after = slow, True
        await replica.renew()
        assert replica.silent_s == pytest.approx(4, abs=0.01)

    play(story)


def test_a_renewal_without_an_answer_is_over_when_it_is_time_to_stop() -> None:
    async def story(virtual: Virtual) -> None:
        replica = Replica(virtual.store, virtual.world)  # type: ignore[arg-type]
        await replica.renew()
        await asyncio.sleep(6)
        virtual.store.passage = hangs
        with pytest.raises(Unavailable):
            await replica.renew()
        assert replica.silent_s == pytest.approx(FENCE_S, abs=0.01)

    play(story)


def test_a_lease_is_proved_before_it_is_used() -> None:
    async def story(virtual: Virtual) -> None:
        replica = Replica(virtual.store, virtual.world)  # type: ignore[arg-type]
        await replica.renew()
        await replica.prove()
        virtual.world.jumped_ms += LEASE_MS
        virtual.store.passage = fails
        with pytest.raises(Unavailable):
            await replica.prove()
        virtual.store.passage = free
        await replica.prove()
        lease = virtual.disk.tables.rows[Lease][(replica.owner,)]
        assert lease.expires_at == virtual.world.now() + LEASE_MS

    play(story)


def test_what_is_claimed_for_a_name_given_up_meanwhile_is_not_driven() -> None:
    async def story(virtual: Virtual) -> None:
        lasting, late = Lasting(virtual), asyncio.Event()

        async def passage(verb: str) -> None:
            if verb in {"claim", "renew"} and not late.is_set():
                await late.wait()

        async with virtual.running(lasting) as rig:
            await rig.register(on_lost="retry")
            await asyncio.sleep(0.2)
            virtual.store.passage, virtual.store.after = passage, True
            run = await rig.invoke()
            await asyncio.sleep(LEASE_S)
            assert rig.agent.calls == []
            late.set()
            await asyncio.sleep(2)
            assert rig.agent.calls != []
            found = await rig.engine.runs.get(run.run_id)
            [lease] = await rig.store.find(Lease)
            assert (found.owner, found.epoch) == (lease.owner, 2)

    play(story)


def test_a_run_that_another_server_ended_while_the_store_was_away_calls_no_agent() -> None:
    async def story(virtual: Virtual) -> None:
        async def script(_: AgentCall) -> AsyncIterator[Sequence[Frame]]:
            yield [Done()]

        async with virtual.running(script) as rig:
            await rig.register()
            away, mended = asyncio.Event(), asyncio.Event()

            async def cut(_: str) -> None:
                if (found := await rig.store.find(Run)) and found[0].attempt:
                    away.set()
                    if not mended.is_set():
                        raise Unavailable("cut off")

            virtual.store.passage = cut
            run = await rig.invoke()
            await away.wait()
            other = Ledger(rig.store, LocalBus(), virtual.world)
            await other.insist(await other.load(run.run_id), Cancel(reason="enough"))
            mended.set()
            await asyncio.sleep(5)
            assert (await rig.store.get(Run, run.run_id)).status is RunState.CANCELLED
            assert rig.agent.calls == []

    play(story)
