"""HTTP as far as the ingress speaks it: heads and small bodies, without I/O."""

import asyncio
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, Final

import httptools
import msgspec

from orchestrator.ingress.head import Head

HEAD_BYTES: Final = 16 << 10
HEADERS: Final = 100
BODY_BYTES: Final = 8 << 20
"""Bytes of a push: many events, the largest of which is a megabyte."""

Answer = tuple[int, Any, dict[str, str]]
"""A status, what becomes the JSON body, and headers."""


class Refused(Exception):
    """A request that is not read to its end."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message


class Requests:
    """Reads the requests of one connection; each is given to `answer` when it is whole.

    `feed` returns the head, and the bytes behind it, where a request asks for a WebSocket.
    Raises Refused for what is no HTTP or too much of it.
    """

    def __init__(self, answer: Callable[[Head, bytes], None], *, peer_is_local: bool) -> None:
        self._answer = answer
        self._peer_is_local = peer_is_local
        self._parser: Any = httptools.HttpRequestParser(self)
        self._clear()
        self.in_request = False

    def _clear(self) -> None:
        self._target = b""
        self._headers: dict[str, str] = {}
        self._count = self._read = 0
        self._body = bytearray()
        self._size = 0
        self.in_head = True

    def feed(self, data: bytes) -> tuple[Head, bytes] | None:
        """Read bytes; return an upgrade's head and what stands behind it."""
        self.in_request = True
        if self.in_head:
            self._size += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            return self.head, data[upgrade.args[0] :]
        except httptools.HttpParserError as error:
            if isinstance(error.__context__, Refused):
                raise error.__context__ from None
            raise Refused(400, "malformed_request", "this is not HTTP/1.1") from None
        if self.in_head and self._size > HEAD_BYTES:
            raise Refused(431, "headers_too_large", f"the headers are over {HEAD_BYTES} bytes")
        return None

    @property
    def head(self) -> Head:
        """Return the head of the request at hand."""
        method = self._parser.get_method().decode("latin-1")
        target = self._target.decode("latin-1")
        return Head(method, target, self._headers, self._peer_is_local)

    @property
    def keeps_alive(self) -> bool:
        """Return whether another request may follow."""
        return bool(self._parser.should_keep_alive())

    def on_message_begin(self) -> None:
        """A request begins."""
        self._clear()

    def on_url(self, url: bytes) -> None:
        """Keep the target."""
        self._target += url
        self._read = len(self._target)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header."""
        self._count += 1
        self._read += len(name) + len(value)
        if self._count > HEADERS or self._read > HEAD_BYTES:
            told = f"the headers are over {HEAD_BYTES} bytes or {HEADERS} lines"
            raise Refused(431, "headers_too_large", told)
        key, text = name.decode("latin-1").lower(), value.decode("latin-1").strip()
        known = self._headers.get(key)
        self._headers[key] = text if known is None else f"{known}, {text}"

    def on_headers_complete(self) -> None:
        """The body is next."""
        self.in_head = False

    def on_body(self, body: bytes) -> None:
        """Keep a piece of the body."""
        if len(self._body) + len(body) > BODY_BYTES:
            raise Refused(413, "too_large", f"the body is over {BODY_BYTES} bytes")
        self._body += body

    def on_message_complete(self) -> None:
        """Have the request answered, unless another protocol follows."""
        if self._parser.should_upgrade() and self.head.upgrades:
            return
        self._answer(self.head, bytes(self._body))
        self._clear()
        self.in_request = False


def encoded(answer: Answer, *, close: bool, bare: bool = False) -> bytes:
    """Return an answer's bytes, without the body where it is `bare`."""
    status, told, headers = answer
    body = msgspec.json.encode(told)
    lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}", "Content-Type: application/json"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    lines += [f"Content-Length: {len(body)}", *(["Connection: close"] if close else [])]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + (b"" if bare else body)


def refused(status: int, code: str, message: str, **headers: str) -> Answer:
    """Return an error's answer in the contract's form."""
    named = {name.replace("_", "-").title(): text for name, text in headers.items()}
    return status, {"error": message, "code": code}, named


def local(transport: asyncio.BaseTransport) -> bool:
    """Return whether the peer of a connection is this machine."""
    peer = transport.get_extra_info("peername")
    host = str(peer[0]) if peer else ""
    return host.startswith("127.") or host in {"::1", "::ffff:127.0.0.1"}
