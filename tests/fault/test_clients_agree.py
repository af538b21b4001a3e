"""Our streaming client and aiohttp hear the same from thousands of servers of every manner."""

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Sequence

import pytest

from orchestrator.clients.agents import agent_clients
from orchestrator.core.errors import AgentFailure
from orchestrator.core.frames import Delta, Frame, singly
from orchestrator.testing.fake_agent import FakeAgent, Peer, calling, chunk, event, head

from .calls import DRIVERS, Chosen, client

TYPES = ("text/event-stream",) * 6 + ("text/event-stream; charset=utf-8", "text/html", "")
STATUSES = (200,) * 8 + (201, 307, 404, 500)
FRAMINGS = ("close", "chunked", "chunked", "length", "length")
EXTRAS = (
    b"", b"", b"", b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 Early\r\nA: b\r\n\r\n",
)  # fmt: skip


def body(rnd: random.Random) -> list[bytes]:
    """Return the events of an answer that may or may not be complete."""
    events = [event("delta", text=f"word {n}") for n in range(rnd.randrange(6))]
    if rnd.random() < 0.2:
        events.insert(rnd.randrange(len(events) + 1), b": comment\n\n")
    if rnd.random() < 0.1:
        events.append(b"event: delta\ndata: {\n\n")
    if rnd.random() < 0.8:
        events.append(event("done", usage={"tokens": 1}))
    return events


def framed(rnd: random.Random, framing: str, events: list[bytes]) -> tuple[list, bytes]:
    """Return the headers of a framing and the body in it."""
    plain = b"".join(events)
    match framing:
        case "chunked":
            parts = [chunk(one) for one in events if one]
            return [("Transfer-Encoding", "chunked")], b"".join(parts) + chunk(b"")
        case "length":
            off = rnd.choice((0, 0, 0, 0, 5))
            return [("Content-Length", str(len(plain) + off))], plain
        case _:
            return [("Connection", "close")], plain


def script(seed: int, ends: Sequence[str]) -> tuple[list[bytes], bool, str]:
    """Return the pieces a server sends, whether it resets at the end, and what it is like."""
    rnd = random.Random(seed)
    framing, end = rnd.choice(FRAMINGS), rnd.choice(ends)
    headers, sent = framed(rnd, framing, body(rnd))
    status = rnd.choice(STATUSES)
    kind = rnd.choice(TYPES)
    sent = rnd.choice(EXTRAS) + head(status, kind, headers) + sent
    if end == "cut":
        sent = sent[: rnd.randrange(len(sent))]
    elif end == "more" and framing != "close":
        sent += event("delta", text="late")
    elif end == "garbage":
        at = rnd.randrange(len(sent))
        sent = sent[:at] + bytes(rnd.randrange(256) for _ in range(4)) + sent[at:]
    size = rnd.choice((1, 2, 7, 50, 10_000))
    pieces = [sent[at : at + size] for at in range(0, len(sent), size)]
    return pieces[:400] if size == 1 else pieces, end == "reset", f"{framing}, {end}, {status}"


async def heard(pieces: Sequence[bytes], *, reset: bool) -> tuple[list[Frame], str]:
    """Return the frames that one invocation hears, and the code of its failure."""

    async def play(peer: Peer) -> None:
        await peer.request()
        await peer.send(*pieces)
        if reset:
            peer.reset()

    frames: list[Frame] = []
    async with FakeAgent(play) as agent, client() as http:
        try:
            async with (
                asyncio.timeout(2),
                agent_clients(http)["native"].open(calling(agent.url)) as stream,
            ):
                async for batch in stream:
                    frames += singly(batch)
        except AgentFailure as failure:
            return frames, f"{failure.code}, {'' if failure.retryable else 'not '}retryable"
        except TimeoutError:
            return frames, "hung"
    return frames, ""


async def test_both_clients_hear_the_same(
    rounds_of: Callable[[int], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    outcomes: Counter[str] = Counter()
    for seed in range(rounds_of(6000)):
        pieces, reset, manner = script(seed, ("whole", "whole", "whole", "cut", "reset"))
        told = {}
        for name in DRIVERS:
            monkeypatch.setattr(Chosen, "name", name)
            told[name] = await heard(pieces, reset=reset)
        frames, failure = told["own"]
        others, expected = told["aiohttp"]
        if reset:  # what a reset overtakes is lost or not as the kernel likes
            frames, others = [], []
        assert (frames, failure) == (others, expected), f"seed {seed}: {manner}: {pieces[:3]}"
        outcomes[failure or "done"] += 1
        outcomes["deltas"] += sum(isinstance(frame, Delta) for frame in frames)
    assert outcomes["done"]
    assert outcomes["deltas"]
    assert len(outcomes) > 4, outcomes


async def test_ours_hears_the_same_in_any_pieces(
    rounds_of: Callable[[int], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    # aiohttp does not: it may drop a whole answer for what follows it in the same piece.
    monkeypatch.setattr(Chosen, "name", "own")
    outcomes: Counter[str] = Counter()
    for seed in range(rounds_of(3000)):
        pieces, _, manner = script(seed, ("more", "garbage", "garbage"))
        sent = b"".join(pieces)
        split = await heard(_cut(sent, seed), reset=False)
        assert split == await heard([sent], reset=False), f"seed {seed}: {manner}"
        assert split[1] != "hung"
        outcomes[split[1] or "done"] += 1
    assert len(outcomes) > 3, outcomes


def _cut(sent: bytes, seed: int) -> list[bytes]:
    size = random.Random(seed).choice((3, 17, 90))
    return [sent[at : at + size] for at in range(0, len(sent), size)]
