"""What an agent may yield besides text, and the frames of the agent protocol it becomes."""

from collections.abc import Iterable, Iterator
from typing import Any, Final, TypeAlias

import msgspec

from orchestrator_sdk import sse

Content: TypeAlias = str | list[dict[str, Any]]
"""The content of a message: a string, or a list of OpenAI-style parts."""

RESERVED: Final = frozenset({"delta", "state", "done", "error", "pause"})
ENDING: Final = frozenset({"done", "error", "pause"})
"""Frames behind which nothing is read."""
PIECE_MAX: Final = 128 * 1024
"""Characters of one delta: escaped at worst, it stays below the 1 MiB that a line may have."""


class State(msgspec.Struct, frozen=True):
    """What the agent is doing; `detail` is anything JSON can say."""

    state: str
    detail: Any = None


class Event(msgspec.Struct, frozen=True):
    """An event of the agent's own, kept in the log as `agent_event`; raises ValueError.

    `name` is none of the protocol's five and has no line end.
    """

    name: str
    data: Any = None

    def __post_init__(self) -> None:
        if not self.name or self.name in RESERVED or not self.name.isprintable():
            raise ValueError(
                f"{self.name!r} cannot name an event: use a printable name other than "
                + ", ".join(sorted(RESERVED))
            )


class Done(msgspec.Struct, frozen=True):
    """The answer is complete; without `final_message` the joined words are the message."""

    final_message: Content | None = None
    usage: dict[str, Any] | None = None


class Pause(msgspec.Struct, frozen=True):
    """The agent ends here and is called again, with `resume`, when the tool calls are decided."""

    wait_for: list[str]
    state: Any = None


class Written(msgspec.Struct, frozen=True):
    """A frame that is written already: `name` is its event's, `data` all of its bytes."""

    name: str
    data: bytes


Said: TypeAlias = str | State | Event | Done | Pause | Written


def written(said: Said, *, spoken: bool = False) -> Iterator[Written]:
    """Yield the frames of what an agent said; raises TypeError for what none can say.

    `spoken` says that words came before; where none did, the message is also said as words. It is
    those words where it is too long for one frame.
    """
    match said:
        case str():
            for start in range(0, len(said), PIECE_MAX):
                yield _made("delta", {"text": said[start : start + PIECE_MAX]})
        case State():
            yield _made("state", _given(state=said.state, detail=said.detail))
        case Event():
            yield _made(said.name, said.data)
        case Done():
            yield from _done(said, spoken=spoken)
        case Pause():
            yield _made("pause", _given(wait_for=said.wait_for, state=said.state))
        case Written():
            yield said
        case _:
            raise TypeError(
                f"an agent yields text, State, Event, Done or Pause, and not {type(said).__name__}"
            )


def failed(code: str, message: str) -> bytes:
    """Return the frame that fails the run."""
    return sse.frame("error", {"code": code, "message": message})


def text_of(content: Any) -> str:
    """Return the text of a message's content: itself, or its text parts joined."""
    if isinstance(content, str):
        return content
    return "".join(_texts(content if isinstance(content, list) else []))


def _texts(parts: Iterable[Any]) -> Iterator[str]:
    for part in parts:
        if isinstance(part, dict) and isinstance(part.get("text"), str):
            yield part["text"]


def _done(done: Done, *, spoken: bool) -> Iterator[Written]:
    final = done.final_message
    if not spoken:  # who follows the words, as devices do, is told no other text
        yield from written(text_of(final))
    if isinstance(final, str) and len(final) > PIECE_MAX:
        final = None
    yield _made("done", _given(final_message=final, usage=done.usage))


def _given(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def _made(name: str, data: Any) -> Written:
    return Written(name, sse.frame(name, data))
