"""Hundreds of hostile URLs, each dialled for real where the first look lets it pass: none arrives.

The internet is on this machine: a connection to a public address ends at one listener, one to any
other address (169.254.169.254, 10.0.0.7, ::1) at another, which counts who got that far.
"""

import asyncio
import re
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any, Final
from urllib.request import getproxies

import aiohttp
import pytest

from orchestrator.clients import streaming
from orchestrator.clients.exchange import ExchangeFailed, Request, read_all
from orchestrator.clients.probe import HTTPProbe
from orchestrator.clients.streaming import StreamingClient
from orchestrator.core.errors import AgentFailure, EgressRefused
from orchestrator.guards.egress import EgressGuard
from orchestrator.testing.fake_agent import calling

from ..rigs import Tally
from .calls import failure_of, frames_of
from .hostile_urls import HOSTILE, LOOPBACK, PRIVATE, PUBLIC, TRICKS, Hostile
from .internet import OK, Net, Phones, exchanged

pytestmark = pytest.mark.usefixtures("driver")

NARROW: Final = EgressGuard()
NEARLY: Final = EgressGuard(("0.0.0.0/0", "::/0", "*"))
WIDE: Final = EgressGuard(("loopback", "0.0.0.0/0", "::/0", "*"), loopback=True)
REFUSED: Final = {
    "form": [(NARROW, True), (NARROW, False), (WIDE, True), (WIDE, False)],
    "never": [(NARROW, True), (NARROW, False), (WIDE, True), (WIDE, False)],
    "loopback": [(NARROW, True), (NARROW, False), (NEARLY, True), (NEARLY, False)],
    "private": [(NARROW, False)],
}
FIX: Final = re.compile(r"; (name|write|percent-encode|take them out) [^;]+$")


class DialOnly:
    """An Egress that overlooks what a URL looks like, so that all depends on the dial."""

    def check(self, url: str, *, operator: bool) -> None:
        """Let every URL pass."""

    def judge(self, host: str, address: str, *, operator: bool) -> None:
        NARROW.judge(host, address, operator=operator)


def reason(guard: EgressGuard, url: str, *, operator: bool) -> str:
    """Return why a registration of the URL is refused, or nothing."""
    try:
        guard.check(url, operator=operator)
    except EgressRefused as error:
        return error.message
    return ""


@pytest.fixture
async def net(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Net]:
    async with Net(monkeypatch) as running:
        yield running
    assert not running.looked_up


# ---------------------------------------------------------------- what is refused


def test_there_are_hundreds_and_no_two_are_the_same() -> None:
    assert len({hostile.url for hostile in HOSTILE}) == len(HOSTILE) >= 200


@pytest.mark.parametrize("hostile", HOSTILE, ids=str)
async def test_a_hostile_url_reaches_nobody(hostile: Hostile, net: Net, tally: Tally) -> None:
    for guard, operator in REFUSED[hostile.why]:
        at_registration = reason(guard, hostile.url, operator=operator)
        failure = await net.tried(guard, hostile.url, operator=operator)
        assert isinstance(failure, ExchangeFailed), f"answered {failure}: {net.dialled}"
        assert failure.trouble == "refused", failure
        assert FIX.search(failure.message), f"what is to be done? {failure}"
        if at_registration:
            assert failure.message == at_registration
            tally.fire("refused at registration")
        else:
            assert net.world.asked, "the name was looked up, and its address judged"
            tally.fire("refused at the dial")
        assert not net.dialled
        tally.round()
    assert net.inside.connections == net.outside.connections == 0
    assert await net.tried(WIDE, "http://10.0.0.7/", operator=False) == 200
    assert (net.inside.connections, net.dialled) == (1, ["10.0.0.7"]), "the listener listens"


@pytest.mark.parametrize("hostile", HOSTILE, ids=str)
async def test_the_dial_alone_holds_it_back(hostile: Hostile, net: Net) -> None:
    said = await net.tried(DialOnly(), hostile.url, operator=False)
    assert not set(net.dialled) - set(PUBLIC)
    assert net.inside.connections == 0
    if not net.dialled:
        assert isinstance(said, ExchangeFailed)
    if hostile.why != "form":
        assert not net.dialled


@pytest.mark.parametrize("url", TRICKS)
async def test_what_only_looks_bad_goes_where_its_host_is(url: str, net: Net) -> None:
    assert not reason(NARROW, url, operator=False)
    assert await net.tried(NARROW, url, operator=False) == 200
    assert (net.inside.connections, net.outside.connections) == (0, 1)


@pytest.mark.parametrize("inner", ["10.0.0.7", "169.254.169.254", "127.0.0.1", "::1", "fd00::7"])
async def test_of_a_name_with_two_faces_only_the_public_one_is_dialled(
    inner: str, net: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    for faces in ([inner, PUBLIC[0]], [PUBLIC[1], inner]):
        net.world = Phones({"faces.example": faces})
        assert await net.tried(NARROW, "http://faces.example/", operator=False) == 200
    assert set(net.dialled) <= set(PUBLIC)

    async def dead(sock: socket.socket, address: Sequence[Any]) -> None:
        net.dialled.append(str(address[0]))
        raise ConnectionRefusedError

    monkeypatch.setattr(asyncio.get_running_loop(), "sock_connect", dead)
    net.dialled.clear()
    failure = await net.tried(NARROW, "http://faces.example/", operator=False)
    assert isinstance(failure, ExchangeFailed)
    assert failure.trouble == "unreachable"
    assert net.dialled == [PUBLIC[1]], "no other is tried in its place"


@pytest.mark.parametrize("inner", ["10.0.0.7", "169.254.169.254", "127.0.0.1", "::1"])
async def test_a_name_that_changes_its_mind_gains_nothing(inner: str, net: Net) -> None:
    class Rebinding(Phones):
        async def resolve(self, host: str, port: int) -> list[tuple[int, str]]:
            found = await super().resolve(host, port)
            self._book[host] = [inner]
            return found

    net.world = Rebinding({"rebinding.example": [PUBLIC[0]]})
    net.outside.answer = OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    url = "http://rebinding.example/"
    assert not reason(NARROW, url, operator=False)
    async with net.client(NARROW) as http:
        assert await exchanged(http, url, operator=False) == 200, "as the first answer said"
        assert net.world.asked == ["rebinding.example"], "a dial asks once"
        failure = await exchanged(http, url, operator=False)
    assert isinstance(failure, ExchangeFailed)
    assert failure.trouble == "refused"
    assert f"rebinding.example ({inner})" in failure.message
    assert net.world.asked == ["rebinding.example"] * 2
    assert net.dialled == [PUBLIC[0]]


@pytest.mark.parametrize(
    "host", ["[v1.a:b]", "[::ffff:127.1]", "[fe80::1%25eth0]", "127.1", "0x7f.1"]
)
async def test_what_is_neither_name_nor_address_is_refused_without_a_look_up(
    host: str, net: Net
) -> None:
    failure = await net.tried(DialOnly(), f"http://{host}/", operator=True)
    assert isinstance(failure, ExchangeFailed)
    assert failure.trouble == "refused"
    assert not net.world.asked
    assert not net.dialled


# ---------------------------------------------------------------- what is allowed


@pytest.mark.parametrize("hostile", [one for one in LOOPBACK if "https" not in one.url], ids=str)
async def test_loopback_is_reached_where_it_may_be(hostile: Hostile, net: Net) -> None:
    for guard in (EgressGuard(loopback=True), EgressGuard(("loopback",))):
        assert await net.tried(guard, hostile.url, operator=True) == 200
    assert net.inside.connections == 2
    assert net.outside.connections == 0


@pytest.mark.parametrize("hostile", PRIVATE, ids=str)
async def test_a_private_address_is_reached_for_an_operator(hostile: Hostile, net: Net) -> None:
    assert await net.tried(NARROW, hostile.url, operator=True) == 200
    assert (net.inside.connections, net.outside.connections) == (1, 0)


@pytest.mark.parametrize(
    ("allow", "url"),
    [
        ("10.0.0.0/8", "http://10.0.0.7/"),
        ("10.0.0.7", "http://10.0.0.7/"),
        ("10.0.*", "http://10.0.0.7/"),
        ("10.0.*", "http://intranet.example/"),
        ("10.0.0.0/8", "http://intranet.example/"),
        ("10.0.0.0/8", "http://[::ffff:10.0.0.7]/"),
        ("fd00::/8", "http://[fd00::7]/"),
        ("fd00:*", "http://intranet6.example/"),
        ("intranet.example", "http://INTRANET.example./"),
        ("*.example", "http://intranet.example/"),
        ("*.svc", "http://kubernetes.default.svc/"),
    ],
)
async def test_what_the_list_allows_is_reached_for_everybody(
    allow: str, url: str, net: Net
) -> None:
    refused = await net.tried(NARROW, url, operator=False)
    assert isinstance(refused, ExchangeFailed)
    assert not net.dialled
    assert await net.tried(EgressGuard((allow,)), url, operator=False) == 200
    assert net.inside.connections == 1


@pytest.mark.parametrize(
    ("allow", "host", "address"),
    [
        ("10.0.*", "10.0.evil.example", "192.168.0.7"),
        ("10.0.0.0/8", "evil.example", "192.168.0.7"),
        ("*.corp.example", "corp.example.evil.example", "10.0.0.7"),
        ("*.corp.example", "db.corp.example", "169.254.169.254"),
        ("*.corp.example", "db.corp.example", "127.0.0.1"),
        ("169.254.0.0/16", "db.corp.example", "169.254.169.254"),
        ("169.254.*", "169.254.169.254", "169.254.169.254"),
        ("fe80::/10", "db.corp.example", "fe80::1"),
        ("metadata.google.internal", "metadata.google.internal", "169.254.169.254"),
        ("loopback", "db.corp.example", "10.0.0.7"),
    ],
)
async def test_the_list_allows_nothing_else(allow: str, host: str, address: str, net: Net) -> None:
    net.world = Phones({host: [address]})
    failure = await net.tried(EgressGuard((allow,)), f"http://{host}/", operator=False)
    assert isinstance(failure, ExchangeFailed)
    assert failure.trouble == "refused"
    assert not net.dialled


# ---------------------------------------------------------------- whose connection it is


@pytest.mark.parametrize("url", ["http://intranet.example/", "http://10.0.0.7/"])
async def test_an_operators_connection_is_not_used_for_others(url: str, net: Net) -> None:
    async with net.client(NARROW) as http:
        for _ in range(2):
            assert await exchanged(http, url, operator=True) == 200
        assert (net.inside.connections, len(net.inside.requests)) == (1, 2), "it is kept alive"
        failure = await exchanged(http, url, operator=False)
        assert isinstance(failure, ExchangeFailed)
        assert failure.trouble == "refused"
        assert await exchanged(http, url, operator=True) == 200
    assert (net.inside.connections, len(net.inside.requests)) == (1, 3)


async def test_each_profile_has_connections_of_its_own(net: Net) -> None:
    async with net.client(WIDE) as http:
        for operator in (True, False, True, False):
            assert await exchanged(http, "http://public.example/", operator=operator) == 200
    assert (net.outside.connections, len(net.outside.requests)) == (2, 4)


async def test_every_idle_connection_is_used_again(net: Net) -> None:
    request = Request(method="GET", url="http://public.example/", headers={}, operator=False)
    async with StreamingClient(net.world, NARROW) as http:
        for _ in range(3):
            async with AsyncExitStack() as together:
                for _ in range(3):
                    answer = await together.enter_async_context(http.open(request))
                    assert await read_all(answer, 1024) == b"{}"
    assert (net.outside.connections, len(net.outside.requests)) == (3, 9)


@pytest.mark.parametrize("protocol", ["native", "json", "openai"])
async def test_an_invocation_is_judged_by_its_own_profile(protocol: str, net: Net) -> None:
    endpoint = "http://intranet.example"
    async with net.client(NARROW) as http:
        with pytest.raises(AgentFailure, match="only an operator's URLs may be private") as caught:
            await frames_of(http, calling(endpoint, operator=False), protocol)
        assert (caught.value.code, caught.value.retryable) == ("agent_unavailable", False)
        assert not net.dialled
        with suppress(AgentFailure):  # of "{}" each protocol makes something else
            await frames_of(http, calling(endpoint, operator=True), protocol)
    assert len(net.inside.requests) == 1


async def test_a_probe_is_judged_by_its_own_profile(net: Net) -> None:
    async with net.client(NARROW) as http:
        for operator, status in ((False, "unhealthy"), (True, "healthy")):
            answer = await HTTPProbe(http).probe("http://10.0.0.7", None, operator=operator)
            assert answer.status == status
    assert net.inside.connections == 1


# ---------------------------------------------------------------- redirects, proxies, passwords


@pytest.mark.parametrize("status", [300, 301, 302, 303, 307, 308])
@pytest.mark.parametrize(
    "location",
    ["http://169.254.169.254/latest/", "http://10.0.0.7/", "http://localhost/", "//127.0.0.1/",
     "http://both.example/next", "/next", "file:///etc/passwd"],
)  # fmt: skip
async def test_no_redirect_is_followed(status: int, location: str, net: Net) -> None:
    net.outside.answer = (
        f"HTTP/1.1 {status} Elsewhere\r\nLocation: {location}\r\nRefresh: 0; url={location}\r\n"
        "Content-Length: 0\r\n\r\n"
    ).encode()
    for guard, operator in ((NARROW, False), (WIDE, True)):
        assert await net.tried(guard, "http://public.example/", operator=operator) == status
    assert (net.outside.connections, len(net.outside.requests)) == (2, 2)
    assert net.inside.connections == 0
    async with net.client(WIDE) as http:
        failure = await failure_of(http, calling("http://public.example"))
    assert failure.code == "agent_status"
    assert "redirects are not followed" in failure.message
    assert (len(net.outside.requests), net.inside.connections) == (3, 0)


@pytest.fixture
def proxied(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Name a proxy and a password for every host, in each way an environment can."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "ws_proxy"):
        monkeypatch.setenv(name, "http://10.0.0.7:3128")
        monkeypatch.setenv(name.upper(), "http://10.0.0.7:3128")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    secrets = tmp_path / "netrc"
    secrets.write_text("default login user password planted\n")
    secrets.chmod(0o600)
    monkeypatch.setenv("NETRC", str(secrets))


@pytest.mark.usefixtures("proxied")
async def test_no_proxy_and_no_password_of_the_environment_is_used(net: Net) -> None:
    assert getproxies()["http"] == "http://10.0.0.7:3128"
    for operator in (True, False):
        assert await net.tried(WIDE, "http://public.example/", operator=operator) == 200
        failure = await net.tried(WIDE, "https://public.example/", operator=operator)
        assert isinstance(failure, ExchangeFailed)
        assert failure.trouble == "unreachable", "the listener speaks no TLS"
    assert set(net.dialled) == {PUBLIC[0]}
    assert net.inside.connections == 0
    assert not any("authorization" in headers for headers in net.outside.requests)


@pytest.mark.usefixtures("proxied")
async def test_somebody_who_trusts_the_environment_would_use_them(net: Net) -> None:
    async with aiohttp.ClientSession(trust_env=True) as trusting:
        await trusting.get("http://93.184.215.14/")
    assert net.dialled == ["10.0.0.7"]
    (headers,) = net.inside.requests
    assert headers["authorization"].startswith("Basic ")


# ---------------------------------------------------------------- what is left behind


async def test_nothing_is_kept_of_places_that_were_called_once(
    net: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming, "KEEP_ALIVE_S", 0.05)
    async with StreamingClient(net.world, WIDE) as http:
        for port in range(1, 40):
            url = f"http://public.example:{port}/"
            assert await exchanged(http, url, operator=False) == 200
        assert http._idle, "for a while they are kept"
        async with asyncio.timeout(20):
            while http._idle:
                await asyncio.sleep(0.01)
    assert net.outside.connections == 39
