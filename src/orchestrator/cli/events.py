"""How a run's events are shown: as a conversation, line by line, or as JSON."""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any, TypeVar

import msgspec

from orchestrator.cli.failure import CommandFailed, Exit
from orchestrator.cli.output import Output, clock
from orchestrator.cli.server import ENDS
from orchestrator.cli.shapes import Event
from orchestrator.clients.sse import SSEEvent

T = TypeVar("T")
_TEXT = 160


def follow(events: Iterable[SSEEvent], out: Output, *, talk: bool, several: bool = False) -> Exit:
    """Show events as they come; return what the run's end means, OK for a log without one.

    With `several` the events are those of many runs, and each says whose it is.
    """
    code, shown = Exit.OK, _Shown(out, several=several)
    for event in events:
        if out.json:
            out.raw(event.data)
        elif event.event == "log_reset":
            seq = _decoded(event.data, dict[str, int]).get("after_seq")
            out.remark(f"the server lost power: what came after seq {seq} comes again")
        elif talk:
            shown.talk(_decoded(event.data, Event))
        else:
            shown.line(_decoded(event.data, Event))
        code = ENDS.get(event.event, code)
    out.close_line()
    return code


class _Shown:
    """Shows the events of one run, or of several."""

    def __init__(self, out: Output, *, several: bool) -> None:
        self._out = out
        self._several = several
        self._speaker = ""
        self._spoken: set[str] = set()

    def talk(self, event: Event) -> None:
        """Show an event as a part of a conversation."""
        if self._several and event.run_id != self._speaker:
            self._out.remark(event.run_id)
            self._speaker = event.run_id
        _say(event, self._out)
        if event.type == "agent_stream_delta":
            self._spoken.add(event.run_id)
        elif event.type == "agent_invoke_done" and event.run_id not in self._spoken:
            self._out.words(_text(event.payload.get("final_message")))
        if event.type in ENDS:
            self._out.close_line()
            self._spoken.discard(event.run_id)

    def line(self, event: Event) -> None:
        """Show an event as a line."""
        _line(event, self._out, f"{event.run_id}  " if self._several else "")


def _decoded(data: str, shape: type[T]) -> T:
    try:
        return msgspec.json.decode(data, type=shape)
    except (ValueError, RecursionError) as error:
        raise CommandFailed(f"what came is no event ({error})", Exit.UNREACHABLE) from None


def _say(event: Event, out: Output) -> None:
    payload = defaultdict(str, event.payload)
    match event.type:
        case "agent_stream_delta":
            out.words(str(payload["text"]))
        case "agent_state":
            out.remark(f"[{payload['state']}] {payload['detail'] or ''}".rstrip())
        case "agent_event":
            out.remark(f"[{payload['name']}] {_short(payload['data'])}")
        case "user_input" if payload["queued"]:
            out.remark("queued behind another run of this session")
        case "agent_invoke_retrying":
            out.remark(f"again in {payload['delay_ms']} ms: {payload['message']}", "yellow")
        case "run_failed":
            out.remark(f"failed: {payload['code']}: {payload['message']}", "red")
            out.remark(f"  ./orchestrator replay {event.run_id}   shows every event of it")
        case "run_cancelled":
            out.remark(f"cancelled: {payload['reason']}", "yellow")
        case _:
            pass  # the other events are for `tail` and `replay`


def _text(content: Any) -> str:
    """Return a message as text: an agent may say all of it at its end, and as parts."""
    if not isinstance(content, list):
        return str(content or "")
    return "".join(str(part.get("text") or "") for part in content if isinstance(part, dict))


def _line(event: Event, out: Output, whose: str) -> None:
    payload = {name: value for name, value in event.payload.items() if value is not None}
    told = "  ".join(f"{name}={_short(value)}" for name, value in payload.items())
    out.line(f"{whose}{event.seq:>6}  {clock(event.ts)}  {event.type:<22}  {told}")


def _short(value: Any) -> str:
    text = msgspec.json.encode(value).decode()
    return text if len(text) <= _TEXT else text[:_TEXT] + "…"
