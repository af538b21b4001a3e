"""An ingress that is slow, hung or absent slows no run, and gets it all in the end, in order."""

import asyncio
from collections.abc import Callable

import pytest

from ..processes import Running
from .ingress import Ingress
from .listening import listening
from .load import Agent, follow, invoke, register

Start = Callable[..., Running]
RUNS = 8
DELTAS = 20


async def _runs(url: str, first: int = 0) -> list[str]:
    """Make runs, follow them to their end, return their ids."""
    run_ids = [await invoke(url, f"s{n}") for n in range(first, first + RUNS)]
    for run_id in run_ids:
        log: list[bytes] = []
        while not await follow(url, run_id, log):
            pass
    return run_ids


async def _caught_up(ingress: Ingress, run_ids: list[str]) -> None:
    async with asyncio.timeout(40):
        while not ingress.whole(run_ids):
            await asyncio.sleep(0.02)
    for run_id in run_ids:
        seqs = [event["seq"] for event in ingress.taken[run_id]]
        fresh = list(dict.fromkeys(seqs))
        assert fresh == sorted(fresh), "in order, apart from repetitions"
        texts = {e["seq"]: e["text"] for e in ingress.taken[run_id] if e["type"] == "delta"}
        assert list(texts.values()) == [f"word {n} " for n in range(DELTAS)]


async def test_an_absent_ingress_gets_everything_when_it_comes(start_server: Start) -> None:
    ingress = Ingress()
    server = await asyncio.to_thread(start_server, INGRESS_URL=ingress.url)
    async with Agent(deltas=DELTAS).serving() as agent_url:
        await register(server.url, agent_url)
        run_ids = await _runs(server.url)
        assert not ingress.taken
        async with ingress.serving():
            await _caught_up(ingress, run_ids)
    assert "ingress_away" in server.said(), "it was missed"


async def test_a_hung_ingress_gets_everything_after_its_restart(start_server: Start) -> None:
    ingress = Ingress(hung=True)
    server = await asyncio.to_thread(start_server, INGRESS_URL=ingress.url)
    async with Agent(deltas=DELTAS).serving() as agent_url, ingress.serving():
        await register(server.url, agent_url)
        run_ids = await _runs(server.url)
        assert ingress.unanswered > 0
        assert not ingress.taken
        ingress.hung = False
        ingress.break_off()
        await _caught_up(ingress, run_ids)


async def test_a_slow_ingress_falls_behind_and_catches_up(start_server: Start) -> None:
    ingress = Ingress(delay_s=0.01)
    server = await asyncio.to_thread(start_server, INGRESS_URL=ingress.url)
    async with Agent(deltas=DELTAS).serving() as agent_url, ingress.serving():
        await register(server.url, agent_url)
        run_ids = await _runs(server.url)
        assert not ingress.whole(run_ids), "the runs were over before it had heard all"
        await _caught_up(ingress, run_ids)


async def test_what_a_killed_server_had_not_pushed_its_successor_does(
    start_server: Start,
) -> None:
    ingress = Ingress()
    server = await asyncio.to_thread(start_server, INGRESS_URL=ingress.url)
    async with Agent(deltas=DELTAS).serving() as agent_url:
        await register(server.url, agent_url)
        run_ids = await _runs(server.url)
        server.kill()
        await asyncio.to_thread(start_server, INGRESS_URL=ingress.url)
        async with ingress.serving():
            await _caught_up(ingress, run_ids)


@pytest.mark.parametrize("status", [b"500 No", b"302 Elsewhere"])
async def test_an_ingress_that_refuses_is_asked_again(start_server: Start, status: bytes) -> None:
    ingress = Ingress()
    refused = 0

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal refused
        await reader.read(65_536)
        refused += 1
        writer.write(b"HTTP/1.1 %s\r\nContent-Length: 0\r\nConnection: close\r\n\r\n" % status)
        writer.close()

    server = await asyncio.to_thread(start_server, INGRESS_URL=ingress.url)
    async with Agent(deltas=DELTAS).serving() as agent_url:
        await register(server.url, agent_url)
        async with listening(refuse, ingress.port):
            run_ids = await _runs(server.url)
            assert refused > 0
        async with ingress.serving():
            await _caught_up(ingress, run_ids)
