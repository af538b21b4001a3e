"""Server-sent events: replay then live, and a comment when nothing happens."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager, nullcontext
from typing import Any, Final, Generic, Protocol, TypeAlias, TypeVar

import msgspec
from starlette.types import Receive, Scope, Send

from orchestrator.api.calls import Watch
from orchestrator.api.wire import Wire
from orchestrator.core import events as ev
from orchestrator.core import values
from orchestrator.core.batch import Batch
from orchestrator.core.errors import InvalidRequest
from orchestrator.core.records import Run
from orchestrator.engine import LogReset, SessionItem
from orchestrator.telemetry import get_logger

log = get_logger(__name__)

T = TypeVar("T")
Batches: TypeAlias = AbstractAsyncContextManager[AsyncIterator[T]]

STALL_S: Final = 60.0
"""How long one write to a reader may take; then it is cut and may resume."""
COMMENT: Final = b": keep-alive\n\n"
_HEADERS: Final = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),
]
_ENCODE: Final = msgspec.json.Encoder().encode


class Connection(Protocol):
    """What a run learns of its caller's connection."""

    def open(self) -> AbstractContextManager[None]:
        """Return the time in which the caller is there."""
        ...

    async def hung_up(self) -> None:
        """Be told that he went."""
        ...


class EventStream(Generic[T]):
    """An answer that sends batches as they come, until they end or the reader goes.

    `open_batches` is given a sink, through which a batch goes straight to the reader's connection
    where that takes it. `framed` makes the bytes of a batch, empty for nothing. The header X-Run-ID
    names `run_id`. `line` is open while the reader is there, and is told when he went before the
    end. `watch` ends the stream of a reader who may read no more.
    """

    __slots__ = ("_first", "_framed", "_keep_alive_s", "_line", "_open", "_run_id", "_watch")

    def __init__(
        self,
        open_batches: Callable[[Callable[[T], bool]], Batches[T]],
        framed: Callable[[T], bytes],
        keep_alive_s: float,
        *,
        first: bytes = b"",
        run_id: str | None = None,
        line: "Connection | None" = None,
        watch: Watch | None = None,
    ) -> None:
        self._open = open_batches
        self._framed = framed
        self._keep_alive_s = keep_alive_s
        self._first = first
        self._run_id = run_id
        self._line = line
        self._watch = watch

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002  # ASGI
        """Answer one request."""
        await send({"type": "http.response.start", "status": 200, "headers": self._headers()})
        if scope["method"] == "HEAD":
            await send({"type": "http.response.body"})
            return
        reading = Reading(Wire(scope), self._keep_alive_s)
        try:
            line = self._line.open() if self._line else nullcontext()
            with line, self._watch(reading.revoke) if self._watch else nullcontext(), reading:
                await self._pump(reading, send)
        except Exception:
            log.exception("stream_failed", path=scope["path"])
            raise
        if reading.gone and self._line is not None:
            await self._line.hung_up()
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    def _headers(self) -> list[tuple[bytes, bytes]]:
        return [*_HEADERS, (b"x-run-id", self._run_id.encode())] if self._run_id else _HEADERS

    async def _pump(self, reading: "Reading", send: Send) -> None:
        if self._first:
            await reading.send(send, self._first)
        async with self._open(lambda batch: reading.write(self._framed(batch))) as batches:
            async for batch in batches:
                body = self._framed(batch)
                del batch  # nothing is kept while the reader is waited for
                if body:
                    await reading.send(send, body)
                del body


class Reading:
    """One reader while it is served: what it is sent, that it is alive, that it has gone.

    One task serves it, and a timer looks after both: a silent stream gets a comment, and a reader
    who takes nothing for a minute is cut. As a context it ends early, and quietly, when the reader
    has gone.
    """

    __slots__ = (
        "_blocked_since", "_keep_alive_s", "_loop", "_revoked", "_silent", "_task", "_timer",
        "_wire", "gone",
    )  # fmt: skip

    def __init__(self, wire: Wire, keep_alive_s: float) -> None:
        self._wire = wire
        self._keep_alive_s = keep_alive_s
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        self._timer: asyncio.TimerHandle | None = None
        self._silent = True
        self._blocked_since: float | None = None
        self.gone = self._revoked = False

    def __enter__(self) -> None:
        self._wire.on_gone(self._cut)
        self._arm()
        if self._wire.gone:  # while the answer was being found
            self._cut()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> bool:
        self._wire.on_gone(None)
        if self._timer is not None:
            self._timer.cancel()
        ours = self.gone or self._revoked
        if kind is not asyncio.CancelledError or not ours or self._task is None:
            return False
        return not self._task.uncancel()

    def write(self, body: bytes) -> bool:
        """Send at once; False when the reader does not keep up."""
        if body and not self._wire.write(body):
            return False
        self._silent = self._silent and not body
        return True

    async def send(self, send: Send, body: bytes) -> None:
        """Send as soon as the reader takes it."""
        self._silent = False
        self._blocked_since = self._loop.time()
        await send({"type": "http.response.body", "body": body, "more_body": True})
        self._blocked_since = None

    def _arm(self) -> None:
        self._timer = self._loop.call_later(self._keep_alive_s, self._tick)

    def _tick(self) -> None:
        if self._blocked_since is not None and self._loop.time() - self._blocked_since > STALL_S:
            self._wire.abort()
            self._cut()
            return
        if self._silent:
            self._wire.write(COMMENT)
        self._silent = True
        self._arm()

    def _cut(self) -> None:
        if not (self.gone or self._revoked) and self._task is not None:
            self.gone = True
            self._task.cancel()

    def revoke(self) -> None:
        """End the stream of a reader who may read no more; who takes nothing is cut off."""
        if self.gone or self._revoked or self._task is None:
            return
        self._revoked = True
        if self._blocked_since is not None:
            self._wire.abort()
        self._task.cancel()


def session_frames(items: list[SessionItem]) -> bytes:
    """Return the frames of a session's events; their id is the opaque cursor."""
    return b"".join(map(_session_frame, items))


def _session_frame(item: SessionItem) -> bytes:
    if isinstance(item, LogReset):
        return b"event: log_reset\ndata: %s\n\n" % _ENCODE(item)
    return b"id: %s\nevent: %s\ndata: %s\n\n" % (
        item.cursor.encode(), item.event.type.encode(), item.event.data,
    )  # fmt: skip


def agent_frames(batch: Batch) -> bytes:
    """Return the frames of the agent protocol that stand for a child's events."""
    return b"".join(map(_agent_frame, batch))


def _agent_frame(event: ev.LogEvent) -> bytes:
    """Return the frame of the agent protocol that stands for a child's event, or nothing."""
    if event.type not in _SPOKEN:
        return b""
    envelope = ev.open_event(event.data)
    name, data = _spoken(envelope.decoded(), envelope.run_id)
    return b"event: %s\ndata: %s\n\n" % (name.encode(), _ENCODE(data))


_SPOKEN: Final = frozenset(
    {
        "agent_stream_delta",
        "agent_state",
        "agent_event",
        "agent_invoke_retrying",
        "run_paused",
        "run_resumed",
        *ev.TERMINAL,
    }
)


def _spoken(payload: ev.Payload, run_id: str) -> tuple[str, Any]:
    match payload:
        case ev.AgentStreamDelta(text=text):
            return "delta", {"text": text, "run_id": run_id}
        case ev.AgentState(state=state, detail=detail):
            return "state", {"state": state, "detail": detail}
        case ev.AgentEvent(name=name, data=data):
            return name, data
        case ev.AgentInvokeRetrying(discard_from_seq=seq):
            return "state", {"state": "retrying", "detail": {"discard_from_seq": seq}}
        case ev.RunDone(final_message=final, usage=usage):
            return "done", {"final_message": final or "", "usage": usage or {}}
        case ev.RunFailed(code=code, message=message):
            return "error", {"code": code, "message": message}
        case ev.RunCancelled(reason=reason):
            return "error", {"code": "cancelled", "message": reason}
        case _:
            return "state", {"state": getattr(payload, "state", payload.type), "detail": None}


class Resume(msgspec.Struct, frozen=True):
    """Where a reader goes on: after `seq`, of a generation of the log; None is today's."""

    seq: int
    generation: int | None = None

    def agreed(self, forks: Sequence[int]) -> int | None:
        """Return the seq up to which the reader's log is today's, if it has read beyond that."""
        if self.generation is None or self.generation >= len(forks):
            return None
        agreed = min(forks[self.generation :])
        return agreed if self.seq > agreed else None


def mark_of(run: Run) -> str:
    """Return what stands behind a seq of a run: the generation of its log, of the first nothing."""
    return f".{len(run.forks)}" if run.forks else ""


def log_reset(agreed: int) -> bytes:
    """Return the frame that tells a reader to forget what it saw after `agreed`; it has no id."""
    return b'event: log_reset\ndata: {"after_seq":%d}\n\n' % agreed


def resume_point(last_event_id: str | None, after_seq: str | None) -> Resume:
    """Return where a reader goes on; raises InvalidRequest.

    A reconnecting browser repeats its first address, so its header counts more than the query. In
    the header a bare seq is of the first generation, which had no mark.
    """
    text = last_event_id or after_seq
    if text is None:
        return Resume(0)
    seq, _, generation = text.partition(".")
    if not (_is_number(seq) and (not generation or _is_number(generation))):
        raise InvalidRequest("Last-Event-ID and after_seq must be the seq of an event, such as 17")
    if generation:
        return Resume(int(seq), int(generation))
    return Resume(int(seq), 0 if last_event_id else None)


def _is_number(text: str) -> bool:
    return values.is_number(text, _DIGITS)


_DIGITS: Final = 15
