"""Devices that come back, here or at another ingress, get what they missed: all of it, once."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from ..fault.listening import listening
from ..fault.load import CUT, Agent, invoke, register, whole
from ..processes import Running, request, until
from .rig import Device, Started, connected, device, pushed_of, seqs

DELTAS = 300


@asynccontextmanager
async def _agent(server: str, deltas: int = DELTAS, pause_s: float = 0.005) -> AsyncIterator[None]:
    async with Agent(deltas=deltas, pause_s=pause_s).serving() as agent_url:
        await register(server, agent_url)
        yield


async def test_devices_of_a_session_see_the_same(server: str, start_ingress: Started) -> None:
    running = start_ingress(server)
    async with (
        _agent(server),
        device(running, session_id="all") as first,
        device(running, session_id="all") as second,
        device(running, session_id="other") as stranger,
    ):
        await first.invoke()
        told, again = await first.take_run(), await second.take_run()
        run_id = told[0]["run_id"]
        assert seqs(told, run_id) == await pushed_of(server, run_id)
        assert told == again
        await stranger.say(type="nonsense")
        assert (await stranger.take())["type"] == "error", "it was sent nothing before"


async def test_one_stream_of_the_session_serves_all_its_devices(
    server: str, start_ingress: Started
) -> None:
    running = start_ingress(server)
    before = _streams(server)
    async with device(running, session_id="one") as a, device(running, session_id="one") as b:
        assert (a.ack["session_id"], b.ack["session_id"]) == ("one", "one")
        async with _agent(server, 5):
            await a.invoke()
            await b.take_run()
        await asyncio.to_thread(
            until, lambda: _streams(server) - before == 1, "one stream stays open"
        )


def _streams(server: str) -> int:
    """Return how many connections the server has; idle ones are closed after seconds."""
    port = int(server.rpartition(":")[2])
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(int(line[1].rpartition(":")[2], 16) == port and line[3] == "01" for line in lines)


@pytest.mark.parametrize("elsewhere", [False, True])
@pytest.mark.parametrize("by", ["cursor", "last_seq", "both"])
async def test_a_device_that_comes_back_misses_nothing(
    server: str, start_ingress: Started, by: str, elsewhere: bool
) -> None:
    here = start_ingress(server)
    there = start_ingress(server) if elsewhere else here
    session = f"back-{by}-{elsewhere}"
    async with _agent(server), device(there, session_id=session) as stays:
        async with device(here, session_id=session) as leaves:
            await leaves.invoke()
            told = [await leaves.take() for _ in range(40)]
            how = _how(leaves, told, by)
        run_id = told[0]["run_id"]
        await asyncio.sleep(0)
        second = await invoke(server, session)
        while (await stays.take()).get("seq", 0) < 150:
            pass
        async with device(there, session_id=session, **how) as back:
            rest = await back.take_run(second)
    wanted = await pushed_of(server, run_id)
    found = seqs(rest, run_id) if by == "cursor" else seqs(told + rest, run_id)
    assert found == wanted
    assert seqs(rest, second) == await pushed_of(server, second)


def _how(one: Device, told: list[dict[str, object]], by: str) -> dict[str, object]:
    """Return how a device says where it was: before the run by the cursor of its greeting."""
    last_seq = {told[-1]["run_id"]: told[-1]["seq"]}
    cursor = {"cursor": one.ack["cursor"]}
    return {"cursor": cursor, "last_seq": {"last_seq": last_seq}}.get(
        by, {**cursor, "last_seq": last_seq}
    )


async def test_the_cursor_at_the_end_of_a_run_leads_behind_it(
    server: str, start_ingress: Started
) -> None:
    here, there = start_ingress(server), start_ingress(server)
    async with _agent(server, 10):
        async with device(here, session_id="behind") as one:
            await one.invoke()
            cursor = (await one.take_run())[-1]["cursor"]
        missed = [await invoke(server, "behind") for _ in range(3)]
        async with device(there, session_id="behind", cursor=cursor) as back:
            told = [message for run_id in missed for message in await back.take_run(run_id)]
            later = await invoke(server, "behind")
            told += await back.take_run(later)
    assert list(dict.fromkeys(message["run_id"] for message in told)) == [*missed, later]
    for run_id in (*missed, later):
        assert seqs(told, run_id) == await pushed_of(server, run_id)


async def test_a_cursor_in_the_middle_of_a_replay_counts(
    server: str, start_ingress: Started
) -> None:
    running = start_ingress(server)
    async with _agent(server, 10):
        runs = [await invoke(server, "middle") for _ in range(4)]
        async with device(running, session_id="middle", cursor="start") as one:
            cursor = (await one.take_run(runs[1]))[-1]["cursor"]
        async with device(running, session_id="middle", cursor=cursor) as back:
            told = await back.take_run(runs[3])
    assert [run_id for run_id in runs if seqs(told, run_id)] == runs[2:]


@pytest.mark.parametrize(("missed", "elsewhere"), [(120, True), (280, False)])
async def test_the_ends_of_runs_have_cursors_however_much_was_missed(
    server: str, start_ingress: Started, missed: int, elsewhere: bool
) -> None:
    here = start_ingress(server)
    there = start_ingress(server) if elsewhere else here
    session = f"long-{missed}"
    async with _agent(server, 1), device(here, session_id=session) as stays:
        async with device(here, session_id=session) as leaves:
            await leaves.invoke()
            cursor = (await leaves.take_run())[-1]["cursor"]
        await stays.take_run()
        runs = []
        for _ in range(missed):
            runs.append(await invoke(server, session))
            await stays.take_run(runs[-1])
        async with device(there, session_id=session, cursor=cursor) as back:
            told = await back.take_run(runs[-1])
            assert list(dict.fromkeys(message["run_id"] for message in told)) == runs
            await back.invoke()
            assert (await back.take_run())[-1]["cursor"]


async def test_a_device_without_a_cursor_hears_what_comes(
    server: str, start_ingress: Started
) -> None:
    running = start_ingress(server)
    async with _agent(server, 20):
        old = await invoke(server, "fresh")
        async with device(running, session_id="fresh", cursor="start") as one:
            await one.take_run(old)
        async with device(running, session_id="fresh") as late:
            new = await invoke(server, "fresh")
            told = await late.take_run(new)
    assert seqs(told, old) == []
    assert seqs(told, new) == await pushed_of(server, new)


async def test_foreign_and_broken_cursors_are_refused(server: str, start_ingress: Started) -> None:
    running = start_ingress(server)
    async with _agent(server, 3), device(running, session_id="mine") as one:
        await one.invoke()
        cursor = (await one.take_run())[-1]["cursor"]
    async with connected(running) as other:
        for session, text in (("theirs", cursor), ("mine", cursor[:-2]), ("mine", "é\x00")):
            told = await other.hello(session_id=session, cursor=text)
            assert (told["type"], told["code"]) == ("error", "invalid_request")
        assert (await other.hello(session_id="mine", cursor=cursor))["type"] == "hello_ack"


async def test_runs_of_another_session_are_not_replayed(
    server: str, start_ingress: Started
) -> None:
    running = start_ingress(server)
    async with _agent(server, 3):
        foreign = await invoke(server, "foreign")
        own = await invoke(server, "own")
        async with device(running, session_id="own", last_seq={foreign: 0, own: 0}) as one:
            told = await one.take_run(own)
            assert {message["run_id"] for message in told} == {own}


async def test_a_run_queued_behind_another_says_so(server: str, start_ingress: Started) -> None:
    running = start_ingress(server)
    async with _agent(server, 50), device(running) as one:
        await one.invoke("first")
        await one.invoke("second")
        told = [*await one.take_run(), *await one.take_run()]
    assert [message["state"] for message in told if message["type"] == "state"] == ["queued"]


async def test_devices_stay_while_the_orchestrator_restarts(
    start_server: Started, start_ingress: Started
) -> None:
    first = start_server()
    port = first.url.rpartition(":")[2]
    running = start_ingress(first.url)
    async with _agent(first.url), device(running, session_id="stays") as one:
        await one.invoke()
        told = [await one.take() for _ in range(20)]
        first.kill()
        await one.invoke("while it is away")
        while (away := await one.take())["type"] != "error":
            told.append(away)
        assert (away["code"], away["retryable"]) == ("orchestrator_fail", True)
        async with connected(running) as other:
            waiting = await other.hello(session_id="new")
            assert waiting["code"] == "orchestrator_fail", "it is told, and greeted later"
            second: Running = start_server(HTTP_PORT=port)
            assert (await other.take())["type"] == "hello_ack"
        told += await one.take_run()
        assert told[-1]["code"] == "orchestrator_restarted"
        run_id = told[0]["run_id"]
        assert seqs(told, run_id) == await pushed_of(second.url, run_id)
        await one.invoke("again")
        assert (await one.take_run())[-1]["type"] == "done"
    assert request("GET", f"{second.url}/health").status == 200


async def test_who_enters_a_long_session_has_nothing_of_it_read(
    server: str, start_ingress: Started
) -> None:
    async with _agent(server, DELTAS, 0), _relay(server) as (relay, passed):
        old = [await invoke(server, "long") for _ in range(5)]
        for run_id in old:
            await whole(server, run_id, [])
        running = start_ingress(relay)
        async with device(running, session_id="long") as one:
            later = await invoke(server, "long")
            told = await one.take_run(later)
    log: list[bytes] = []
    await whole(server, later, log)
    assert seqs(told, later) == await pushed_of(server, later)
    assert sum(map(len, log)) < sum(passed) < 3 * sum(map(len, log))


@asynccontextmanager
async def _relay(server: str) -> AsyncIterator[tuple[str, list[int]]]:
    """Stand in front of a server; hand out an address and how many bytes the server said."""
    passed: list[int] = []

    async def serve(near: asyncio.StreamReader, to_near: asyncio.StreamWriter) -> None:
        far, to_far = await asyncio.open_connection("127.0.0.1", int(server.rpartition(":")[2]))
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(_pass(near, to_far))
            tasks.create_task(_pass(far, to_near, passed))

    async with listening(serve) as port:
        yield f"http://127.0.0.1:{port}", passed


async def _pass(
    source: asyncio.StreamReader, target: asyncio.StreamWriter, passed: list[int] | None = None
) -> None:
    with suppress(*CUT):
        while data := await source.read(1 << 16):
            if passed is not None:
                passed.append(len(data))
            target.write(data)
            await target.drain()
    target.close()
