"""W3C Trace Context: what of a caller's headers is taken on, and where a run stands in its trace.

By https://www.w3.org/TR/trace-context-2/. Noise is an argument.
"""

import re
from collections.abc import Sequence
from hashlib import blake2b
from typing import Final

import msgspec

STATE_MAX: Final = 512
"""Characters of a `tracestate`, all its headers together, with their commas and spaces."""
MEMBERS_MAX: Final = 32
SPAN_BYTES: Final = 8
"""Random bytes that a span id is made of."""

_TRACE_BYTES: Final = 16
_SAMPLED: Final = 1
_RANDOM: Final = 2
_KNOWN_FLAGS: Final = _SAMPLED | _RANDOM
_PARENT: Final = re.compile(
    r"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-.*)?"
)
_MEMBER: Final = re.compile(r"[a-z0-9][a-z0-9_*/@-]{0,255}=[ -+\--<>-~]{0,255}[!-+\--<>-~]")


class Trace(msgspec.Struct, frozen=True):
    """A span's place in a trace: ids in lower-case hex, `parent_id` None where the trace begins."""

    trace_id: str
    span_id: str
    parent_id: str | None
    flags: int
    state: str | None = None

    @property
    def sampled(self) -> bool:
        """Return whether the trace is meant to be recorded."""
        return bool(self.flags & _SAMPLED)

    @property
    def traceparent(self) -> str:
        """Return the header that makes this span the parent of what its receiver does."""
        return f"00-{self.trace_id}-{self.span_id}-{self.flags:02x}"

    def below(self, noise: bytes) -> "Trace":
        """Return the place of a new span below this one, its id made of 8 random bytes."""
        return Trace(self.trace_id, _id(noise), self.span_id, self.flags, self.state)


def accepted(
    traceparents: Sequence[str], tracestates: Sequence[str]
) -> tuple[str | None, str | None]:
    """Return `traceparent` and `tracestate` as they are kept, None for what is not.

    The arguments are the values of all headers of that name. A `traceparent` that is malformed or
    came twice is dropped, and its `tracestate` with it; a `tracestate` that is malformed or too
    large is dropped alone.
    """
    parent = _parent(traceparents[0]) if len(traceparents) == 1 else None
    if parent is None:
        return None, None
    trace_id, parent_id, flags = parent
    return f"00-{trace_id}-{parent_id}-{flags:02x}", _state(",".join(tracestates))


def continued(traceparent: str | None, tracestate: str | None, noise: bytes) -> Trace:
    """Return the place of a new span below the caller's, or at the beginning of a trace of its own.

    Of 24 random bytes 16 are the id of a new trace, 8 are the span's.
    """
    parent = _parent(traceparent) if traceparent else None
    span_id = _id(noise[_TRACE_BYTES:])
    if parent is None:
        return Trace(_id(noise[:_TRACE_BYTES]), span_id, None, _KNOWN_FLAGS)
    trace_id, parent_id, flags = parent
    return Trace(trace_id, span_id, parent_id, flags, _state(tracestate) if tracestate else None)


def of_run(run_id: str, traceparent: str | None, tracestate: str | None) -> Trace:
    """Return the place of a run in its trace.

    The ids are made of the run's own, which is random: whoever drives the run, before a restart or
    after it, finds the same place.
    """
    noise = blake2b(run_id.encode(), digest_size=_TRACE_BYTES + SPAN_BYTES).digest()
    return continued(traceparent, tracestate, noise)


def _id(noise: bytes) -> str:
    """Return bytes in hex; nothing but zeros is no id."""
    return noise.hex() if any(noise) else f"{1:0{2 * len(noise)}x}"


def _parent(text: str) -> tuple[str, str, int] | None:
    """Return the trace, the parent and the flags of a `traceparent`, None when it is malformed."""
    found = _PARENT.fullmatch(text)
    if found is None:
        return None
    version, trace_id, parent_id, flags, more = found.groups()
    if more and version == "00":
        return None
    return trace_id, parent_id, int(flags, 16) & _KNOWN_FLAGS


def _state(joined: str) -> str | None:
    """Return a `tracestate` without spaces and empty members, None when it is malformed."""
    if len(joined) > STATE_MAX:
        return None
    members = [member for part in joined.split(",") if (member := part.strip(" \t"))]
    keys = {member.partition("=")[0] for member in members}
    well_formed = all(map(_MEMBER.fullmatch, members))
    if not members or not well_formed or not len(members) == len(keys) <= MEMBERS_MAX:
        return None
    return ",".join(members)
