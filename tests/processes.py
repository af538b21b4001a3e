"""Real processes for tests: the server, the demo agent, nginx; each is stopped by its own pid."""

import http.client
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any
from urllib.parse import urlsplit

import msgspec

ROOT = Path(__file__).resolve().parents[1]
START_S = 30.0
STOP_S = 40.0


def free_port() -> int:
    """Return a port that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def until(condition: Callable[[], Any], what: str, timeout_s: float = 15.0) -> Any:
    """Return the first true value of `condition`; fail naming `what` when none comes in time."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        time.sleep(0.02)
    raise AssertionError(f"{what}: not within {timeout_s} s")


@dataclass(frozen=True)
class Answer:
    """What a server said."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """Return the decoded body."""
        return msgspec.json.decode(self.body)


def request(
    method: str,
    url: str,
    body: Any = None,
    headers: Mapping[str, str] = MappingProxyType({}),
    timeout_s: float = 30.0,
) -> Answer:
    """Make one request on a connection of its own; `body` becomes JSON unless it is bytes."""
    parts = urlsplit(url)
    path = parts.path + (f"?{parts.query}" if parts.query else "")
    data = body if isinstance(body, bytes) or body is None else msgspec.json.encode(body)
    sent = {"Content-Type": "application/json", **headers}
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=timeout_s)
    try:
        connection.request(method, path or "/", data, sent)
        reply = connection.getresponse()
        lower = {name.lower(): value for name, value in reply.getheaders()}
        return Answer(reply.status, lower, reply.read())
    finally:
        connection.close()


@contextmanager
def stream(
    url: str, headers: Mapping[str, str] = MappingProxyType({}), timeout_s: float = 30.0
) -> Iterator[http.client.HTTPResponse]:
    """Open a GET whose answer is read line by line; `timeout_s` bounds the wait for each piece."""
    parts = urlsplit(url)
    path = parts.path + (f"?{parts.query}" if parts.query else "")
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=timeout_s)
    try:
        connection.request("GET", path, headers={"Accept": "text/event-stream", **headers})
        yield connection.getresponse()
    finally:
        connection.close()


@dataclass(frozen=True)
class Frame:
    """One server-sent event: its `id:`, its `event:` and its decoded `data:`."""

    id: str
    event: str
    data: Any


def frames(lines: Iterator[bytes]) -> Iterator[Frame]:
    """Read the events of a stream that has one `data` line each, as ours do."""
    fields: dict[str, str] = {}
    for raw in lines:
        line = raw.decode().rstrip("\r\n")
        if line and not line.startswith(":"):
            name, _, value = line.partition(":")
            fields[name] = value.removeprefix(" ")
        elif not line and "data" in fields:
            data = msgspec.json.decode(fields["data"])
            yield Frame(fields.get("id", ""), fields.get("event", ""), data)
            fields = {}


@dataclass
class Running:
    """A process that answers at `url`; what it wrote is in `log`."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path

    def stop(self, sign: signal.Signals = signal.SIGTERM) -> int:
        """End it by a signal and return its exit code (or minus the signal)."""
        if self.process.poll() is None:
            self.process.send_signal(sign)
        try:
            return self.process.wait(STOP_S)
        finally:
            with suppress(ProcessLookupError):
                self.process.kill()

    def kill(self) -> int:
        """End it without a chance to clean up."""
        return self.stop(signal.SIGKILL)

    def said(self) -> str:
        """Return all it has written so far."""
        return self.log.read_text(errors="replace")


def spawn(
    command: Sequence[str], folder: Path, log: Path, env: Mapping[str, str], **how: Any
) -> subprocess.Popen[bytes]:
    """Start a program in `folder` with nothing but `env` around it."""
    around = {
        "PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
        "HOME": str(folder),
        **env,
    }
    with log.open("ab") as out:
        return subprocess.Popen(
            command, cwd=folder, env=around, stdout=out, stderr=subprocess.STDOUT, **how
        )


def start_server(folder: Path, **env: str) -> Running:
    """Start the server in `folder` with settings from `env` and return once it is ready."""
    settings = {"HTTP_PORT": str(free_port()), "INGRESS_URL": "off", **env}
    log = folder / "server.log"
    process = spawn([sys.executable, "-m", "orchestrator"], folder, log, settings)
    server = Running(f"http://127.0.0.1:{settings['HTTP_PORT']}", process, log)
    try:
        until(lambda: _is_up(server), "the server answers /health", START_S)
    except AssertionError as problem:
        server.kill()
        raise AssertionError(f"{problem}; it wrote:\n{server.said()}") from None
    return server


def _is_up(server: Running) -> bool:
    if server.process.poll() is not None:
        raise AssertionError(f"the server ended with {server.process.returncode}")
    with suppress(OSError, http.client.HTTPException):
        return request("GET", f"{server.url}/health", timeout_s=2).status == http.HTTPStatus.OK
    return False


_NGINX = """
{user}
daemon off;
master_process off;
error_log stderr warn;
pid nginx.pid;
events {{}}
http {{
    access_log off;
    client_body_temp_path temp-body;
    proxy_temp_path temp-proxy;
    fastcgi_temp_path temp-fastcgi;
    scgi_temp_path temp-scgi;
    uwsgi_temp_path temp-uwsgi;
    {http}
}}
"""


def nginx_configuration(http: str, user: str = "") -> str:
    """Return what nginx needs around the lines of its `http` block to run from a folder of ours."""
    return _NGINX.format(http=http, user=user)


@contextmanager
def demo_agent_process(folder: Path) -> Iterator[str]:
    """Run examples/demo_agent.py on a free port and hand out its address."""
    program = str(ROOT / "examples" / "demo_agent.py")
    command = [sys.executable, program, "--port", "0", "--until-eof"]
    log = folder / "agent.log"
    agent = spawn(command, folder, log, {}, stdin=subprocess.PIPE)
    try:
        yield str(until(lambda: first_line(log), "the demo agent prints its address"))
    finally:
        _close(agent.stdin)
        assert agent.wait(STOP_S) == 0


def first_line(log: Path) -> str:
    """Return the first complete line of a log, or nothing yet."""
    text = log.read_text()
    return text.partition("\n")[0] if "\n" in text else ""


def _close(pipe: IO[bytes] | None) -> None:
    if pipe is not None:
        pipe.close()
