"""Agents that are any `/v1/chat/completions` server, streaming or not."""

import re
from collections.abc import Iterator
from typing import Any, Final

import msgspec

from orchestrator.clients.exchange import Request
from orchestrator.clients.json_agent import JSONBody, is_json
from orchestrator.clients.native import EVENT_STREAM, LINE_MAX, events_in, headers
from orchestrator.clients.sse import SSEEvent, SSEParser
from orchestrator.core import jsontext
from orchestrator.core.errors import AgentFailure
from orchestrator.core.frames import Delta, Done, Failed, Frame
from orchestrator.ports import AgentCall

_PATH: Final = "/chat/completions"
_VERSIONED: Final = re.compile(r"/v\d+\Z")


class OpenAIAgent:
    """The dialect of `protocol: openai`; the endpoint may end before or after `/v1`."""

    def request(self, call: AgentCall) -> Request:
        """Return a streaming chat completion; `model` is `context.model`, else the agent's name."""
        model = call.context.get("model")
        asked = {
            "model": model if isinstance(model, str) and model else call.agent_id,
            "messages": [*call.messages, {"role": call.role, "content": call.content}],
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        accept = f"{EVENT_STREAM}, application/json"
        return Request(
            url=completions_url(call.endpoint),
            headers=headers(call, accept),
            body=msgspec.json.encode(asked),
        )

    def decoder(self, media_type: str) -> "ChunkDecoder | CompletionDecoder | None":
        """Return a decoder for a stream of chunks, or for a whole completion."""
        if media_type == EVENT_STREAM:
            return ChunkDecoder()
        return CompletionDecoder() if is_json(media_type) else None


class ChunkDecoder:
    """Turns `chat.completion.chunk` events into frames."""

    def __init__(self) -> None:
        self._parser = SSEParser(max_line=LINE_MAX)
        self._usage: dict[str, Any] = {}
        self._finished = False

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Yield the frames that `data` completes; raises AgentFailure `agent_protocol`."""
        for event in events_in(self._parser, data):
            yield from self._frames(event)

    def close(self) -> Iterator[Frame]:
        """Yield Done if a finish reason was seen: some send no `[DONE]`; else raise `agent_eof`."""
        for event in events_in(self._parser, b""):
            yield from self._frames(event)
        if not self._finished:
            raise AgentFailure("agent_eof", "the agent's stream ended without [DONE]")
        yield Done(usage=self._usage)

    def _frames(self, event: SSEEvent) -> Iterator[Frame]:
        if event.data.strip() == "[DONE]":
            yield Done(usage=self._usage)
            return
        chunk = _object(event.data)
        if chunk.get("error"):
            yield failed(chunk["error"])
            return
        self._usage = _dict(chunk.get("usage")) or self._usage
        choice = _choice(chunk)
        self._finished = self._finished or bool(choice.get("finish_reason"))
        if text := _text(_dict(choice.get("delta"))):
            yield Delta(text)


class CompletionDecoder:
    """Turns one whole `chat.completion` into frames."""

    def __init__(self) -> None:
        self._body = JSONBody()

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Keep `data`; frames come at the end."""
        self._body.add(data)
        return iter(())

    def close(self) -> Iterator[Frame]:
        """Yield the delta and the done; raises AgentFailure `agent_protocol`."""
        answer = _dict(self._body.value())
        if answer.get("error"):
            yield failed(answer["error"])
            return
        message = _choice(answer).get("message")
        if not isinstance(message, dict):
            text = "the agent's completion has no choices[0].message"
            raise AgentFailure("agent_protocol", text, retryable=False)
        yield Delta(_text(message))
        yield Done(usage=_dict(answer.get("usage")))


def completions_url(endpoint: str) -> str:
    """Return the address of the chat completions behind a base URL."""
    base = endpoint.rstrip("/")
    if base.endswith(_PATH):
        return base
    return base + (_PATH if _VERSIONED.search(base) else f"/v1{_PATH}")


def failed(error: Any) -> Failed:
    """Return the frame of an OpenAI error object, or of what stands in its place."""
    said = _dict(error)
    code = said.get("code") or said.get("type") or "agent_error"
    return Failed(str(code), str(said.get("message") or error))


def _object(data: str) -> dict[str, Any]:
    try:
        chunk = jsontext.decode(data)
    except ValueError as error:
        text = f"the agent sent a chunk that is not JSON: {error}"
        raise AgentFailure("agent_protocol", text, retryable=False) from error
    if not isinstance(chunk, dict):
        text = "the agent sent a chunk that is not a JSON object"
        raise AgentFailure("agent_protocol", text, retryable=False)
    return chunk


def _choice(answer: dict[str, Any]) -> dict[str, Any]:
    choices = answer.get("choices")
    return _dict(choices[0]) if isinstance(choices, list) and choices else {}


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(message: dict[str, Any]) -> str:
    content = message.get("content")
    return content if isinstance(content, str) else ""
