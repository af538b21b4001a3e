"""A run that an agent began: its words as they come, or its message at the end."""

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator
from contextlib import aclosing
from typing import Any

import httpx
import msgspec

from orchestrator_sdk.asking import part
from orchestrator_sdk.errors import (
    ConnectionLost,
    ProtocolError,
    RunCancelled,
    api_error,
    ended_badly,
)
from orchestrator_sdk.frames import ENDING, Content, text_of
from orchestrator_sdk.sse import STREAM, SSEParser


class Sending(msgspec.Struct, frozen=True, kw_only=True):
    """What is sent to call an agent."""

    base_url: str
    agent_id: str
    body: dict[str, Any]
    key: str | None
    headers: dict[str, str]

    def request(self) -> dict[str, Any]:
        """Return the body with the key."""
        wanted = {**self.body, "idempotency_key": self.key}
        return {name: value for name, value in wanted.items() if value is not None}


class ChildFrame(msgspec.Struct, frozen=True):
    """One frame of a child: `event` is delta, state, done or the child's own, `data` its JSON."""

    event: str
    data: Any


class ChildRun:
    """A called agent: `await` it for its message as text, or iterate over its words.

    Raises RunFailed with the child's code, RunCancelled, APIError where it was not begun. Leaving
    it before its end cancels it.
    """

    def __init__(self, http: Callable[[], httpx.AsyncClient], sending: Sending) -> None:
        self._http = http
        self._sending = sending
        self.run_id = ""
        self.final_message: Content | None = None
        self.usage: dict[str, Any] = {}

    def __await__(self) -> Generator[Any, None, str]:
        return self._whole().__await__()

    async def __aiter__(self) -> AsyncIterator[str]:
        """Yield the words."""
        async with aclosing(self.frames()) as found:
            async for frame in found:
                if frame.event == "delta":
                    yield frame.data["text"]

    async def _whole(self) -> str:
        words = [word async for word in self]
        return text_of(self.final_message) if self.final_message else "".join(words)

    async def frames(self) -> AsyncGenerator[ChildFrame, None]:
        """Yield every frame, `done` at last."""
        url = f"{self._sending.base_url}/v1/agents/{part(self._sending.agent_id)}/invoke"
        headers = self._sending.headers | STREAM
        body = self._sending.request()
        try:
            async with self._http().stream("POST", url, json=body, headers=headers) as answer:
                if answer.status_code != httpx.codes.OK:
                    raise api_error(answer.status_code, answer.headers, await answer.aread())
                self.run_id = answer.headers.get("x-run-id", "")
                async with aclosing(self._frames_of(answer)) as found:
                    async for frame in found:
                        yield frame
        except httpx.TransportError as error:
            raise ConnectionLost(
                f"the call of {self._sending.agent_id} was cut: {error}"
            ) from error

    async def _frames_of(self, answer: httpx.Response) -> AsyncGenerator[ChildFrame, None]:
        parser = SSEParser()
        async for data in answer.aiter_raw():
            for event in parser.feed(data):
                frame = ChildFrame(event.event, _decoded(event.data))
                self._check(frame)
                yield frame
                if frame.event in ENDING:
                    return
        raise ConnectionLost(f"the stream of {self.run_id} broke off before its end")

    def _check(self, frame: ChildFrame) -> None:
        """Keep what `done` says; raise what `error` says."""
        said = frame.data if isinstance(frame.data, dict) else {}
        if frame.event == "done":
            self.final_message = said.get("final_message")
            self.usage = said.get("usage") or {}
        elif frame.event == "error":
            cancelled = said.get("code") == RunCancelled.code
            raise ended_badly(said, self.run_id, cancelled=cancelled)
        elif frame.event == "delta" and not isinstance(said.get("text"), str):
            raise ProtocolError("a delta of the child has no text")


def _decoded(data: str) -> Any:
    try:
        return msgspec.json.decode(data)
    except msgspec.DecodeError:
        return data
