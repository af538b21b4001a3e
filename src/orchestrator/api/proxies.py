"""What stands in front: a path prefix, proxies whose word is taken, pages of other origins."""

from collections.abc import Sequence
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)
from typing import Final

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

CORS_SENT: Final = (
    "authorization", "content-type", "idempotency-key", "last-event-id", "traceparent",
    "tracestate", "x-api-key", "x-run-token",
)  # fmt: skip
"""Headers that a page of another origin may send."""
CORS_SHOWN: Final = ("x-run-id", "retry-after", "ratelimit", "ratelimit-policy")
"""Headers that such a page may read."""
_PREFLIGHT_S: Final = 600
_FORWARDED_MAX: Final = 32


class Proxied:
    """Takes `base_path` off a path, and a trusted proxy's word for who called it.

    Requests that come without the prefix are answered all the same: some proxies take it off.
    """

    def __init__(self, app: ASGIApp, base_path: str, trusted: Sequence[str]) -> None:
        self._app = app
        self._base = base_path
        self._trusted: list[IPv4Network | IPv6Network] = [
            ip_network(text, strict=False) for text in trusted
        ]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on as if nothing stood in front."""
        if scope["type"] == "http":
            path = scope["path"]
            if self._base and (path == self._base or path.startswith(self._base + "/")):
                scope["path"] = path[len(self._base) :] or "/"
            if self._trusted and scope.get("client"):
                scope["client"] = (self._caller(scope), scope["client"][1])
        await self._app(scope, receive, send)

    def _caller(self, scope: Scope) -> str:
        """Return the last address of the chain that no trusted proxy has."""
        said = b",".join(value for name, value in scope["headers"] if name == b"x-forwarded-for")
        chain = [part.strip() for part in said.decode("latin-1").split(",") if part.strip()]
        caller = str(scope["client"][0])
        for text in reversed(chain[-_FORWARDED_MAX:]):
            address = _bare(text)
            if not self._trusts(caller) or _address(address) is None:
                break
            caller = address
        return caller

    def _trusts(self, text: str) -> bool:
        found = _address(text)
        if isinstance(found, IPv6Address):
            found = found.ipv4_mapped or found
        return found is not None and any(found in network for network in self._trusted)


def cross_origin(app: ASGIApp, origins: Sequence[str]) -> ASGIApp:
    """Return the application with answers that pages of `origins` may read; cookies have no say."""
    return CORSMiddleware(
        app,
        allow_origins=list(origins),
        allow_methods=["GET", "POST", "DELETE"],
        allow_headers=list(CORS_SENT),
        expose_headers=list(CORS_SHOWN),
        max_age=_PREFLIGHT_S,
    )


def _bare(text: str) -> str:
    """Return an address without the port and the brackets that some proxies send with it."""
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.partition(":")[0] if text.count(":") == 1 else text


def _address(text: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(text)
    except ValueError:
        return None
