"""Weighs what is known about the pins against what was accepted for a while, and says the rest."""

import tomllib
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Final

import msgspec

from deploy.locks import Problem, pins
from deploy.osv import Advisory, Osv

ACCEPTED: Final = "deploy/advisories.toml"


class Acceptance(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An advisory, by its id or an alias, that may stand for one package until a day, included."""

    id: str
    package: str
    reason: str
    expires: date

    def covers(self, advisory: Advisory) -> bool:
        """Return whether it is about this advisory, whatever the day."""
        return self.package == advisory.pin.name and self.id in {advisory.id, *advisory.aliases}


class _File(msgspec.Struct, forbid_unknown_fields=True):
    accepted: list[Acceptance] = []


def audit(root: Path, base: str, today: date, say: Callable[[str], None]) -> int:
    """Say what OSV at `base` knows about the pins in `root`; raises Problem.

    Returns the number of advisories that nobody has accepted, or no longer.
    """
    acceptances = accepted(root)
    everything = pins(root)
    advisories = Osv(base).advisories(everything)
    standing = 0
    for advisory in advisories:
        found = [one for one in acceptances if one.covers(advisory)]
        valid = [one for one in found if today <= one.expires]
        standing += not valid
        say(_line(advisory, found, valid))
    for one in acceptances:
        if not any(one.covers(advisory) for advisory in advisories):
            say(f"{ACCEPTED} accepts {one.id} for {one.package}, which nobody names: remove it")
    say(_sum(len(everything), standing, len(advisories) - standing, today))
    return standing


def accepted(root: Path) -> list[Acceptance]:
    """Return what the file of acceptances says; raises Problem unless each entry is whole."""
    try:
        raw = tomllib.loads((root / ACCEPTED).read_text())
        found = msgspec.convert(raw, _File).accepted
    except FileNotFoundError:
        return []
    except (tomllib.TOMLDecodeError, msgspec.ValidationError, UnicodeDecodeError) as error:
        raise Problem(f"{ACCEPTED} is malformed ({error}); write it as its head says") from None
    for one in found:
        if not one.reason.strip():
            raise Problem(f"{ACCEPTED} accepts {one.id} without a reason; write down why")
    return found


def _line(advisory: Advisory, found: list[Acceptance], valid: list[Acceptance]) -> str:
    also = f" ({', '.join(advisory.aliases)})" if advisory.aliases else ""
    fixed = f"fixed in {', '.join(advisory.fixed)}" if advisory.fixed else "no fixed version named"
    severity = f", severity {advisory.severity}" if advisory.severity else ""
    line = f"{advisory.id}{also}: {advisory.pin.name} {advisory.pin.version}, {fixed}{severity}"
    if valid:
        last = max(valid, key=lambda one: one.expires)
        return f"{line}; accepted until {last.expires}: {last.reason}"
    if found:
        return f"{line}; its acceptance ended on {max(one.expires for one in found)}"
    return line


def _sum(packages: int, standing: int, accepted: int, today: date) -> str:
    besides = f" besides {accepted} accepted" if accepted else ""
    asked = f"for {packages} packages{besides} (asked {today})"
    if not standing:
        return f"no known advisories {asked}"
    return (
        f"known advisories: {standing} {asked}; take fixed versions (make lock NEWER=--upgrade) "
        f"or accept them in {ACCEPTED}, each with a reason and a last day"
    )
