"""Asks the OSV database (https://osv.dev) what is known to be wrong with pinned packages."""

import http.client
import re
import time
import urllib.error
import urllib.request
from typing import Any, Final, NamedTuple, TypeVar

import msgspec

from deploy.locks import Pin, Problem, normal

ECOSYSTEM: Final = "PyPI"
TIME_S: Final = 20
"""How long one answer may take."""
SIZE_MAX: Final = 5 << 20
BATCH: Final = 1000
"""As many queries as OSV takes in one request."""
REQUESTS_MAX: Final = 200
"""More than a few pages and one request per advisory are no answer but a loop."""
_PIECE: Final = 1 << 16
_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,99}")
_TEXT_LENGTH: Final = 120

T = TypeVar("T")


class Advisory(NamedTuple):
    """What OSV knows about one pin.

    `fixed` has the versions that are said to be well, `severity` the source's own word or else a
    CVSS vector; both may be empty. Every text is short and printable.
    """

    id: str
    aliases: tuple[str, ...]
    pin: Pin
    fixed: tuple[str, ...]
    severity: str


# What is read of OSV's answers: https://google.github.io/osv.dev/post-v1-querybatch/ and
# https://ossf.github.io/osv-schema/


class _Named(msgspec.Struct):
    id: str


class _Result(msgspec.Struct):
    vulns: list[_Named] = []
    next_page_token: str = ""


class _Results(msgspec.Struct):
    results: list[_Result]


class _Event(msgspec.Struct):
    fixed: str = ""


class _Range(msgspec.Struct):
    type: str
    events: list[_Event] = []


class _Package(msgspec.Struct):
    ecosystem: str = ""
    name: str = ""


class _Affected(msgspec.Struct):
    package: _Package = msgspec.field(default_factory=_Package)
    ranges: list[_Range] = []


class _Severity(msgspec.Struct):
    score: str = ""


class _Detail(msgspec.Struct):
    id: str
    aliases: list[str] = []
    affected: list[_Affected] = []
    severity: list[_Severity] = []
    database_specific: dict[str, Any] = {}
    withdrawn: str = ""


class Osv:
    """An OSV server by its address.

    Raises Problem unless it has the whole answer: the server cannot be reached, is slow, says too
    much, or says something else.
    """

    def __init__(self, base: str) -> None:
        self.base = base.rstrip("/")
        self._requests = 0

    def advisories(self, pins: list[Pin]) -> list[Advisory]:
        """Return every advisory that is not withdrawn, in the order of the pins."""
        found: list[Advisory] = []
        details: dict[str, _Detail] = {}
        for pin, names in self._names(pins).items():
            for name in sorted(names):
                detail = details[name] = details.get(name) or self._detail(name)
                found += [] if detail.withdrawn else [_advisory(detail, pin)]
        return found

    def _names(self, pins: list[Pin]) -> dict[Pin, set[str]]:
        """Return the ids of each pin's advisories, of all pages."""
        found: dict[Pin, set[str]] = {pin: set() for pin in pins}
        waiting = [(pin, "") for pin in pins]
        path = "/v1/querybatch"
        while waiting:
            asked, waiting = waiting[:BATCH], waiting[BATCH:]
            question = {"queries": [_query(pin, token) for pin, token in asked]}
            results = self._fetch(path, _Results, msgspec.json.encode(question)).results
            if len(results) != len(asked):
                raise self._malformed(path, f"has {len(results)} results for {len(asked)} queries")
            for (pin, _), result in zip(asked, results, strict=True):
                found[pin] |= {self._name(vuln.id) for vuln in result.vulns}
                token = result.next_page_token
                waiting += [(pin, token)] if token else []
        return found

    def _name(self, name: str) -> str:
        """Return an id that may stand in a path and on a terminal."""
        if not _ID.fullmatch(name):
            raise self._malformed("/v1/querybatch", f"has the id {name[:40]!r}")
        return name

    def _detail(self, name: str) -> _Detail:
        detail = self._fetch(path := f"/v1/vulns/{name}", _Detail)
        if detail.id != name:
            raise self._malformed(path, "is another advisory")
        return detail

    def _fetch(self, path: str, kind: type[T], body: bytes | None = None) -> T:
        """Return what is at a path; with a body it is posted."""
        self._requests += 1
        if self._requests > REQUESTS_MAX:
            raise self._problem(f"{self.base} wants more than {REQUESTS_MAX} requests")
        try:
            data = self._read(self.base + path, body)
        except urllib.error.HTTPError as error:
            error.close()
            raise self._problem(f"{self.base}{path} answered {error.code}") from None
        except (OSError, http.client.HTTPException, UnicodeError) as error:
            why = _printable(str(getattr(error, "reason", error))) or type(error).__name__
            raise self._problem(f"{self.base} did not answer ({why})") from None
        try:
            return msgspec.json.decode(data, type=kind)
        except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
            raise self._malformed(path, f"is malformed ({_printable(str(error))})") from None

    def _read(self, url: str, body: bytes | None) -> bytes:
        """Return a body whole; the time and the size that it may take are bounded."""
        until = time.monotonic() + TIME_S
        fields = {"Content-Type": "application/json", "Accept": "application/json"}
        request = urllib.request.Request(url, body, fields)  # noqa: S310  # http(s), by the command
        found = bytearray()
        with urllib.request.urlopen(request, timeout=TIME_S) as answer:  # noqa: S310  # the same
            while piece := answer.read1(_PIECE):
                found += piece
                if len(found) > SIZE_MAX:
                    raise self._problem(f"{url} answered more than {SIZE_MAX >> 20} MiB")
                if time.monotonic() > until:
                    raise self._problem(f"{url} took longer than {TIME_S} s")
        return bytes(found)

    def _malformed(self, path: str, why: str) -> Problem:
        return self._problem(f"the answer of {self.base}{path} {why}")

    def _problem(self, why: str) -> Problem:
        return Problem(f"{why}; run it where {self.base} can be reached")


def _query(pin: Pin, token: str) -> dict[str, Any]:
    package = {"ecosystem": ECOSYSTEM, "name": pin.name}
    page = {"page_token": token} if token else {}
    return {"package": package, "version": pin.version, **page}


def _advisory(detail: _Detail, pin: Pin) -> Advisory:
    events = [
        event.fixed
        for affected in detail.affected
        if affected.package.ecosystem == ECOSYSTEM and normal(affected.package.name) == pin.name
        for versions in affected.ranges
        if versions.type != "GIT"  # those are commits
        for event in versions.events
        if event.fixed
    ]
    word = detail.database_specific.get("severity")
    severity = word if isinstance(word, str) else next((s.score for s in detail.severity), "")
    return Advisory(
        detail.id,
        tuple(_printable(alias) for alias in detail.aliases),
        pin,
        tuple(_printable(version) for version in dict.fromkeys(events)),
        _printable(severity),
    )


def _printable(text: str) -> str:
    """Return a text that cannot control a terminal."""
    return "".join(c if c.isprintable() else "?" for c in text[:_TEXT_LENGTH])
