"""One HTTP exchange as the protocols here see it; nothing in this file knows how it is carried."""

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from typing import Literal, Protocol, TypeAlias

import msgspec

Trouble: TypeAlias = Literal["unreachable", "refused", "malformed", "hung_up"]


class ExchangeFailed(Exception):
    """An exchange did not come to its end; each client turns it into an error of its own.

    `unreachable`: no connection, so nothing was sent · `refused`: our own rules forbid the
    address · `malformed`: what came back is not HTTP, or over a limit · `hung_up`: the other side
    went away after the request may have been sent, so it must not be sent again unasked.
    """

    def __init__(self, trouble: Trouble, message: str) -> None:
        super().__init__(message)
        self.trouble = trouble
        self.message = message


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What to send; `timeout_s` bounds the whole exchange, None leaves that to the caller.

    `operator` says whose URL this is: one that an operator registered may be private, any other
    is public only.
    """

    method: str = "POST"
    url: str
    headers: Mapping[str, str]
    body: bytes | None = None
    timeout_s: float | None = None
    operator: bool = True


class Answer(Protocol):
    """What came back: the head is there, the body comes as it is read."""

    @property
    def status(self) -> int:
        """Return the status code; redirects are not followed, so it may be a 3xx."""
        ...

    def header(self, name: str) -> str:
        """Return a header's value, empty when it is absent."""
        ...

    async def read(self) -> bytes:
        """Return the body's next bytes as sent, b"" at its clean end; raises ExchangeFailed."""
        ...


class HTTP(Protocol):
    """Carries exchanges."""

    def open(self, request: Request) -> AbstractAsyncContextManager[Answer]:
        """Send `request` once; entering returns when the head of the answer is there.

        Leaving before the end of the body closes the connection at once. Raises ExchangeFailed.
        """
        ...


async def read_all(answer: Answer, limit: int) -> bytes | None:
    """Return the whole body, or None when it is over `limit` bytes."""
    pieces, size = [], 0
    while piece := await answer.read():
        size += len(piece)
        if size > limit:
            return None
        pieces.append(piece)
    return b"".join(pieces)


def media_type(content_type: str) -> str:
    """Return a Content-Type without its parameters, in lower case."""
    return content_type.partition(";")[0].strip().lower()
