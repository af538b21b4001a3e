"""Frames of the agent protocol as text, the way agents of the old surface yield them."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

from agent_sdk.models import Usage
from orchestrator_sdk import sse
from orchestrator_sdk.asking import given
from orchestrator_sdk.frames import Content


class Frame(str):
    """One complete frame; `name` is its event's."""

    __slots__ = ("name",)

    name: str


def format_sse_event(event: str, data: Any) -> str:
    """Return a server-sent event with JSON data, its blank line included."""
    frame = Frame(sse.frame(event, data).decode())
    frame.name = event
    return frame


class SSEResponse:
    """Makes the frames of one run."""

    def __init__(self, run_id: str) -> None:
        self.run_id = run_id

    def delta(self, text: str) -> str:
        """Return a piece of the answer."""
        return format_sse_event("delta", {"text": text, "run_id": self.run_id})

    def state(self, state: str, detail: Any = None) -> str:
        """Return what the agent is doing."""
        return format_sse_event("state", given({"state": state, "detail": detail}))

    def done(
        self, final_message: Content | None = None, usage: Usage | dict[str, Any] | None = None
    ) -> str:
        """Return the end; without `final_message` the joined deltas are the message."""
        counted = usage.to_dict() if isinstance(usage, Usage) else usage
        return format_sse_event("done", given({"final_message": final_message, "usage": counted}))

    def error(self, code: str, message: str) -> str:
        """Return the end of a run that failed."""
        return format_sse_event("error", {"code": code, "message": message})


async def stream_text(
    text: str | AsyncIterator[str],
    run_id: str = "",
    *,
    chunk_size: int = 20,
    delay_s: float = 0.0,
) -> AsyncIterator[str]:
    """Yield a text, or the pieces of a model, as delta frames of at most `chunk_size` characters.

    `delay_s` is waited between two frames.
    """
    response = SSEResponse(run_id)
    async for piece in _pieces(text):
        for part in _cut(piece, chunk_size):
            yield response.delta(part)
            await asyncio.sleep(delay_s)


async def _pieces(text: str | AsyncIterator[str]) -> AsyncIterator[str]:
    if isinstance(text, str):
        yield text
        return
    async for piece in text:
        yield piece


def _cut(text: str, size: int) -> Iterator[str]:
    return (text[start : start + size] for start in range(0, len(text), size))
