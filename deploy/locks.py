"""Reads what the lock files pin, and refuses what it does not understand."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import quote

RUNTIME: Final = "requirements.lock"
RENEW: Final = "run: make lock"

_PIN: Final = re.compile(r"([A-Za-z0-9][\w.-]*)==([\w.!+]+)(?: ; .+)? \\")
_HASH: Final = re.compile(r" {4}--hash=sha256:([0-9a-f]{64})(?: \\)?")
_VIA: Final = re.compile(r" {4}# (?:via|  )(?: ?(-c|[\w.-]+).*)?")


class Problem(Exception):
    """What was asked for cannot be done: the message says why, and what to do next."""


class Pin(NamedTuple):
    """One package at one version, its SHA-256 hashes, who wants it, and whether the server does.

    The hashes are of all the files that the lock accepts, of which one is installed. `wanted_by`
    has names of packages, ours included.
    """

    name: str
    version: str
    hashes: frozenset[str]
    wanted_by: frozenset[str]
    runtime: bool

    @property
    def purl(self) -> str:
        """Return its package URL."""
        return f"pkg:pypi/{self.name}@{quote(self.version, safe='')}"


def pins(root: Path) -> list[Pin]:
    """Return what all `requirements*.lock` in `root` pin, sorted; raises Problem on any doubt."""
    if not (root / RUNTIME).is_file():
        raise Problem(f"there is no {RUNTIME} in {root}; {RENEW}")
    found: dict[tuple[str, str], Pin] = {}
    for lock in sorted(root.glob("requirements*.lock")):
        for pin in read(lock):
            same = found.get((pin.name, pin.version), pin)
            found[pin.name, pin.version] = pin._replace(
                hashes=pin.hashes | same.hashes,
                wanted_by=pin.wanted_by | same.wanted_by,
                runtime=pin.runtime or same.runtime,
            )
    return [found[key] for key in sorted(found)]


def read(lock: Path) -> list[Pin]:
    """Return the pins of one lock; raises Problem at a line that could hide one, or without any."""
    found = []
    for first, lines in _blocks(lock):
        hashes = {known[1] for line in lines if (known := _HASH.fullmatch(line))}
        if not hashes:
            raise Problem(f"{lock.name} pins {first[1]} without a hash; {RENEW}")
        wanted_by = {normal(known[1]) for line in lines if (known := _VIA.fullmatch(line))
                     and known[1] not in {None, "-c"}}  # fmt: skip
        found.append(
            Pin(
                normal(first[1]),
                first[2],
                frozenset(hashes),
                frozenset(wanted_by),
                runtime=lock.name == RUNTIME,
            )
        )
    if not found:
        raise Problem(f"{lock.name} pins nothing; {RENEW}")
    return found


def _blocks(lock: Path) -> Iterator[tuple[re.Match[str], list[str]]]:
    """Yield each pin's own line and the lines that belong to it."""
    first: re.Match[str] | None = None
    lines: list[str] = []
    for number, line in enumerate(lock.read_text().splitlines(), 1):
        if known := _PIN.fullmatch(line):
            if first:
                yield first, lines
            first, lines = known, []
        elif first and (_HASH.fullmatch(line) or _VIA.fullmatch(line)):
            lines.append(line)
        elif line and not line.startswith("#"):
            raise Problem(f"line {number} of {lock.name} is not a pin with hashes; {RENEW}")
    if first:
        yield first, lines


def normal(name: str) -> str:
    """Return a name as the index compares it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()
