"""A process that has the server in memory and forks one when asked: a start takes a tenth.

What it forks is the whole server with its own command line, folder and environment; only the
imports are shared.
"""

import http
import os
import random
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import msgspec

from ..processes import START_S, request, until

NURSE = """
import faulthandler, gc, json, os, resource, sys, traceback
import orchestrator.app, orchestrator.cli.serving, uvloop, uvicorn.lifespan.off
from orchestrator.cli.main import main

def become(asked):
    os.chdir(asked["folder"])
    log = os.open("server.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    null = os.open(os.devnull, os.O_RDONLY)
    for target, source in ((0, null), (1, log), (2, log)):
        os.dup2(source, target)
    faulthandler.enable()
    for name, size in asked["limits"].items():
        resource.setrlimit(getattr(resource, "RLIMIT_" + name), (size, size))
    os.environ.clear()
    os.environ.update(asked["env"])
    sys.argv = ["orchestrator"]
    code = 1
    try:
        main()
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)

gc.freeze()
for line in sys.stdin:
    asked = json.loads(line)
    if "wait" in asked:
        _, status = os.waitpid(asked["wait"], 0)
        print(os.waitstatus_to_exitcode(status), flush=True)
        continue
    pid = os.fork()
    if not pid:
        become(asked)
    print(pid, flush=True)
"""


@dataclass
class Forked:
    """A server by its pid; it stays a zombie, so the pid is its own, until `wait` has its code."""

    url: str
    pid: int
    log: Path
    nurse: "Nurse"
    code: int | None = None

    def send(self, sign: signal.Signals) -> None:
        """Send it a signal."""
        if self.code is None:
            os.kill(self.pid, sign)

    def wait(self) -> int:
        """Return its exit code, or minus the signal, once it has ended."""
        if self.code is None:
            self.code = self.nurse.ask(wait=self.pid)
        return self.code

    def kill(self) -> int:
        """End it without a chance to clean up."""
        self.send(signal.SIGKILL)
        return self.wait()

    def up(self) -> "Forked":
        """Return once it answers."""
        try:
            until(self._answers, "the server answers", START_S)
        except AssertionError as problem:
            raise AssertionError(f"{problem}; it wrote:\n{self.said()}") from None
        return self

    def _answers(self) -> bool:
        with suppress(OSError, http.client.HTTPException):
            return request("GET", f"{self.url}/health", timeout_s=5).status == http.HTTPStatus.OK
        return False

    def status(self, field: str) -> str:
        """Return a field of what the kernel says of it, such as VmHWM or State."""
        text = Path(f"/proc/{self.pid}/status").read_text()
        return text.partition(f"{field}:")[2].split()[0]

    def peak(self) -> int:
        """Return the most memory that it has held, in bytes."""
        return int(self.status("VmHWM")) * 1024

    def said(self) -> str:
        """Return all that servers of its folder have written."""
        return self.log.read_text(errors="replace")


class Nurse:
    """Asks the process to fork a server or to wait for one."""

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        self._process = process
        self._lock = threading.Lock()
        self._forked: list[Forked] = []

    def start(
        self, folder: Path, limits: Mapping[str, int] = MappingProxyType({}), **env: str
    ) -> Forked:
        """Fork a server in `folder` under limits (AS, NOFILE …); it may not answer yet."""
        port = str(quiet_port())
        around = {"PATH": os.defpath, "HTTP_PORT": port, "INGRESS_URL": "off", **env}
        pid = self.ask(folder=str(folder), env=around, limits=dict(limits))
        url = f"http://127.0.0.1:{around['HTTP_PORT']}"
        forked = Forked(url, pid, folder / "server.log", self)
        self._forked.append(forked)
        return forked

    def ask(self, **question: Any) -> int:
        """Return the number that the process answers with."""
        with self._lock:
            assert self._process.stdin is not None
            assert self._process.stdout is not None
            self._process.stdin.write(msgspec.json.encode(question) + b"\n")
            self._process.stdin.flush()
            return int(self._process.stdout.readline())

    def close(self) -> None:
        """End what still runs."""
        for forked in self._forked:
            if forked.code is None:
                forked.kill()


def quiet_port() -> int:
    """Return a free port below those that the system gives to callers.

    A server that is started a thousand times on one of theirs meets a caller on it at some time.
    """
    for port in random.sample(range(20_000, 32_000), 100):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("a hundred ports, and none was free")


@contextmanager
def nursery() -> Iterator[Nurse]:
    """Hand out a nurse; what it started and still runs is killed at the end."""
    process = subprocess.Popen(
        [sys.executable, "-c", NURSE], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with process:
        nurse = Nurse(process)
        try:
            yield nurse
        finally:
            nurse.close()
            assert process.stdin is not None
            process.stdin.close()
