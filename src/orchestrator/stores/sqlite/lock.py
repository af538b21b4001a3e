"""One server per database: a lock file that dies with its holder, also by kill -9."""

import fcntl
import os
from pathlib import Path
from typing import Self

from orchestrator.core.errors import DatabaseRefused


class LockFile:
    """Holds `<database>.lock`, in which the holder's process id stands."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    @classmethod
    def take(cls, database: str) -> Self:
        """Take the lock of a database; raises DatabaseRefused naming the process that has it."""
        try:
            descriptor = os.open(f"{database}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise DatabaseRefused(
                f"the folder of {database} cannot be written ({error.strerror}); "
                "give the server a folder of its own, or change its owner"
            ) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.read(descriptor, 32).decode().partition("\n")[0] or "unknown"
            os.close(descriptor)
            raise DatabaseRefused(
                f"{database} is in use by another server (process {holder.strip()}); "
                "stop that one, or give this one a DATABASE_URL of its own"
            ) from None
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        return cls(descriptor)

    def release(self) -> None:
        """Let go; the file stays, for removing it would let two servers hold two locks."""
        os.close(self._descriptor)


def announce(database: str, url: str) -> None:
    """Write into the lock file that we hold where we can be called."""
    with Path(f"{database}.lock").open("a", encoding="ascii") as file:
        file.write(f"{url}\n")


def address_of(database: str) -> str | None:
    """Return the URL of the server that has a database open; None if none has, or does not say."""
    if holder_of(database) is None:
        return None
    lines = Path(f"{database}.lock").read_text(encoding="ascii").split()
    return lines[1] if len(lines) > 1 else None


def holder_of(database: str) -> int | None:
    """Return the process id of the server that has a database open, or None."""
    path = Path(f"{database}.lock")
    if not path.exists():
        return None
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            text = file.readline(32).strip()
            return int(text) if text.isdigit() else 0
    return None
