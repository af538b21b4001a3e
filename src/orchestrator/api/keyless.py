"""Who may call while there are no keys: programs of this machine, no foreign page, no proxy."""

import re
from typing import Final
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Receive, Scope, Send

from orchestrator.api.calls import APISettings
from orchestrator.api.problems import refusal
from orchestrator.engine import Access

_LOCAL: Final = frozenset({"localhost", "127.0.0.1", "[::1]"})
_HOST: Final = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::[0-9]{1,5})?")
_ORIGIN: Final = re.compile(r"[a-z][a-z0-9+.-]*://" + _HOST.pattern)
_PROXIED: Final = frozenset({b"forwarded", b"x-real-ip", b"via"})
_FIX: Final = (
    "a server without keys serves only this machine. Make a key and send it as a bearer: "
    "./orchestrator keys create --role admin NAME; or start with AUTH_MODE=off if that is meant"
)


class KeylessAccess:
    """Refuses what a foreign page, a rebound name or a reverse proxy would send.

    A keyless server cannot tell callers apart, so it believes only in the loopback interface; once
    there is a key, callers prove who they are and all of this is over.
    """

    def __init__(self, app: ASGIApp, access: Access, settings: APISettings) -> None:
        self._app = app
        self._access = access
        own = _name(_HOST, urlsplit(settings.public_url).netloc)
        self._hosts = _LOCAL | ({own} if own is not None else set())
        self._origins = frozenset(settings.cors_origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer 403."""
        why = self.objection(scope) if scope["type"] == "http" else None
        if why is None:
            await self._app(scope, receive, send)
        else:
            await refusal(403, "forbidden", f"{why}: {_FIX}")(scope, receive, send)

    def objection(self, scope: Scope) -> str | None:
        """Return why a keyless server does not answer a request; None where it may."""
        return self._objection(scope) if self._access.keyless else None

    def _objection(self, scope: Scope) -> str | None:
        if scope["http_version"] == "1.0":
            return "HTTP/1.0 is what proxies speak"
        hosts, origins = [], []
        for name, value in scope["headers"]:
            if name == b"host":
                hosts.append(value.decode("latin-1"))
            elif name == b"origin":
                origins.append(value.decode("latin-1"))
            elif name in _PROXIED or name.startswith(b"x-forwarded"):
                return f"the header {name.decode('latin-1')} says that a proxy is in front"
        if len(hosts) > 1 or len(origins) > 1:
            return "a request has one Host and one Origin at most, and programs would choose"
        return self._foreign(hosts, origins)

    def _foreign(self, hosts: list[str], origins: list[str]) -> str | None:
        host = hosts[0] if hosts else ""
        if _name(_HOST, host) not in self._hosts:
            return f"the Host {host[:100]!r} is not this server's"
        known = not origins or origins[0] in self._origins
        if not known and _name(_ORIGIN, origins[0]) not in self._hosts:
            return f"the Origin {origins[0][:100]!r} is a foreign page"
        return None


def _name(form: re.Pattern[str], text: str) -> str | None:
    """Return the host of a text that has the whole form, in lower case; None for any other."""
    found = form.fullmatch(text.lower())
    return found[1] if found else None
