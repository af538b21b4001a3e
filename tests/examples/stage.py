"""Where the examples are played: a folder like a checkout, and ports that nobody else has.

What a file's first comment says is taken literally: a line after `$` is run by a shell, the lines
below it are what the command must print. Only the ports are replaced, in commands and files alike,
because somebody may have the documented ones.
"""

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from ..processes import ROOT, Running, free_port, request, spawn, until
from ..sdk.python_rig import SDK

EXAMPLES = ROOT / "examples"
FILES = sorted(
    path.name
    for path in EXAMPLES.iterdir()
    if path.is_file() and path.name not in {"README.md", "demo_agent.py"}
)
PORT = re.compile(r"\b80\d\d\b")
COMMAND_S = 60
START_S = 60.0


class Command(NamedTuple):
    """A command of an example, and the lines that it is said to print."""

    text: str
    prints: str


def opening(name: str) -> str:
    """Return the comment that an example begins with."""
    found = re.match(r'"""(.*?)"""|/\*\*(.*?)\*/|<!doctype html>\n<!--(.*?)-->',
                     (EXAMPLES / name).read_text(), re.DOTALL)  # fmt: skip
    assert found, f"{name} does not begin with a comment"
    lines = "".join(found.groups("")).splitlines()
    return "\n".join(line.removeprefix(" *").rstrip() for line in lines).strip()


def body(name: str) -> list[str]:
    """Return the lines of a Python example after its comment, without the empty ones."""
    code = (EXAMPLES / name).read_text().split('"""', 2)[2]
    return [line for line in code.splitlines() if line.strip()]


def commands(name: str) -> list[Command]:
    """Return the commands of an example in their order."""
    block = re.compile(r"^ +\$ (.+)\n((?: +(?!\$ )\S.*\n)*)", re.MULTILINE)
    found = block.findall(opening(name) + "\n")
    return [Command(text, "\n".join(map(str.strip, out.splitlines()))) for text, out in found]


def third_party(name: str) -> set[str]:
    """Return the libraries that a Python example imports from outside the standard library."""
    found = re.findall(r"^(?:from|import) (\w+)", (EXAMPLES / name).read_text(), re.MULTILINE)
    return set(found) - sys.stdlib_module_names


@dataclass
class Stage:
    """A folder in which the commands work; `ports` maps documented ports to those in use."""

    folder: Path
    stack: ExitStack
    ports: dict[str, str] = field(default_factory=dict)
    started: dict[str, Running] = field(default_factory=dict)

    def here(self, text: str) -> str:
        """Return a command, an address or a program with the ports of this stage."""
        return PORT.sub(lambda found: self.port(found[0]), text)

    def port(self, documented: str) -> str:
        """Return the port that stands for a documented one."""
        while documented not in self.ports:
            free = str(free_port())
            if free not in self.ports.values():
                self.ports[documented] = free
        return self.ports[documented]

    def start(self, command: str, name: str, **env: str) -> Running:
        """Start a command that goes on; what still runs at the end is killed."""
        log = self.folder / f"{name}.log"
        script = f"exec env {self.here(command)}"
        process = spawn(["sh", "-c", script], self.folder, log, self._env(env))
        self.started[name] = running = Running("", process, log)
        self.stack.callback(running.kill)
        return running

    def run(self, command: str) -> str:
        """Run a command to its good end and return what it prints."""
        done = subprocess.run(
            ["sh", "-c", self.here(command)], cwd=self.folder, env=self._env({}),
            capture_output=True, text=True, timeout=COMMAND_S, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout

    def answers(self, url: str, running: Running) -> None:
        """Wait until a program listens at a documented address, or has ended before."""

        def listens() -> bool:
            assert running.process.poll() is None, running.said()
            try:
                request("GET", self.here(url), timeout_s=2)
            except OSError:
                return False
            return True

        until(listens, f"{url} answers", START_S)

    def _env(self, more: Mapping[str, str]) -> dict[str, str]:
        path = f"{self.folder}/bin:{os.defpath}"
        around = {"HTTP_PORT": self.port("8080"), "INGRESS_URL": "off", "WS_PORT": "0"}
        home = {"PATH": path, "HOME": str(self.folder), "PYTHONPATH": str(SDK / "src")}
        return {**home, **around, **more}


@contextmanager
def stage(folder: Path, node: str, server: str | None = None) -> Iterator[Stage]:
    """Open a stage with copies of the examples; `server` is what answers for port 8080."""
    with ExitStack() as stack:
        here = Stage(folder, stack)
        if server is not None:
            here.ports["8080"] = server.rpartition(":")[2]
        (folder / "examples").mkdir()
        for name in FILES:
            (folder / "examples" / name).write_text(here.here((EXAMPLES / name).read_text()))
        (folder / "sdk").symlink_to(ROOT / "sdk")
        (folder / "bin").mkdir()
        _passing_on(folder / "bin" / "python3", sys.executable)
        _passing_on(folder / "bin" / "uvicorn", sys.executable, "-m", "uvicorn")
        _passing_on(folder / "bin" / "node", node)
        _passing_on(folder / "orchestrator", sys.executable, "-m", "orchestrator")
        yield here


def _passing_on(program: Path, *command: str) -> None:
    quoted = " ".join(f'"{word}"' for word in command)
    program.write_text(f'#!/bin/sh\nexec {quoted} "$@"\n')
    program.chmod(0o755)
