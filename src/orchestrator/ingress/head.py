"""The head of a request: what it asks for, and whether who sent it may."""

import re
from collections.abc import Mapping
from typing import Final

import msgspec

from orchestrator.core.secret import Secret
from orchestrator.ingress.told import IngressSettings

_LOCAL: Final = frozenset({"localhost", "127.0.0.1", "[::1]"})
_HOST: Final = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::[0-9]{1,5})?")
_ORIGIN: Final = re.compile(r"[a-z][a-z0-9+.-]*://" + _HOST.pattern)
_PROXIED: Final = ("forwarded", "x-real-ip", "via")
_SHOWN: Final = 100


class Head(msgspec.Struct):
    """A request as far as its headers; a header that came twice has both values with a comma."""

    method: str
    target: str
    headers: Mapping[str, str]
    peer_is_local: bool

    @property
    def path(self) -> str:
        """Return the path without its query."""
        return self.target.partition("?")[0]

    def header(self, name: str) -> str:
        """Return a header's value, empty when it is absent."""
        return self.headers.get(name, "")

    @property
    def proxied(self) -> bool:
        """Return whether somebody passed the request on."""
        return any(name in _PROXIED or name.startswith("x-forwarded") for name in self.headers)

    @property
    def upgrades(self) -> bool:
        """Return whether the request asks for a WebSocket."""
        return self.header("upgrade").strip().lower() == "websocket"


def objection(head: Head, settings: IngressSettings) -> str | None:
    """Return why a device may not connect, None if it may: foreign pages, and proxies without keys.

    An ingress without keys believes only in the loopback interface, as the orchestrator does
    (CONTRACT §9).
    """
    origin, host = head.header("origin"), _name(_HOST, head.header("host"))
    if settings.open and settings.auth_mode != "off":
        if head.proxied:
            return "a proxy is in front, and this ingress has no API_KEY; give it one"
        if host not in _LOCAL:
            return "the Host is not this machine's, and this ingress has no API_KEY; give it one"
    if not origin or origin in settings.cors_origins or settings.auth_mode == "off":
        return None
    page = _name(_ORIGIN, origin)
    if page is not None and (page == host or (page in _LOCAL and host in _LOCAL)):
        return None
    return f"the Origin {origin[:_SHOWN]!r} is a foreign page; CORS_ORIGINS may name it"


def may_push(head: Head, settings: IngressSettings) -> bool:
    """Return whether a push is taken: from this machine itself, or with the INGRESS_KEY."""
    if head.peer_is_local and not head.proxied:
        return True
    scheme, _, shown = head.header("authorization").partition(" ")
    key = settings.ingress_key
    return key is not None and scheme.lower() == "bearer" and Secret(shown.strip()) == key


def _name(form: re.Pattern[str], text: str) -> str | None:
    """Return the host of a text that has the whole form, in lower case; None for any other."""
    found = form.fullmatch(text.lower())
    return found[1] if found else None
