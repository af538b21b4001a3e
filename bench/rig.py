"""The rig of a measurement: the processes on it, and what each of them costs."""

import contextlib
import http.client
import json
import os
import resource
import select
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any, Final, Self, cast

from tests.processes import ROOT, request, spawn

ANSWER_S: Final = 300.0
START_S: Final = 30.0
_PORTS: Final = count(20_000)
_TICKS: Final = os.sysconf("SC_CLK_TCK")
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
_OURS: Final = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
_SERVER: Final = ("orchestrator",)
_SBIN: Final = ":/usr/local/sbin:/usr/sbin:/sbin"


class Missing(Exception):
    """A program that is measured against is not installed."""


def port() -> int:
    """Return a free port below those that the system gives to outgoing connections."""
    for number in _PORTS:
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", number))
            return number
    raise RuntimeError("no port is free")


def many_descriptors() -> int:
    """Let this process and those it starts open as many files as they may; return how many."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


@dataclass(frozen=True)
class Running:
    """A process that listens; `relays` when it speaks the agents' protocol and invokes nothing.

    `ready_s` is what it took from its start until it answered.
    """

    port: int
    process: subprocess.Popen[bytes]
    relays: bool = False
    ready_s: float = 0.0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def cpu(self) -> float:
        """Return the seconds of CPU that it and its children have used."""
        return cpu_of(self.process.pid)

    def memory(self) -> int:
        """Return the resident bytes of it and its children."""
        return sum(_resident(pid) for pid in tree(self.process.pid))

    def end(self) -> None:
        """Kill it; what it holds is thrown away."""
        self.process.kill()
        self.process.wait()


def tree(pid: int) -> list[int]:
    """Return a process and all below it."""
    found = [pid]
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in path.read_text().split():
            found += tree(int(child))
    return found


def cpu_of(pid: int) -> float:
    """Return the seconds of CPU that a process and all below it have used."""
    return sum(_cpu(one) for one in tree(pid))


def _cpu(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(int(ticks) for ticks in fields[11:15]) / _TICKS


def _resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE


class Neighbours:
    """How much of the machine other programs took, which is what spoils a measurement."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._others = self._taken()

    def processors(self) -> float:
        """Return how many processors they kept busy; ask once all of our own have ended."""
        return (self._taken() - self._others) / (time.monotonic() - self._began)

    def _taken(self) -> float:
        user, nice, system, _, _, *interrupts = Path("/proc/stat").read_text().split()[1:9]
        busy = sum(int(ticks) for ticks in (user, nice, system, *interrupts)) / _TICKS
        usages = [resource.getrusage(who) for who in _OURS]
        return busy - sum(usage.ru_utime + usage.ru_stime for usage in usages)


class Load:
    """A load process, told what to do line by line."""

    def __init__(self, module: str, *arguments: str) -> None:
        command = [sys.executable, "-m", module, *arguments]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe)
        self._input = cast("IO[bytes]", self.process.stdin)
        self._output = cast("IO[bytes]", self.process.stdout)

    def ask(self, do: str, **arguments: Any) -> Any:
        """Have it done and return what it answers; raises RuntimeError when it does not."""
        self.tell(do, **arguments)
        return self.answer()

    def tell(self, do: str, **arguments: Any) -> None:
        """Have it begun; `answer` waits for the end."""
        self._input.write(json.dumps({"do": do, **arguments}).encode() + b"\n")
        self._input.flush()

    def answer(self) -> Any:
        """Return the answer to what it was told."""
        if not select.select([self._output], [], [], ANSWER_S)[0]:
            raise RuntimeError(f"the load did not answer within {ANSWER_S:g} s")
        line = self._output.readline()
        if not line:
            raise RuntimeError("the load failed; the reason stands above")
        return json.loads(line)

    def end(self) -> None:
        """End it."""
        self.process.kill()
        self.process.wait()


class Rig:
    """Starts what is measured and what loads it; everything ends with the context."""

    def __init__(self, folder: str, checkout: Path = ROOT) -> None:
        self._folder = Path(folder)
        self._checkout = checkout
        self._numbers = count()
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        self.agent_port = port()
        self.agents = self.load("bench.load.agents", str(self.agent_port))
        self.callers = self.load("bench.load.callers")
        return self

    def __exit__(self, *problem: object) -> None:
        self._stack.close()

    def load(self, module: str, *arguments: str) -> Load:
        """Start a load process."""
        load = Load(module, *arguments)
        self._stack.callback(load.end)
        return load

    def load_cpu(self) -> float:
        """Return the seconds of CPU that the load itself has used."""
        return _cpu(self.agents.process.pid) + _cpu(self.callers.process.pid)

    def until_streaming(self, group: str, runs: int) -> None:
        """Wait until all paced streams of a group are open at the agents."""
        until(lambda: bool(self.agents.ask("streaming", group=group) == runs), f"{runs} streams")

    @staticmethod
    def nothing_lost(events: float, sent: float) -> None:
        """Raise RuntimeError unless the readers have received what the agents sent."""
        if events != sent:
            raise RuntimeError(f"the readers received {events:g} of {sent:g} events")

    def folder(self) -> Path:
        """Return a new empty folder."""
        folder = self._folder / str(next(self._numbers))
        folder.mkdir()
        return folder

    @contextlib.contextmanager
    def started(
        self,
        command: Sequence[str],
        listens: int,
        *,
        folder: Path | None = None,
        relays: bool = False,
        env: Mapping[str, str] = MappingProxyType({}),
    ) -> Iterator[Running]:
        """Run a program that listens at a port."""
        place = folder or self.folder()
        process = spawn(command, place, place / "log", env)
        running = Running(listens, process, relays)
        try:
            took = until(lambda: _answers(running, place / "log"), command[-1])
            yield replace(running, ready_s=took)
        finally:
            running.end()

    @contextlib.contextmanager
    def server(
        self, folder: Path | None = None, program: Sequence[str] = _SERVER, **env: str
    ) -> Iterator[Running]:
        """Run the server, its agent registered."""
        own = port()
        sources = f"{self._checkout / 'src'}:{ROOT}"
        settings = {"HTTP_PORT": str(own), "INGRESS_URL": "off", "PYTHONPATH": sources, **env}
        command = [sys.executable, "-m", *program]
        with self.started(command, own, folder=folder, env=settings) as running:
            self.register(running)
            yield running

    @contextlib.contextmanager
    def conventional(self) -> Iterator[Running]:
        """Run the conventional version of the path, its agent registered."""
        own = port()
        command = [sys.executable, str(ROOT / "bench/against/conventional.py"), str(own)]
        with self.started(command, own) as running:
            self.register(running)
            yield running

    @contextlib.contextmanager
    def relay(self) -> Iterator[Running]:
        """Run the raw relay."""
        own = port()
        program = str(ROOT / "bench/against/relay.py")
        command = [sys.executable, program, str(own), str(self.agent_port)]
        with self.started(command, own, relays=True) as running:
            yield running

    @contextlib.contextmanager
    def nginx(self) -> Iterator[Running]:
        """Run nginx; raises Missing where there is none."""
        program = shutil.which("nginx", path=os.environ.get("PATH", os.defpath) + _SBIN)
        if program is None:
            raise Missing("nginx is not on PATH; on Debian or Ubuntu: apt-get install nginx-light")
        own, folder = port(), self.folder()
        template = (ROOT / "bench/against/nginx.conf").read_text()
        config = template.replace("AGENT", str(self.agent_port)).replace("PORT", str(own))
        (folder / "nginx.conf").write_text(config)
        command = [program, "-e", "stderr", "-p", f"{folder}/", "-c", "nginx.conf"]
        with self.started(command, own, folder=folder, relays=True) as running:
            yield running

    @contextlib.contextmanager
    def nothing(self) -> Iterator[Running]:
        """Stand in the agents' own process, for what the load itself takes."""
        yield Running(self.agent_port, self.agents.process, relays=True)

    def register(self, running: Running) -> None:
        """Make the load's agents known."""
        body = {
            "agent_id": "load",
            "name": "Load",
            "endpoint": f"http://127.0.0.1:{self.agent_port}",
        }
        answer = request("POST", f"{running.url}/v1/agents/register", body)
        if answer.status != http.HTTPStatus.OK:
            raise RuntimeError(f"the agent was not registered: {answer.body!r}")


def until(condition: Callable[[], bool], what: str) -> float:
    """Wait for a condition, looking each 2 ms; return the seconds it took."""
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > START_S:
            raise RuntimeError(f"{what}: not within {START_S:g} s")
        time.sleep(0.002)
    return time.monotonic() - began


def _answers(running: Running, log: Path) -> bool:
    """Return whether it does its work; a relay does as soon as it listens."""
    if running.process.poll() is not None:
        raise RuntimeError(f"what is measured ended at once; it wrote:\n{log.read_text()}")
    with contextlib.suppress(OSError, http.client.HTTPException):
        if running.relays:
            socket.create_connection(("127.0.0.1", running.port), 1).close()
            return True
        health = request("GET", f"{running.url}/health", timeout_s=START_S)
        return health.status == http.HTTPStatus.OK
    return False
