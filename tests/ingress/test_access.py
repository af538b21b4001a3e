"""Who may connect, which session a device may name, and what a token of it may do."""

import asyncio
from secrets import token_hex
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from ..processes import Running, request
from .rig import Started, connected, device


def _bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


class Keyed:
    """A server with keys, an agent that answers at once, and what its callers hold."""

    def __init__(self, start_server: Started, agent: str) -> None:
        self.admin = token_hex(20)
        self.server = start_server(ADMIN_KEY=self.admin, EGRESS_ALLOW="loopback")
        body = {"agent_id": "load", "name": "Load", "endpoint": agent}
        assert self.post("/v1/agents/register", body)["ok"]
        self.ingress = self.post("/v1/keys", {"name": "ingress", "role": "ingress"})["key"]
        self.api_key = token_hex(20)

    def post(self, path: str, body: Any, key: str | None = None) -> Any:
        url, headers = f"{self.server.url}{path}", _bearer(key or self.admin)
        answer = request("POST", url, body, headers)
        assert answer.status < 300, answer.body
        return answer.json()

    def token(self, session: str, *scopes: str, ttl_s: int = 600) -> str:
        asked = {"scopes": list(scopes), "ttl_s": ttl_s}
        return str(self.post(f"/v1/sessions/{session}/tokens", asked)["token"])

    def start(self, start_ingress: Started, **env: str) -> Running:
        keys = {"API_KEY": self.api_key, "ORCHESTRATOR_KEY": self.ingress}
        return start_ingress(self.server.url, **{**keys, **env})


@pytest.fixture
def keyed(start_server: Started, demo_agent: str) -> Keyed:
    return Keyed(start_server, demo_agent)


async def _refused(running: Running, **hello: Any) -> str:
    """Return the message with which a hello is refused, and see that the connection ends."""
    async with connected(running) as one:
        told = await one.hello(**hello)
        assert (told["type"], told["code"]) == ("error", "unauthorized"), told
        with pytest.raises(ConnectionClosed) as closed:
            await one.take()
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1008
    return str(told["message"])


async def test_a_device_shows_the_key_or_a_token(keyed: Keyed, start_ingress: Started) -> None:
    running = keyed.start(start_ingress)
    for nothing in (
        {},
        {"api_key": "wrong"},
        {"token": "ost_x.y"},
        {"token": "é", "session_id": "s"},
    ):
        if "token" in nothing:
            nothing["session_id"] = "s"
        await _refused(running, **nothing)
    async with device(running, api_key=keyed.api_key) as one:
        assert one.ack["session_id"].startswith("sess_")
        await one.invoke()
        assert (await one.take_run())[-1]["type"] == "done"
    token = keyed.token("mine", "read", "invoke")
    for shown in ({"token": token}, {"api_key": token}):
        async with device(running, session_id="mine", **shown) as one:
            await one.invoke()
            assert (await one.take_run())[-1]["type"] == "done"


async def test_the_shared_key_opens_only_sessions_that_it_made(
    keyed: Keyed, start_ingress: Started
) -> None:
    here, there = keyed.start(start_ingress), keyed.start(start_ingress)
    victim = keyed.token("victim", "read", "invoke")
    async with device(here, session_id="victim", token=victim) as one:
        await one.invoke()
        stolen = (await one.take_run())[-1]["cursor"]
    key = {"api_key": keyed.api_key}
    assert "opens no session that others made" in await _refused(here, session_id="victim", **key)
    await _refused(there, session_id="victim", cursor=stolen, **key)
    await _refused(there, session_id="victim", cursor="start", **key)
    async with device(here, **key) as one:
        own = one.ack["session_id"]
        await one.invoke()
        cursor = (await one.take_run())[-1]["cursor"]
    await _refused(there, session_id=own, **key)
    async with device(there, session_id=own, cursor=cursor, **key) as back:
        await back.invoke()
        assert (await back.take_run())[-1]["type"] == "done"


async def test_a_device_reaches_no_run_of_another_session(
    keyed: Keyed, start_ingress: Started
) -> None:
    running = keyed.start(start_ingress)
    body = {"agent_id": "load", "input_message": {"role": "user", "content": "x"}, "wait": True}
    run = keyed.post("/v1/runs", {**body, "session_id": "victim"})["run_id"]
    for shown in ({"api_key": keyed.api_key}, {"session_id": "mine",
                  "token": keyed.token("mine", "read", "invoke")}):  # fmt: skip
        async with device(running, last_seq={run: 0}, **shown) as one:
            await one.say(type="cancel_run", run_id=run)
            assert (await one.take())["cause"] == "run_not_found"


async def test_the_scopes_of_a_token_judge(keyed: Keyed, start_ingress: Started) -> None:
    running = keyed.start(start_ingress)
    async with device(running, session_id="mine", token=keyed.token("mine", "read")) as one:
        await one.invoke()
        told = await one.take()
        assert (told["code"], told["cause"]) == ("unauthorized", "forbidden")
    await _refused(running, session_id="mine", token=keyed.token("mine", "invoke"))
    await _refused(running, session_id="other", token=keyed.token("mine", "read"))


@pytest.mark.parametrize("session", [{}, {"session_id": "named"}])
@pytest.mark.parametrize("key", ["", f"ok_{'0' * 43}"])
async def test_a_key_that_the_ingress_lacks_is_no_fault_of_its_devices(
    keyed: Keyed, start_ingress: Started, key: str, session: dict[str, str]
) -> None:
    running = keyed.start(start_ingress, ORCHESTRATOR_KEY=key)
    async with connected(running) as one:
        told = await one.hello(api_key=keyed.api_key, **session)
        assert (told["code"], told["retryable"]) == ("orchestrator_fail", True)
        assert "ORCHESTRATOR_KEY" in told["message"]
        with pytest.raises(ConnectionClosed) as closed:
            await one.take()
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1011
    assert "orchestrator_key_refused" in running.said()


async def test_a_token_that_ends_ends_its_device(keyed: Keyed, start_ingress: Started) -> None:
    running = keyed.start(start_ingress)
    token = keyed.token("mine", "read", "invoke", ttl_s=2)
    async with device(running, session_id="mine", token=token) as one:
        assert (await one.take())["code"] == "unauthorized"
        with pytest.raises(ConnectionClosed) as closed:
            await one.take()
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1008


@pytest.mark.parametrize(
    ("origin", "env", "taken"),
    [
        ("https://evil.example", {}, False),
        ("null", {}, False),
        ("http://localhost:3000", {}, True),
        ("https://app.example", {"CORS_ORIGINS": "https://app.example"}, True),
        ("https://app.example.evil", {"CORS_ORIGINS": "https://app.example"}, False),
        ("https://evil.example", {"AUTH_MODE": "off"}, True),
    ],
)
async def test_pages_of_other_origins_are_refused(
    server: str, start_ingress: Started, origin: str, env: dict[str, str], taken: bool
) -> None:
    running = start_ingress(server, **env)
    if taken:
        async with connected(running, origin=origin) as one:
            assert (await one.hello())["type"] == "hello_ack"
        return
    with pytest.raises(InvalidStatus) as refused:
        async with connected(running, origin=origin):
            pass
    assert refused.value.response.status_code == 403
    assert b"foreign page" in refused.value.response.body


async def test_without_a_key_only_this_machine_is_served(
    server: str, start_ingress: Started
) -> None:
    running = start_ingress(server)
    for headers in ({"X-Forwarded-For": "1.2.3.4"}, {"Via": "1.1 proxy"}):
        with pytest.raises(InvalidStatus) as refused:
            async with connected(running, additional_headers=headers):
                pass
        assert refused.value.response.status_code == 403
    rebound = "GET /ws HTTP/1.1\r\nHost: rebound.example\r\nUpgrade: websocket\r\n"
    told = await _raw(running, rebound + "Connection: Upgrade\r\n\r\n")
    assert told.startswith(b"HTTP/1.1 403")


async def test_what_is_no_handshake_is_answered_in_http(
    server: str, start_ingress: Started
) -> None:
    running = start_ingress(server)
    upgrade = "GET /ws HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    assert (await _raw(running, upgrade + "\r\n")).startswith(b"HTTP/1.1 400")
    assert (await _raw(running, "NONSENSE\r\n\r\n")).startswith(b"HTTP/1.1 400")
    long = f"GET /health HTTP/1.1\r\nHost: localhost\r\nX: {'x' * (17 << 10)}\r\n\r\n"
    assert (await _raw(running, long)).split()[1] in {b"400", b"431"}
    twice = "GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n" * 2
    assert (await _raw(running, twice, whole=False)).count(b"healthy") == 2


async def _raw(running: Running, text: str, *, whole: bool = True) -> bytes:
    """Send bytes and return what comes back, to the end of the connection where that comes."""
    host, port = running.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(text.encode())
        found = b""
        async with asyncio.timeout(10):
            while piece := await reader.read(1 << 16):
                found += piece
                if not whole and found.count(b"healthy") == 2:
                    break
        return found
    finally:
        writer.close()


def test_others_are_served_with_a_key_only(tmp_path: Any, start_ingress: Started) -> None:
    with pytest.raises(AssertionError, match="API_KEY"):
        start_ingress("http://127.0.0.1:9", WS_HOST="192.0.2.7")
