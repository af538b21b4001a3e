"""Who holds a port, as far as the system tells."""

import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from orchestrator.cli.failure import CommandFailed
from orchestrator.core.errors import PortBusy

_LISTENING: Final = "0A"
_SHOWN: Final = 120
_LOOKED_AT: Final = 1000


def explain(error: PortBusy) -> CommandFailed:
    """Return the error with the port's owner and what to do."""
    port = error.details.get("port")
    if port is None:
        return CommandFailed(error.message, hint="HTTP_HOST takes an address of this machine")
    owner = owner_of(port)
    held = f"; {owner} has it" if owner else ""
    return CommandFailed(
        f"port {port} is in use{held}",
        hint=f"stop that, or take another port: HTTP_PORT={next_free(port)} ./orchestrator",
    )


def next_free(port: int) -> int:
    """Return the first port after `port` on which nobody listens; 0 lets the system choose."""
    for candidate in range(port + 1, min(port + _LOOKED_AT, 65_536)):
        if is_free(candidate):
            return candidate
    return 0


def is_free(port: int) -> bool:
    """Return whether both loopback addresses could be listened on now."""
    for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        try:
            with socket.socket(family) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((address, port))
                probe.listen(1)
        except OSError:
            if family == socket.AF_INET:
                return False  # a machine may lack IPv6, but never IPv4 loopback
    return True


def owner_of(port: int) -> str:
    """Return `process 123 (its command)`, or nothing where the system does not say."""
    pid = next(_listeners(port), None) if Path("/proc/net/tcp").exists() else _asked(port)
    if pid is None:
        return ""
    return f"process {pid}{_command(pid)}"


def _listeners(port: int) -> Iterator[int]:
    """Yield the processes that listen on a port, from Linux's own tables."""
    inodes = {f"socket:[{inode}]" for inode in _sockets(port)}
    if not inodes:
        return
    for process in Path("/proc").iterdir():
        if process.name.isdigit() and _holds(process, inodes):
            yield int(process.name)


def _sockets(port: int) -> Iterator[str]:
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        path = Path(table)
        lines = path.read_text().splitlines()[1:] if path.exists() else []
        for fields in (line.split() for line in lines):
            if fields[3] == _LISTENING and int(fields[1].rpartition(":")[2], 16) == port:
                yield fields[9]


def _holds(process: Path, inodes: set[str]) -> bool:
    try:
        return any(str(open_file.readlink()) in inodes for open_file in (process / "fd").iterdir())
    except OSError:  # it ended, or it is somebody else's
        return False


def _command(pid: int) -> str:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return ""
    text = b" ".join(words).decode("utf-8", "replace").strip()
    return f" ({text[:_SHOWN]})" if text else ""


def _asked(port: int) -> int | None:
    """Ask lsof, which macOS has."""
    lsof = shutil.which("lsof")
    if lsof is None:
        return None
    asked = [lsof, "-nP", f"-iTCP:{port}", "-sTCP:LISTEN", "-t"]
    done = subprocess.run(asked, capture_output=True, text=True, check=False)  # noqa: S603  # our own words
    first = done.stdout.split()
    return int(first[0]) if first else None
