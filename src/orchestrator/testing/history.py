"""The one checker of histories: what a run's log must look like, whatever happened."""

from collections.abc import Sequence

import msgspec

from orchestrator.core.events import TERMINAL, LogEvent, open_event
from orchestrator.core.states import RUN, RunState


def violations(log: Sequence[bytes], seen: Sequence[bytes] = (), *, over: bool = True) -> list[str]:
    """Return what is wrong with a run's log, in words; nothing when all promises hold.

    `log` are the events as replayed, `seen` what one reader was shown of them, in order. `over`
    says that the run must have ended by now.
    """
    found = [*_broken_order(log), *_broken_states(log, over=over)]
    if list(log[: len(seen)]) != list(seen):
        at = next((i for i, (a, b) in enumerate(zip(log, seen, strict=False)) if a != b), len(log))
        found.append(f"replay differs from what a reader saw at event {at + 1}")
    return found


def _broken_order(log: Sequence[bytes]) -> list[str]:
    seqs = [open_event(data).seq for data in log]
    ids = {open_event(data).event_id for data in log}
    found = []
    if seqs != list(range(1, len(seqs) + 1)):
        found.append(f"seq is not dense from 1: {seqs[:5]}…{seqs[-5:]}")
    if len(ids) != len(log):
        found.append("an event id stands twice")
    return found


def _broken_states(log: Sequence[bytes], *, over: bool) -> list[str]:
    state: RunState | None = None
    ends = 0
    for data in log:
        envelope = open_event(data)
        field = RUN.deciding.get(envelope.type)
        value = msgspec.json.decode(envelope.payload)[field] if field else None
        after = RUN.step(state, envelope.type, value)
        if after is None:
            return [f"seq {envelope.seq}: {envelope.type} cannot follow {state}"]
        ends += envelope.type in TERMINAL
        state = after
    if over and ends != 1:
        return [f"the run ended {ends} times (state {state})"]
    return []


def sealed(events: Sequence[LogEvent]) -> list[bytes]:
    """Return the bytes of log events, as `violations` takes them."""
    return [event.data for event in events]
