"""The platform's own agent protocol: one POST, answered by server-sent events (CONTRACT §4)."""

import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from itertools import chain
from typing import Any, Final, TypeVar

import msgspec

from orchestrator.clients.exchange import Request
from orchestrator.clients.sse import LineTooLong, SSEEvent, SSEParser
from orchestrator.core import frames as fr
from orchestrator.core import jsontext
from orchestrator.core.errors import AgentFailure
from orchestrator.core.events import Content
from orchestrator.ports import AgentCall

LINE_MAX: Final = 1 << 20
EVENT_STREAM: Final = "text/event-stream"

T = TypeVar("T")
_SEAM: Final = secrets.randbits(62)
_MANY_DELTAS: Final = 4
"""From so many on they are cheaper decoded together than one by one."""
_SEAM_TEXT: Final = b",%d," % _SEAM


class _Delta(msgspec.Struct):
    text: str


_ONE: Final = msgspec.json.Decoder(_Delta)
_MANY: Final = msgspec.json.Decoder(list[_Delta | int])


class _State(msgspec.Struct):
    state: str
    detail: Any = None


class _Done(msgspec.Struct):
    final_message: Content | None = None
    usage: dict[str, Any] | None = None


class _Error(msgspec.Struct):
    code: str | None = None
    message: str | None = None


class _Pause(msgspec.Struct):
    wait_for: list[str]
    state: Any = None


class Native:
    """The dialect of `protocol: native`."""

    def request(self, call: AgentCall) -> Request:
        """Return `POST {endpoint}/invoke` with the contract's headers and body."""
        url = call.endpoint.rstrip("/") + "/invoke"
        return Request(url=url, headers=headers(call, EVENT_STREAM), body=body(call))

    def decoder(self, media_type: str) -> "NativeDecoder | None":
        """Return a decoder for an event stream."""
        return NativeDecoder() if media_type == EVENT_STREAM else None


class NativeDecoder:
    """Turns an event stream into frames."""

    __slots__ = ("_parser",)

    def __init__(self) -> None:
        self._parser = SSEParser(max_line=LINE_MAX)

    def feed(self, data: bytes) -> Iterator[fr.Frame]:
        """Return the frames that `data` completes; raises AgentFailure `agent_protocol`."""
        try:
            before, deltas, behind = self._parser.feed_named(data, b"delta")
        except LineTooLong as error:
            raise _too_long(error) from error
        if deltas and not before and not behind:
            return _deltas(deltas)
        return chain(map(frame_of, before), _deltas(deltas), map(frame_of, behind))

    def close(self) -> Iterator[fr.Frame]:
        """Yield the frame of a last event without its blank line; then raise `agent_eof`."""
        yield from map(frame_of, events_in(self._parser, b""))
        raise AgentFailure("agent_eof", "the agent's stream ended without a done event")


def events_in(parser: SSEParser, data: bytes) -> list[SSEEvent]:
    """Return the events that `data` completes, or with b"" the end; raises AgentFailure."""
    try:
        return parser.feed(data) if data else parser.close()
    except LineTooLong as error:
        raise _too_long(error) from error


def _too_long(error: LineTooLong) -> AgentFailure:
    text = f"the agent sent too much at once: {error}"
    return AgentFailure("agent_protocol", text, retryable=False)


def _deltas(datas: list[bytes]) -> Iterator[fr.Frame]:
    if len(datas) < _MANY_DELTAS:
        return map(_delta_in, datas)
    texts = _texts(datas)
    if texts is None:
        return map(_delta_in, datas)
    return iter([fr.Deltas(texts)])


def _texts(datas: list[bytes]) -> list[str] | None:
    """Return the texts of many deltas, decoded in one go; None where they must be looked at singly.

    Joined JSON is not always what its pieces were: a piece that ends in the middle of a value may
    meet one that goes on with it. So a number that no agent can guess stands between the pieces and
    must come out in each of those places.
    """
    joined = _SEAM_TEXT.join(datas)
    if _brackets(joined) > jsontext.NESTING_MAX + len(datas) and any(
        _brackets(data) > jsontext.NESTING_MAX for data in datas
    ):
        return None  # it may nest too deep
    try:
        found = _MANY.decode(b"[%b]" % joined)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return None
    if len(found) != 2 * len(datas) - 1 or found[1::2] != [_SEAM] * (len(datas) - 1):
        return None
    try:
        return [one.text for one in found[::2]]  # type: ignore[union-attr]  # a number has none
    except AttributeError:
        return None


def _brackets(data: bytes) -> int:
    return data.count(b"[") + data.count(b"{")


def _delta_in(data: bytes) -> fr.Frame:
    if data.count(b"[") + data.count(b"{") <= jsontext.NESTING_MAX:
        with suppress(msgspec.DecodeError):  # then it is looked at with care
            return fr.Delta(_ONE.decode(data).text)
    return _delta(data.decode("utf-8", "replace"))


def frame_of(event: SSEEvent) -> fr.Frame:
    """Return the frame of an event; raises AgentFailure when one of the five is malformed."""
    make = _FRAMES.get(event.event)
    return make(event.data) if make is not None else _other(event)


def headers(call: AgentCall, accept: str) -> dict[str, str]:
    """Return the headers every agent gets, whatever its protocol."""
    wanted = {
        "Content-Type": "application/json",
        "Accept": accept,
        "X-Session-ID": call.session_id,
        "X-Run-ID": call.run_id,
        "X-Attempt": str(call.attempt),
        "X-Platform-Base-URL": call.base_url,
        "Idempotency-Key": call.run_id,
        "traceparent": call.traceparent,
        "tracestate": call.tracestate,
        "X-Run-Token": call.run_token and call.run_token.reveal(),
        "Authorization": call.credential and f"Bearer {call.credential.reveal()}",
    }
    return {name: value for name, value in wanted.items() if value}


def body(call: AgentCall) -> bytes:
    """Return the body of an invocation as JSON."""
    told: dict[str, Any] = {
        "agent_id": call.agent_id,
        "session_id": call.session_id,
        "run_id": call.run_id,
        "input_message": {"role": call.role, "content": call.content},
        "messages": list(call.messages),
        "context": call.context,
    }
    if call.resume is not None:
        told["resume"] = call.resume
    return msgspec.json.encode(told)


def _delta(data: str) -> fr.Frame:
    return fr.Delta(_shaped("delta", data, _Delta).text)


def _state(data: str) -> fr.Frame:
    shaped = _shaped("state", data, _State)
    return fr.State(shaped.state, shaped.detail)


def _done(data: str) -> fr.Frame:
    shaped = _shaped("done", data, _Done)
    return fr.Done(shaped.final_message, shaped.usage or {})


def _error(data: str) -> fr.Frame:
    shaped = _shaped("error", data, _Error)
    return fr.Failed(
        shaped.code or "agent_error", shaped.message or "the agent gave up and did not say why"
    )


def _pause(data: str) -> fr.Frame:
    shaped = _shaped("pause", data, _Pause)
    return fr.Paused(tuple(shaped.wait_for), shaped.state)


def _other(event: SSEEvent) -> fr.Frame:
    try:
        return fr.Other(event.event, jsontext.decode(event.data))
    except ValueError:
        return fr.Other(event.event, event.data)


def _shaped(name: str, data: str, kind: type[T]) -> T:
    """Return `data` as `kind`; what the contract does not name is passed over."""
    try:
        return jsontext.decode(data, kind)
    except ValueError as error:
        text = f"the agent sent a malformed {name} event: {error}"
        raise AgentFailure("agent_protocol", text, retryable=False) from error


_FRAMES: Final[Mapping[str, Callable[[str], fr.Frame]]] = {
    "delta": _delta,
    "state": _state,
    "done": _done,
    "error": _error,
    "pause": _pause,
}
