"""Who may call while there are no keys: programs of this machine, no foreign page, no proxy."""

from typing import Final
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Receive, Scope, Send

from orchestrator.api.problems import refusal

_LOCAL: Final = frozenset({"localhost", "127.0.0.1", "[::1]"})
_PROXIED: Final = frozenset({b"forwarded", b"x-real-ip", b"via"})
_FIX: Final = (
    "a server without keys serves only this machine; start it with AUTH_MODE=off if that is meant"
)


class KeylessAccess:
    """Refuses what a foreign page, a rebound name or a reverse proxy would send.

    A keyless server cannot tell callers apart, so it believes only in the loopback interface.
    """

    def __init__(self, app: ASGIApp, public_url: str) -> None:
        self._app = app
        self._hosts = _LOCAL | {_name(urlsplit(public_url).netloc)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer 403."""
        why = self._objection(scope) if scope["type"] == "http" else None
        if why is None:
            await self._app(scope, receive, send)
        else:
            await refusal(403, "forbidden", f"{why}: {_FIX}")(scope, receive, send)

    def _objection(self, scope: Scope) -> str | None:
        if scope["http_version"] == "1.0":
            return "HTTP/1.0 is what proxies speak"
        host = origin = None
        for name, value in scope["headers"]:
            if name == b"host":
                host = value.decode("latin-1")
            elif name == b"origin":
                origin = value.decode("latin-1")
            elif name in _PROXIED or name.startswith(b"x-forwarded"):
                return f"the header {name.decode('latin-1')} says that a proxy is in front"
        if host is None or _name(host) not in self._hosts:
            return f"the Host {(host or '')[:100]!r} is not this server's"
        if origin is not None and _name(urlsplit(origin).netloc) not in self._hosts:
            return f"the Origin {origin[:100]!r} is a foreign page"
        return None


def _name(netloc: str) -> str:
    """Return the host of `host:port`, in lower case."""
    name = netloc.lower()
    if name.startswith("["):
        return name.partition("]")[0] + "]"
    return name.partition(":")[0]
