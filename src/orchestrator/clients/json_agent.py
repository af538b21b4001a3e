"""Agents that answer with one JSON value: it becomes one delta and a done."""

from collections.abc import Iterator
from typing import Any, Final

import msgspec

from orchestrator.clients.exchange import Request
from orchestrator.clients.native import body, headers
from orchestrator.core import jsontext
from orchestrator.core.errors import AgentFailure
from orchestrator.core.frames import Delta, Done, Frame
from orchestrator.ports import AgentCall

BODY_MAX: Final = 1 << 20
_TEXT_FIELDS: Final = (
    "final_message",
    "output",
    "answer",
    "text",
    "content",
    "message",
    "response",
)


class JSONAgent:
    """The dialect of `protocol: json`; the endpoint is used exactly as it was registered."""

    def request(self, call: AgentCall) -> Request:
        """Return `POST {endpoint}` with the native protocol's headers and body."""
        return Request(
            url=call.endpoint, headers=headers(call, "application/json"), body=body(call)
        )

    def decoder(self, media_type: str) -> "JSONDecoder | None":
        """Return a decoder for a JSON answer."""
        return JSONDecoder() if is_json(media_type) else None


class JSONDecoder:
    """Gathers a body of 1 MiB at most and finds the text in it."""

    def __init__(self) -> None:
        self._body = JSONBody()

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Keep `data`; frames come at the end."""
        self._body.add(data)
        return iter(())

    def close(self) -> Iterator[Frame]:
        """Yield the delta and the done; raises AgentFailure `agent_protocol`."""
        answer = self._body.value()
        usage = answer.get("usage") if isinstance(answer, dict) else None
        text = text_in(answer)
        yield Delta(text)
        yield Done(text, usage if isinstance(usage, dict) else {})


class JSONBody:
    """A JSON body as it arrives, bounded."""

    def __init__(self) -> None:
        self._body = bytearray()

    def add(self, data: bytes) -> None:
        """Keep `data`; raises AgentFailure `agent_protocol` over 1 MiB."""
        self._body += data
        if len(self._body) > BODY_MAX:
            text = f"the agent's answer is over {BODY_MAX} bytes"
            raise AgentFailure("agent_protocol", text, retryable=False)

    def value(self) -> Any:
        """Return the decoded body; raises AgentFailure `agent_protocol`."""
        try:
            return jsontext.decode(self._body.decode("utf-8", "replace"))
        except ValueError as error:
            text = f"the agent's answer is not JSON: {error}"
            raise AgentFailure("agent_protocol", text, retryable=False) from error


def is_json(media_type: str) -> bool:
    """Return whether a media type means JSON (RFC 6839 suffixes included)."""
    return media_type in ("application/json", "text/json") or media_type.endswith("+json")


def text_in(answer: Any) -> str:
    """Return the text of an answer: itself, its first text field, or all of it as JSON."""
    if isinstance(answer, str):
        return answer
    if isinstance(answer, dict):
        for name in _TEXT_FIELDS:
            value = answer.get(name)
            if isinstance(value, dict):
                value = value.get("content")
            if isinstance(value, str):
                return value
    return msgspec.json.encode(answer).decode()
