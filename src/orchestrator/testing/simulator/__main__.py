"""Plays simulations: one with its trace, or many with one line of JSON at the end.

    python -m orchestrator.testing.simulator --seed 7
    python -m orchestrator.testing.simulator --first 0 --count 1000

Set PYTHONHASHSEED=0: sets of names are then walked in the same order in every process.
"""

import argparse
import gc
import os
import sys
import time
from collections import Counter
from collections.abc import Sequence
from hashlib import sha256

import msgspec

from orchestrator import telemetry
from orchestrator.testing.simulator.plan import Flaw
from orchestrator.testing.simulator.simulation import simulate

FLAWS: tuple[Flaw, ...] = ("guard", "sync", "resume")
_COLLECT_EVERY = 20


class Batch(msgspec.Struct):
    """What many seeds led to: `wrong` by seed; `digest` is that of every line of every trace."""

    seeds: int = 0
    runs: int = 0
    seconds: float = 0.0
    faults: dict[str, int] = {}
    wrong: dict[int, list[str]] = {}
    digest: str = ""


def main(args: Sequence[str]) -> int:
    """Play what the command line asks for; 1 when something was wrong."""
    asked = _parser().parse_args(args)
    if asked.seed is not None:
        return _one(asked.seed, asked.flaw, asked.replicas)
    seeds = range(asked.first, asked.first + asked.count * asked.step, asked.step)
    batch = play(seeds, asked.flaw, asked.replicas)
    sys.stdout.write(msgspec.json.encode(batch).decode() + "\n")
    return bool(batch.wrong)


def play(seeds: Sequence[int], flaw: Flaw | None = None, replicas: int | None = None) -> Batch:
    """Play many seeds; what the engine logs of them is not kept."""
    with open(os.devnull, "w", encoding="utf-8") as nowhere:  # noqa: PTH123  # it has no path
        spoken, sys.stderr = sys.stderr, nowhere
        telemetry.configure("error", terminal=False)
        try:
            return _played(seeds, flaw, replicas)
        finally:
            sys.stderr = spoken


def _played(seeds: Sequence[int], flaw: Flaw | None, replicas: int | None) -> Batch:
    batch, digest, faults = Batch(), sha256(), Counter[str]()
    began = time.process_time()
    for number, seed in enumerate(seeds):
        result = simulate(seed, flaw, replicas)
        batch.seeds += 1
        batch.runs += result.runs
        faults += result.faults
        if result.wrong:
            batch.wrong[seed] = result.wrong
        digest.update("\n".join(result.told()).encode())
        if number % _COLLECT_EVERY == 0:
            gc.collect()
    batch.seconds = time.process_time() - began
    batch.faults = dict(faults)
    batch.digest = digest.hexdigest()
    return batch


def _one(seed: int, flaw: Flaw | None, replicas: int | None) -> int:
    telemetry.configure("error", terminal=sys.stderr.isatty())
    result = simulate(seed, flaw, replicas)
    for line in result.told():
        sys.stdout.write(line + "\n")
    faults = ", ".join(f"{name} {count}" for name, count in sorted(result.faults.items()))
    sys.stdout.write(f"\nseed {seed}: {result.runs} runs; {faults}\n")
    for what in result.wrong:
        sys.stdout.write(f"WRONG: {what}\n")
    return bool(result.wrong)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m orchestrator.testing.simulator", description="Play simulations."
    )
    parser.add_argument("--seed", type=int, help="play this seed and print its trace")
    parser.add_argument("--first", type=int, default=0, help="play many, beginning with this seed")
    parser.add_argument("--count", type=int, default=1000, help="how many")
    parser.add_argument("--step", type=int, default=1, help="the distance between two seeds")
    parser.add_argument("--flaw", choices=FLAWS, help="plant this fault in the store or the tails")
    parser.add_argument("--replicas", type=int, help="have so many servers on the one store")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
