"""Server-sent events: replay then live, and a comment when nothing happens."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, suppress
from typing import Any, Final, TypeAlias, TypeVar

import msgspec
from starlette.types import Receive, Scope, Send

from orchestrator.core import events as ev
from orchestrator.core.batch import Batch
from orchestrator.core.errors import InvalidRequest
from orchestrator.engine import SessionEvent

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


class EventStream:
    """An answer that sends batches as they come, until they end or the reader goes.

    `framed` makes the bytes of a batch, empty for nothing. `hung_up` is awaited when the reader
    went before the end.
    """

    def __init__(
        self,
        batches: "Batches[Any]",
        framed: Callable[[Any], bytes],
        keep_alive_s: float,
        *,
        headers: dict[str, str] | None = None,
        hung_up: Callable[[], Awaitable[object]] | None = None,
    ) -> None:
        self._batches = batches
        self._framed = framed
        self._keep_alive_s = keep_alive_s
        named = [(name.lower().encode(), text.encode()) for name, text in (headers or {}).items()]
        self._headers = _HEADERS + named
        self._hung_up = hung_up
        self._idle = True
        self._gone = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002  # ASGI
        """Answer one request."""
        await send({"type": "http.response.start", "status": 200, "headers": self._headers})
        async with asyncio.TaskGroup() as tasks:
            watching = tasks.create_task(self._watch(receive, send), name="reader")
            pumping = tasks.create_task(self._pump(send), name="stream")
            await asyncio.wait({watching, pumping}, return_when=asyncio.FIRST_COMPLETED)
            watching.cancel()
            pumping.cancel()
        if self._gone and self._hung_up is not None:
            await self._hung_up()
        with suppress(OSError):
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _pump(self, send: Send) -> None:
        async with self._batches as batches:
            async for batch in batches:
                body = self._framed(batch)
                if body:
                    self._idle = False
                    if not await self._write(send, body):
                        return

    async def _write(self, send: Send, body: bytes) -> bool:
        try:
            async with asyncio.timeout(STALL_S):
                await send({"type": "http.response.body", "body": body, "more_body": True})
        except (TimeoutError, OSError):
            self._gone = True
            return False
        return True

    async def _watch(self, receive: Receive, send: Send) -> None:
        """Wait for the reader to go, and send a comment whenever nothing else was sent."""
        while True:
            try:
                async with asyncio.timeout(self._keep_alive_s):
                    message = await receive()
            except TimeoutError:
                if self._idle and not await self._write(send, COMMENT):
                    return
                self._idle = True
                continue
            if message["type"] == "http.disconnect":
                self._gone = True
                return


def session_frames(items: list[SessionEvent]) -> bytes:
    """Return the frames of a session's events; their id is the opaque cursor."""
    return b"".join(
        [
            b"id: %s\nevent: %s\ndata: %s\n\n"
            % (item.cursor.encode(), item.event.type.encode(), item.event.data)
            for item in items
        ]
    )


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


def resume_point(last_event_id: str | None, after_seq: str | None) -> int:
    """Return the seq after which a reader goes on; raises InvalidRequest.

    A reconnecting browser repeats its first address, so its header counts more than the query.
    """
    text = last_event_id or after_seq
    if text is None:
        return 0
    seq, _, generation = text.partition(".")
    if not seq.isdecimal() or (generation and not generation.isdecimal()) or len(seq) > _DIGITS:
        raise InvalidRequest("Last-Event-ID and after_seq must be the seq of an event, such as 17")
    return int(seq)


_DIGITS: Final = 15
