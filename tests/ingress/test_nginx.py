"""Devices behind a real nginx, with the configuration that we ship."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from secrets import token_hex

import pytest
from websockets.exceptions import InvalidStatus

from ..fault.load import Agent, invoke, register
from ..processes import (
    ROOT,
    Running,
    free_port,
    nginx_configuration,
    request,
    spawn,
    until,
)
from .rig import Started, connected, device, pushed_of, seqs

SNIPPET = (ROOT / "deploy" / "nginx" / "orchestrator.conf").read_text()
Front = Callable[[str, Running], Running]


@pytest.fixture
def in_front(tmp_path: Path, program: Callable[[str], Path]) -> Iterator[Front]:
    """Hand out a function that starts nginx in front of a server and an ingress."""
    nginx = program("nginx")
    with ExitStack() as stack:

        def start(server: str, ingress: Running) -> Running:
            port = str(free_port())
            text = nginx_configuration(SNIPPET)
            places = {"8080": server, "8090": ingress.url}
            for usual, url in places.items():
                text = text.replace(f":{usual};", f":{url.rpartition(':')[2]};")
            (tmp_path / "nginx.conf").write_text(text.replace("listen 8081", f"listen {port}"))
            command = [str(nginx), "-e", "stderr", "-p", f"{tmp_path}/", "-c", "nginx.conf"]
            log = tmp_path / "nginx.log"
            running = Running(f"http://127.0.0.1:{port}", spawn(command, tmp_path, log, {}), log)
            stack.callback(running.kill)
            until(lambda: _answers(running), "nginx answers")
            return running

        yield start


def _answers(running: Running) -> bool:
    assert running.process.poll() is None, running.said()
    try:
        return request("GET", f"{running.url}/nothing", timeout_s=2).status > 0
    except OSError:
        return False


async def test_devices_pass_and_come_back(
    server: str, start_ingress: Started, in_front: Front
) -> None:
    keys = {"API_KEY": token_hex(20), "CORS_ORIGINS": "https://app.example"}
    front = in_front(server, start_ingress(server, **keys))
    key = {"api_key": keys["API_KEY"]}
    async with Agent(deltas=40).serving() as agent_url:
        await register(server, agent_url)
        async with device(front, **key) as one:
            session = one.ack["session_id"]
            await one.invoke()
            told = await one.take_run()
        missed = await invoke(server, session)
        async with device(front, session_id=session, cursor=told[-1]["cursor"], **key) as back:
            rest = await back.take_run(missed)
    assert seqs(told, told[0]["run_id"]) == await pushed_of(server, told[0]["run_id"])
    assert seqs(rest, missed) == await pushed_of(server, missed)
    own = front.url
    for origin in (own, "https://app.example"):
        async with connected(front, origin=origin) as one:
            assert (await one.hello(**key))["type"] == "hello_ack"
    with pytest.raises(InvalidStatus) as refused:
        async with connected(front, origin="https://evil.example"):
            pass
    assert refused.value.response.status_code == 403


async def test_an_ingress_without_a_key_refuses_what_a_proxy_passes_on(
    server: str, start_ingress: Started, in_front: Front
) -> None:
    front = in_front(server, start_ingress(server))
    with pytest.raises(InvalidStatus) as refused:
        async with connected(front):
            pass
    assert refused.value.response.status_code == 403
    assert b"API_KEY" in refused.value.response.body
    push = {"session_id": "s", "events": []}
    pushed = request("POST", f"{front.url}/internal/send", push)
    assert "x-ingress" not in pushed.headers, "pushes are not passed on to the ingress"
