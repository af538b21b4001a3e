"""What an agent says during one invocation, whatever protocol it speaks."""

from collections.abc import Iterable, Iterator
from typing import Any, TypeAlias

import msgspec

from orchestrator.core.events import Content


class Delta(msgspec.Struct, frozen=True, gc=False):
    """A piece of the answer."""

    text: str


class Deltas(msgspec.Struct, frozen=True):
    """Several pieces of the answer that came together, in their order."""

    texts: list[str]


class State(msgspec.Struct, frozen=True):
    """What the agent is doing."""

    state: str
    detail: Any = None


class Done(msgspec.Struct, frozen=True):
    """The answer is complete; without `final_message` the joined deltas are the message."""

    final_message: Content | None = None
    usage: dict[str, Any] = {}


class Failed(msgspec.Struct, frozen=True):
    """The agent itself reports a failure."""

    code: str
    message: str


class Paused(msgspec.Struct, frozen=True):
    """The agent ends its stream until the named tool calls are decided."""

    wait_for: tuple[str, ...]
    state: Any = None


class Other(msgspec.Struct, frozen=True):
    """Any other event, kept so that nothing is lost."""

    name: str
    data: Any


Frame: TypeAlias = Delta | Deltas | State | Done | Failed | Paused | Other
ENDING = frozenset({Done, Failed, Paused})
"""Frames after which nothing more of the stream is read."""


def singly(frames: Iterable[Frame]) -> Iterator[Frame]:
    """Yield frames with the pieces of an answer one by one, however they came together."""
    for frame in frames:
        if isinstance(frame, Deltas):
            yield from map(Delta, frame.texts)
        else:
            yield frame
