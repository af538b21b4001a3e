"""The messages of the contract: what a device may say, and what it is told."""

import asyncio
import signal
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed

from ..fault.load import Agent, call, register
from ..processes import STOP_S, request
from .rig import Started, connected, device, health


async def test_the_messages_of_the_first_implementation_work_unchanged(
    server: str, start_ingress: Started
) -> None:
    running = start_ingress(server)
    async with Agent(deltas=3).serving() as agent_url:
        await register(server, agent_url)
        async with connected(running) as one:
            hello = {"ts": 1, "user_id": "u", "api_key": "k", "session_id": "sess_001"}
            ack = await one.hello(**hello, client_meta={"app": "web"})
            assert (ack["type"], ack["session_id"]) == ("hello_ack", "sess_001")
            assert ack["cursor"]
            await one.invoke(request_id="r1", ts=2, session_id="sess_001")
            told = await one.take_run()
            await one.invoke(request_id="", session_id="")  # as good as left out
            assert (await one.take_run())[-1]["type"] == "done"
    types = [message["type"] for message in told]
    assert types == ["run_started", "delta", "delta", "delta", "done"]
    started = told[0]
    assert started["request_id"] == "r1"
    assert (started["session_id"], started["agent_id"]) == ("sess_001", "load")
    assert [message["text"] for message in told[1:4]] == ["word 0 ", "word 1 ", "word 2 "]
    assert told[-1]["usage"]["tokens"] == 1
    assert all({"ts", "run_id", "event_id", "seq"} <= message.keys() for message in told)
    assert told[-1]["cursor"]
    session = (await call(server, "GET", "/v1/sessions/sess_001"))[1]
    assert session["user_id"] == "u"


async def test_a_run_is_cancelled_by_its_device(server: str, start_ingress: Started) -> None:
    running = start_ingress(server)
    async with Agent(deltas=100_000, pause_s=0.05).serving() as agent_url:
        await register(server, agent_url)
        async with device(running) as one:
            await one.invoke()
            run_id = (await one.take())["run_id"]
            await one.say(type="cancel_run", run_id=run_id)
            told = (await one.take_run(run_id))[-1]
    assert (told["type"], told["code"]) == ("error", "cancelled")


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ("this is no JSON", "invalid_message"),
        ("[1]", "invalid_message"),
        ('{"type":"nonsense"}', "invalid_message"),
        ('{"type":"cancel_run"}', "invalid_message"),
        ('{"type":"agent_invoke","agent_id":"load","message":{"content":""}}', "invalid_request"),
        ('{"type":"agent_invoke","agent_id":"nobody","message":{"content":"x"}}',
         "invalid_request"),
        ('{"type":"cancel_run","run_id":"run_none"}', "invalid_request"),
        ('{"type":"cancel_run","run_id":"a/../b"}', "invalid_request"),
        ('{"type":"agent_invoke","session_id":"other","agent_id":"load","message":{"content":"x"}}',
         "invalid_request"),
        ('{"type":"approval_decision","run_id":"r","approval_id":"ap_1","decision":"approve"}',
         "invalid_request"),
        ('{"type":"tool_result","run_id":"r","tool_call_id":"tc_1","ok":true}', "invalid_request"),
    ],
)  # fmt: skip
async def test_what_cannot_be_done_is_an_error_and_the_connection_stays(
    server: str, start_ingress: Started, message: str, code: str
) -> None:
    running = start_ingress(server)
    async with device(running) as one:
        await one.socket.send(message)
        told = await one.take()
        assert (told["type"], told["code"]) == ("error", code), told
        assert (await one.hello())["type"] == "hello_ack"


async def test_an_error_names_the_request(server: str, start_ingress: Started) -> None:
    async with connected(start_ingress(server)) as one:
        await one.say(type="cancel_run", run_id="run_1", request_id="r7")
        told = await one.take()
        assert (told["code"], told["request_id"]) == ("session_required", "r7")
        assert told["run_id"] == "run_1"
        await one.say(type="nonsense", request_id="r8")
        assert (await one.take())["request_id"] == "r8"


async def test_a_message_over_the_limit_closes_with_1009(
    server: str, start_ingress: Started
) -> None:
    running = start_ingress(server)
    async with device(running) as one:
        filler = '{"type":"cancel_run","run_id":"run_1","x":"'
        await one.socket.send(filler + "x" * ((64 << 10) - len(filler) - 2) + '"}')
        assert (await one.take())["type"] == "error"
        await one.socket.send("x" * ((64 << 10) + 1))
        with pytest.raises(ConnectionClosed) as closed:
            await one.take()
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1009


async def test_a_message_in_pieces_is_one(server: str, start_ingress: Started) -> None:
    async with connected(start_ingress(server)) as one:
        await one.socket.send(['{"type":', '"hello"', "}"])
        assert (await one.take())["type"] == "hello_ack"
        pong = await one.socket.ping()
        async with asyncio.timeout(10):
            await pong


async def test_health_counts_devices_and_sessions(server: str, start_ingress: Started) -> None:
    running = start_ingress(server)
    assert health(running) == {"status": "healthy", "connections": 0, "sessions": 0}
    async with device(running, session_id="s") as one, device(running, session_id="s"):
        async with device(running):
            assert health(running) == {"status": "healthy", "connections": 3, "sessions": 2}
        await one.socket.close()
        assert health(running)["sessions"] == 1


def test_a_push_is_taken_as_a_hint(server: str, start_ingress: Started) -> None:
    url = f"{start_ingress(server).url}/internal/send"
    bodies: list[dict[str, Any]] = [{"event": {"type": "delta"}}, {"events": []}]
    for body in bodies:
        taken = request("POST", url, {"session_id": "s", **body})
        assert (taken.status, taken.headers["x-ingress"], taken.headers["x-batch"]) == (
            200, "tail", "1",
        )  # fmt: skip
    assert request("POST", url, {"session_id": "s"}).json()["code"] == "invalid_request"
    assert request("POST", url, b"{").status == 400
    assert request("POST", url, {"session_id": "s", "events": []}, {"X-Forwarded-For": "1.2.3.4"}
                   ).json()["code"] == "unauthorized"  # fmt: skip
    assert request("GET", url).headers["allow"] == "POST"
    assert request("GET", url.replace("/internal/send", "/ws")).status == 426
    assert request("GET", url + "/more").json()["code"] == "not_found"


async def test_the_orchestrator_stops_pushing_to_an_ingress_that_tails(
    start_server: Any, start_ingress: Started
) -> None:
    running = start_ingress("http://127.0.0.1:9")  # who is pushed to need not reach anybody
    server = start_server(INGRESS_URL=running.url).url
    async with Agent(deltas=50).serving() as agent_url:
        await register(server, agent_url)
        async with device(start_ingress(server)) as one:
            await one.invoke()
            await one.take_run()
    metrics = request("GET", f"{server}/metrics").body.decode()
    found = {line.split()[0]: line.split()[1] for line in metrics.splitlines() if line[0] != "#"}
    pushed = next(float(text) for name, text in found.items() if "push_events" in name)
    assert 0 < pushed < 5, "the first answer says that we read the log ourselves"


async def test_a_stop_sends_devices_elsewhere(server: str, start_ingress: Started) -> None:
    running = start_ingress(server)
    async with device(running) as one:
        running.process.send_signal(signal.SIGTERM)
        with pytest.raises(ConnectionClosed) as closed:
            await one.take()
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1012
    assert running.process.wait(STOP_S) == 0, running.said()


async def test_a_second_signal_kills_nobody_who_leaves(server: str, start_ingress: Started) -> None:
    running = start_ingress(server)
    async with device(running):
        sent = 0
        while running.process.poll() is None:
            running.process.send_signal(signal.SIGTERM)
            sent += 1
            await asyncio.sleep(0)
    assert sent > 1
    assert running.process.returncode == 0, running.said()
