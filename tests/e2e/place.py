"""A network of its own, in which programs may have the very ports that the documents name.

Where the system does not allow one (another system than Linux, or a locked-down container), the
documents' ports are replaced by free ones in every command, and that is printed. The same is done
for a database that is reached through the network.
"""

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from ..processes import ROOT, Running, free_port, spawn, until
from ..stores import Kept

PORTS = ("8080", "8081", "8000", "8090", "9000")
UNSHARE = (
    "unshare",
    "-rn",
    "sh",
    "-c",
    "ip link set lo up && echo up && exec sleep 3600",
)
COMMAND_S = 60


@dataclass
class Place:
    """A folder and a network; `ports` maps a documented port to the one that is really used."""

    folder: Path
    stack: ExitStack
    prefix: Sequence[str] = ()
    ports: Mapping[str, str] = field(default_factory=dict)
    kept: Kept = field(default_factory=Kept)

    def here(self, text: str) -> str:
        """Return a command or address as it must be written in this place."""
        return re.sub(r"\b(8080|8081|8000|8090|9000)\b", lambda m: self.ports.get(m[0], m[0]), text)

    def run(self, command: str, **env: str) -> str:
        """Run a shell command to its end and return what it wrote to standard output."""
        done = subprocess.run(
            [*self.prefix, "sh", "-c", self.here(command)],
            cwd=self.folder,
            env=self._env(env),
            capture_output=True,
            timeout=COMMAND_S,
            check=False,
        )
        assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stderr.decode()}"
        return done.stdout.decode()

    def json(self, command: str, **env: str) -> Any:
        """Run a shell command and decode the JSON that it writes."""
        return msgspec.json.decode(self.run(command, **env))

    def start(self, command: str, name: str, **env: str) -> Running:
        """Start a shell command that goes on; it is killed when the place is left."""
        log = self.folder / f"{name}.log"
        script = f"exec env {self.here(command)}"
        process = spawn([*self.prefix, "sh", "-c", script], self.folder, log, self._env(env))
        running = Running("", process, log)
        self.stack.callback(running.kill)
        return running

    def up(self, url: str) -> str:
        """Wait until a server answers at `url` and return its answer."""
        # A curl per look is slow but works in any network.
        quiet = f"curl -s {url} || true"
        return str(until(lambda: self.run(quiet), f"{url} answers", 30))

    def _env(self, more: Mapping[str, str]) -> dict[str, str]:
        path = f"{self.folder}/bin:{os.defpath}:/usr/sbin:/sbin"
        around = {"PATH": path, "HOME": str(self.folder), **self.kept.settings}
        if self.ports:
            around["HTTP_PORT"] = self.ports["8080"]
            around["INGRESS_URL"] = f"http://localhost:{self.ports['8090']}"
        return around | dict(more)


@contextmanager
def place(folder: Path, kept: Kept | None = None) -> Iterator[Place]:
    """Open a place whose folder looks like a clone: `./orchestrator` and `examples/` are there.

    Every command is told the settings of `kept`, the database of the test.
    """
    kept = kept or Kept()
    (folder / "examples").symlink_to(ROOT / "examples")
    (folder / "bin").mkdir()
    _passing_on(folder / "bin" / "python3", f'"{sys.executable}"')
    _passing_on(folder / "orchestrator", f'"{sys.executable}" "{ROOT}/orchestrator"')
    with ExitStack() as stack:
        prefix = () if kept.by_network else _own_network(folder, stack)
        ports = {} if prefix else {port: str(free_port()) for port in PORTS}
        if ports:
            print(f"no network of our own here: the documents' ports are replaced by {ports}")
        yield Place(folder, stack, prefix, ports, kept)


def _passing_on(program: Path, command: str) -> None:
    program.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
    program.chmod(0o755)


def _own_network(folder: Path, stack: ExitStack) -> Sequence[str]:
    log = folder / "network.log"
    try:
        holder = Running("", spawn(UNSHARE, folder, log, {}), log)
    except OSError:
        return ()
    stack.callback(holder.kill)
    until(
        lambda: log.read_text() or holder.process.poll() is not None,
        "a network of our own",
    )
    if holder.process.poll() is not None:
        return ()
    return (
        "nsenter",
        "-t",
        str(holder.process.pid),
        "-U",
        "-n",
        "--preserve-credentials",
    )
