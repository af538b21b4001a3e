"""What is passed on: an event of the log as the bytes of a WebSocket frame, made once for all."""

from typing import Final

import msgspec
from websockets.frames import Frame, Opcode

from orchestrator.core.events import TERMINAL, LogEvent
from orchestrator.core.live import live

LOG_RESET: Final = "log_reset"


class Passed(msgspec.Struct, frozen=True, gc=False):
    """An event of the log on its way to devices; `body` is None where it has no live name.

    One that `resets` is none of the log: what devices saw of the run after `seq` is void, a loss of
    power took it, and its log goes on as `generation`.
    """

    run_id: str
    seq: int
    ts: int
    type: str
    body: bytes | None
    generation: int = 0

    @property
    def resets(self) -> bool:
        """Return whether it takes back what came after its seq."""
        return self.type == LOG_RESET

    @property
    def ends(self) -> bool:
        """Return whether the run is over."""
        return self.type in TERMINAL

    def frame(self, cursor: str | None = None) -> bytes:
        """Return the frame, with a cursor where one is given; nothing without a live name."""
        if self.body is None:
            return b""
        if cursor is None:
            return text_frame(self.body)
        return text_frame(b'%b,"cursor":"%b"}' % (self.body[:-1], cursor.encode()))


class _Named(msgspec.Struct, frozen=True, gc=False):
    run_id: str
    seq: int
    ts: int
    type: str


class _Reset(msgspec.Struct, frozen=True, gc=False):
    run_id: str
    after_seq: int
    generation: int = 0


_NAMED: Final = msgspec.json.Decoder(_Named)
_RESET: Final = msgspec.json.Decoder(_Reset)


def passed(data: bytes) -> Passed:
    """Return an event of the log under its live name; raises MsgspecError for what is no event."""
    named = _NAMED.decode(data)
    event = LogEvent(named.seq, named.type, data)
    return Passed(named.run_id, named.seq, named.ts, named.type, live(event))


def passed_reset(data: bytes) -> Passed:
    """Return what a session's stream takes back; raises MsgspecError for what is no log_reset."""
    told = _RESET.decode(data)
    return reset(told.run_id, told.after_seq, told.generation)


def reset(run_id: str, after_seq: int, generation: int) -> Passed:
    """Return what takes back the events of a run after a seq."""
    body = msgspec.json.encode({"type": LOG_RESET, "run_id": run_id, "after_seq": after_seq})
    return Passed(run_id, after_seq, 0, LOG_RESET, body, generation)


def text_frame(body: bytes) -> bytes:
    """Return a text message as a server sends it: one frame, not masked, the same for all."""
    return Frame(Opcode.TEXT, body).serialize(mask=False)
