"""Server-sent events, read and written without I/O, as the WHATWG standard (§9.2.6) says."""

import codecs
import json
from typing import Any, Final

import msgspec

from orchestrator_sdk.errors import ProtocolError

STREAM: Final = {"Accept": "text/event-stream", "Accept-Encoding": "identity"}
"""Headers that ask for an event stream, and for one that no proxy on the way compresses."""
COMMENT: Final = b": keep-alive\n\n"
LINE_MAX: Final = 16 << 20
"""Characters of a line; a longer one is an error and not a promise of memory."""


class SSEEvent(msgspec.Struct, frozen=True):
    """One event; `id` is the last one that the stream has named so far."""

    event: str
    data: str
    id: str


class SSEParser:
    """Turns the bytes of one stream into events, the same ones however the bytes are split."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._rest = ""
        self._at_start = True
        self._after_cr = False
        self._event = ""
        self._data: list[str] = []
        self._id = ""

    def feed(self, data: bytes) -> list[SSEEvent]:
        """Return the events that `data` completes; raises ProtocolError for an endless line."""
        text = self._normalised(self._decoder.decode(data))
        *lines, self._rest = (self._rest + text).split("\n")
        if len(self._rest) > LINE_MAX:
            raise ProtocolError(f"a line of the event stream has over {LINE_MAX} characters")
        found = (self._line(line) for line in lines)
        return [event for event in found if event is not None]

    def _normalised(self, text: str) -> str:
        if text and self._at_start:
            self._at_start = False
            text = text.removeprefix("\ufeff")
        if text and self._after_cr:
            self._after_cr = False
            text = text.removeprefix("\n")
        if text:
            self._after_cr = text.endswith("\r")
        return text.replace("\r\n", "\n").replace("\r", "\n")

    def _line(self, line: str) -> SSEEvent | None:
        if not line:
            return self._dispatched()
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            self._data.append(value)
        elif name == "event":
            self._event = value
        elif name == "id" and "\0" not in value:
            self._id = value
        return None

    def _dispatched(self) -> SSEEvent | None:
        name, self._event = self._event, ""
        if not self._data:
            return None
        data, self._data = "\n".join(self._data), []
        return SSEEvent(name or "message", data, self._id)


def frame(name: str, data: Any) -> bytes:
    """Return an event with JSON data, ready to be sent."""
    return b"event: %b\ndata: %b\n\n" % (name.encode("utf-8", "replace"), encode(data))


def encode(data: Any) -> bytes:
    """Return JSON in UTF-8 on one line; half a surrogate pair becomes an escape, not an error."""
    try:
        return msgspec.json.encode(data)
    except UnicodeEncodeError:
        return json.dumps(msgspec.to_builtins(data), separators=(",", ":")).encode()
