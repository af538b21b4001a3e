"""What an event costs and how long it takes at a steady rate, beside a relay, nginx and a
conventional server that do the same work.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from statistics import median
from typing import Final

import msgspec

from bench.report import Row, Size, fsync_ms
from bench.rig import Missing, Rig, Running

RUNS: Final = 100
RATES: Final = (2500, 5000)
SLOWER: Final = 2500
Side = Callable[[], AbstractContextManager[Running]]


class Sample(msgspec.Struct, frozen=True):
    """What one side did in one window: µs of CPU per event it delivered, delays in ms."""

    cpu: float
    load_cpu: float
    kept_up: float
    p50: float
    p90: float
    p99: float
    p999: float


def measure(rig: Rig, size: Size) -> Iterator[Row]:
    """Yield CPU per event and delays at each rate."""
    sides: dict[str, Side] = {
        "server": rig.server,
        "relay": rig.relay,
        "nginx": rig.nginx,
        "conventional": rig.conventional,
    }
    for rate in RATES:
        taken, missing = _rounds(rig, sides, rate, size)
        yield from _costs(rate, taken, missing)
        if rate == SLOWER:
            yield from _delays(rate, taken)


def _rounds(
    rig: Rig, sides: dict[str, Side], rate: int, size: Size
) -> tuple[dict[str, list[Sample]], str]:
    """Measure every side in every round, each round beginning with another one."""
    taken: dict[str, list[Sample]] = defaultdict(list)
    missing = ""
    names = list(sides)
    for number in range(size.rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            try:
                with sides[name]() as running:
                    taken[name].append(window(rig, running, rate, size))
            except Missing as problem:
                missing = str(problem)
    with rig.nothing() as agents:
        taken["nothing"].append(window(rig, agents, rate, size))
    return taken, missing


def window(rig: Rig, running: Running, rate: int, size: Size, runs: int = RUNS) -> Sample:
    """Load one side with a steady rate over `runs` streams and return what it did meanwhile."""
    rig.callers.ask("target", port=running.port, relays=running.relays)
    hold(rig, running, "words", runs)
    sample = pace(rig, running, {"words": rate}, size)
    rig.agents.ask("end", group="words")
    rig.callers.ask("close")
    return sample


def hold(rig: Rig, running: Running, group: str, runs: int, filling: int = 0) -> None:
    """Open runs that wait for their agents' words, a reader on each."""
    message = f"paced {group} {filling}"
    rig.callers.ask("open", runs=runs, message=message, wait=not running.relays)
    rig.until_streaming(group, runs)


def pace(rig: Rig, running: Running, rates: dict[str, int], size: Size) -> Sample:
    """Let the agents of the open runs speak; return what the window showed."""
    rig.agents.ask("pace", rates=rates, seconds=size.warm_s + size.window_s + 0.5)
    time.sleep(size.warm_s)
    rig.callers.ask("reset")
    before, load_before = running.cpu(), rig.load_cpu()
    time.sleep(size.window_s)
    seen = rig.callers.ask("seen")
    cpu, load_cpu = running.cpu() - before, rig.load_cpu() - load_before
    rig.agents.ask("settle")
    events = seen["events"]
    if not events:
        raise RuntimeError("no event reached a reader while the agents spoke")
    return Sample(
        cpu=cpu / events * 1e6,
        load_cpu=load_cpu / events * 1e6,
        kept_up=events / (sum(rates.values()) * size.window_s),
        p50=seen["delay_p50"],
        p90=seen["delay_p90"],
        p99=seen["delay_p99"],
        p999=seen["delay_p999"],
    )


def _costs(rate: int, taken: dict[str, list[Sample]], missing: str) -> Iterator[Row]:
    bench = "paced"
    cpu = {name: median(s.cpu for s in samples) for name, samples in taken.items()}
    for name in ("server", "relay", "nginx", "conventional"):
        if name in cpu:
            kept = median(s.kept_up for s in taken[name])
            note = "" if kept > 0.98 else f"kept up with {kept:.0%} of them"
            yield Row(bench, f"CPU per event at {rate}/s, {name}", cpu[name], "µs", note=note)
        else:
            yield Row(bench, f"CPU per event at {rate}/s, {name}", None, "µs", note=missing)
    load = median(s.load_cpu for s in taken["server"])
    yield Row(bench, f"CPU per event at {rate}/s, the load itself", load, "µs")
    relay, conventional = _ratio(taken, "relay", "cpu"), _ratio(taken, "conventional", "cpu")
    slow = rate == SLOWER
    name = f"CPU per event at {rate}/s, server : "
    yield Row(bench, name + "relay", relay, most=5 if slow else None, note="aim 4" if slow else "")
    yield Row(bench, name + "conventional", conventional, most=1 / 3 if slow else 1 / 8)


def _delays(rate: int, taken: dict[str, list[Sample]]) -> Iterator[Row]:
    for name, samples in taken.items():
        for share in ("p50", "p99", "p999"):
            delay = median(getattr(sample, share) for sample in samples)
            yield Row("paced", f"delay {share} at {rate}/s, {name}", delay, "ms")
    p50, p99 = fsync_ms()
    yield Row("paced", "fsync p50", p50, "ms")
    yield Row("paced", "fsync p99", p99, "ms")
    for share, most in (("p50", 1 / 2), ("p99", 1 / 10)):
        ratio = _ratio(taken, "conventional", share)
        yield Row("paced", f"delay {share} at {rate}/s, server : conventional", ratio, most=most)


def _ratio(taken: dict[str, list[Sample]], other: str, field: str) -> float:
    """Return the median over the rounds of the server's figure divided by another one's."""
    pairs = zip(taken["server"], taken[other], strict=True)
    ratios: list[float] = [getattr(a, field) / getattr(b, field) for a, b in pairs]
    return median(ratios)
