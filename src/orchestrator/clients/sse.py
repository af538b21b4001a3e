"""Server-sent events from bytes, without I/O, exactly as the WHATWG standard (§9.2.6) says."""

from functools import cache
from typing import Final, NoReturn

import msgspec

from orchestrator.core import jsontext

_BOM: Final = b"\xef\xbb\xbf"
_RETRY_DIGITS: Final = 18


class LineTooLong(ValueError):
    """One line, or the data of one event, is over the limit; nothing more can be read."""


class SSEEvent(msgspec.Struct, frozen=True, gc=False):
    """One dispatched event; `id` is the last id the stream has named so far."""

    event: str
    data: str
    id: str


class SSEParser:
    """Turns the bytes of one event stream into events, the same ones however the bytes are split.

    `last_event_id` and `retry` (milliseconds) are what a client would reconnect with; `comments`
    counts the comment lines seen. A line or an event's data over `max_line` bytes raises
    LineTooLong; what was complete before it in the same call is returned first, and then every
    further call raises. So what is kept never grows beyond a small multiple of `max_line`.
    """

    __slots__ = (
        "_after_cr", "_at_start", "_broken", "_data", "_event", "_id", "_max", "_rest",
        "comments", "last_event_id", "retry",
    )  # fmt: skip

    def __init__(self, max_line: int = 1 << 20) -> None:
        self.last_event_id = ""
        self.retry: int | None = None
        self.comments = 0
        self._max = max_line
        self._rest = bytearray()
        self._at_start = True
        self._after_cr = False
        self._event = ""
        self._data = bytearray()
        self._id = ""
        self._broken = ""

    def feed(self, data: bytes) -> list[SSEEvent]:
        """Return the events that `data` completes; raises LineTooLong."""
        events: list[SSEEvent] = []
        self._guarded(self._normalised(data), events)
        return events

    def feed_named(
        self, data: bytes, name: bytes
    ) -> tuple[list[SSEEvent], list[bytes], list[SSEEvent]]:
        """Return what `feed` would, with the data of many events `name` in a row kept as bytes.

        These come between the events before and after them. They are one `event` and one `data`
        line each, which the count of line ends proves without a look at every line; whatever is
        otherwise, or not certain, is read event by event.
        """
        opening, between = _seams(name)
        start = data.find(b"\n\n") + 2 if self._rest or self._event or self._data else 0
        end = data.rfind(b"\n\n") + 2
        plain = (
            start != 1
            and data.startswith(opening, start)
            and not (self._at_start or self._after_cr or self._broken)
            and end - start <= self._max
            and b"\r" not in data
            and data.count(b"\n", start, end) == 3 * (data.count(between, start, end) + 1)
        )
        if not plain:
            return self.feed(data), [], []
        before = self.feed(data[:start]) if start else []
        if self._broken or self._rest or self._event or self._data:
            return before + self.feed(data[start:]), [], []
        datas = data[start + len(opening) : end - 2].split(between)
        self.last_event_id = self._id
        return before, datas, self.feed(data[end:]) if end < len(data) else []

    def close(self) -> list[SSEEvent]:
        """Return what a clean end of the body completes; raises LineTooLong.

        The standard discards an event without its blank line; here it is dispatched if its data is
        complete JSON, because agents end their last event so (the contract's one exception).
        """
        events: list[SSEEvent] = []
        self._guarded(b"\n" if self._rest else b"", events)
        if _is_json(self._data):
            self._dispatch(events)
        self._event = ""
        self._data.clear()
        return events

    def _guarded(self, text: bytes, events: list[SSEEvent]) -> None:
        """Take `text`; a breach of the limit waits for the next call if there are events."""
        if self._broken:
            raise LineTooLong(self._broken)
        try:
            self._take(text, events)
        except LineTooLong as error:
            self._broken = str(error)
            self._rest.clear()
            self._data.clear()
            if not events:
                raise

    def _normalised(self, data: bytes) -> bytes:
        """Return `data` with every line end as LF and without the BOM of the stream."""
        if self._after_cr and data:
            self._after_cr = False
            data = data.removeprefix(b"\n")
        if b"\r" in data:
            self._after_cr = data.endswith(b"\r")
            data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        return self._without_bom(data) if self._at_start else data

    def _without_bom(self, data: bytes) -> bytes:
        data = bytes(self._rest) + data
        self._rest.clear()
        if len(data) < len(_BOM) and _BOM.startswith(data):
            self._rest += data
            return b""
        self._at_start = False
        return data.removeprefix(_BOM)

    def _take(self, data: bytes, events: list[SSEEvent]) -> None:
        end = data.rfind(b"\n") + 1
        if end:
            text = data[:end]
            if self._rest:
                text = bytes(self._rest) + text
                self._rest.clear()
            self._blocks(text, events)
            data = data[end:]
        if data:
            if len(self._rest) + len(data) > self._max:
                self._overflow("line")
            self._rest += data

    def _blocks(self, text: bytes, events: list[SSEEvent]) -> None:
        """Read whole lines, block by block where blank lines part them."""
        *blocks, tail = text.split(b"\n\n")
        for block in blocks:
            event = self._plain(block)
            if event is not None:
                events.append(event)
                continue
            for line in block.split(b"\n"):
                self._line(line, events)
            self._dispatch(events)
        for line in tail.split(b"\n")[:-1]:
            self._line(line, events)

    def _plain(self, block: bytes) -> SSEEvent | None:
        """Return the event of a block of `event` and `data`, or `data` alone; else None."""
        if self._data or self._event or len(block) > self._max:
            return None
        head, _, line = block.partition(b"\n")
        if line.startswith(b"data: ") and head.startswith(b"event: ") and b"\n" not in line:
            name = _text(head[7:]) or "message"
        elif not line and head.startswith(b"data: "):
            name, line = "message", head
        else:
            return None
        self.last_event_id = self._id
        return SSEEvent(name, _text(line[6:]), self._id)

    def _line(self, line: bytes, events: list[SSEEvent]) -> None:
        if len(line) > self._max:
            self._overflow("line")
        if not line:
            self._dispatch(events)
        elif line.startswith(b":"):
            self.comments += 1
        else:
            name, _, value = line.partition(b":")
            self._field(name, value.removeprefix(b" "))

    def _field(self, name: bytes, value: bytes) -> None:
        match name:
            case b"data":
                self._data += value
                self._data += b"\n"
                if len(self._data) > self._max + 1:
                    self._overflow("event's data")
            case b"event":
                self._event = _text(value)
            case b"id" if b"\0" not in value:
                self._id = _text(value)
            # The standard sets no upper bound; a wait of longer than the universe is old is none.
            case b"retry" if value.isdigit() and len(value) <= _RETRY_DIGITS:
                self.retry = int(value)

    def _dispatch(self, events: list[SSEEvent]) -> None:
        self.last_event_id = self._id
        if self._data:
            data = _text(self._data[:-1])
            events.append(SSEEvent(self._event or "message", data, self._id))
            self._data.clear()
        self._event = ""

    def _overflow(self, what: str) -> NoReturn:
        raise LineTooLong(f"a {what} is over {self._max} bytes")


@cache
def _seams(name: bytes) -> tuple[bytes, bytes]:
    """Return what stands before the data of the first of many events, and between the others'."""
    opening = b"event: %b\ndata: " % name
    return opening, b"\n\n" + opening


def _text(raw: bytes | bytearray) -> str:
    return str(raw, "utf-8", "replace")


def _is_json(raw: bytearray) -> bool:
    if not raw:
        return False
    try:
        jsontext.decode(_text(raw))
    except ValueError:
        return False
    return True
