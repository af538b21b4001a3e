"""The engine in virtual time over a store that forgets: every seed is a story, none ends badly."""

import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import msgspec
import pytest

from orchestrator.testing.simulator.__main__ import Batch

from ..rigs import Tally

FULL: Final = 100_000
MODULE: Final = "orchestrator.testing.simulator"
COMMAND: Final = "./orchestrator prove sim --seed"

FAULTS: Final = (
    "agent_cycle", "agent_done", "agent_eof", "agent_error", "agent_final", "agent_hang",
    "agent_pause", "agent_protocol", "agent_silent", "agent_status", "agent_unavailable", "cancel",
    "child", "clock_jump_back", "clock_jump_forward", "contradiction", "double_click", "drain",
    "hint_bare", "hint_late", "hint_twice", "kill", "log_reset", "power_loss",
    "power_loss_took_commits", "push_answer_lost", "push_refused", "reader_hangs_up",
    "refused_epoch", "refused_exists", "refused_state", "refused_version", "repeat", "rerun",
    "session_busy", "session_reset", "short_cut", "shown_deltas_lost", "slow_sync", "storage_full",
    "store_deaf", "store_fails", "store_hangs", "store_lost", "store_unavailable",
)  # fmt: skip
"""Every kind of fault; over the seeds of one run of the rig none may be missing."""


def arguments(*more: object) -> list[str]:
    return [sys.executable, "-m", MODULE, *map(str, more)]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONHASHSEED": "0"}


def play(count: int, *more: object) -> Batch:
    """Play seeds on every core and return the sum."""
    cores = min(os.cpu_count() or 1, count)
    asked = [
        arguments("--first", core, "--count", len(range(core, count, cores)), "--step", cores)
        for core in range(cores)
    ]
    total = Batch()
    with ThreadPoolExecutor(cores) as threads:
        for part in threads.map(played, [[*one, *map(str, more)] for one in asked]):
            total.seeds += part.seeds
            total.runs += part.runs
            total.seconds += part.seconds
            total.faults = Counter(total.faults) + Counter(part.faults)
            total.wrong |= part.wrong
            total.digest += part.digest
    return total


def played(asked: list[str]) -> Batch:
    """Play what the arguments ask for in a process of its own."""
    done = subprocess.run(asked, env=environment(), capture_output=True, check=False)
    assert done.returncode in {0, 1}, done.stderr.decode()
    return msgspec.json.decode(done.stdout, type=Batch)


def showing(pattern: str, wrong: dict[int, list[str]]) -> list[int]:
    """Return the seeds in which something matches."""
    return sorted(s for s, found in wrong.items() if any(re.search(pattern, w) for w in found))


def story(wrong: dict[int, list[str]]) -> str:
    """Return the first bad seeds in words, each with the command that plays it again."""
    lines = [f"{len(wrong)} seeds break a promise"]
    for seed, found in sorted(wrong.items())[:5]:
        lines += [f"seed {seed}: {found[0]}", f"    again: {COMMAND} {seed}"]
    return "\n".join(lines)


@pytest.fixture
def whole_rig(request: pytest.FixtureRequest) -> None:
    """Leave out what has no place when one seed was asked for."""
    if request.config.getoption("--seed") is not None:
        pytest.skip("one seed was asked for")


def test_the_seed_that_was_asked_for(request: pytest.FixtureRequest) -> None:
    seed = request.config.getoption("--seed")
    asked = arguments("--seed", 1 if seed is None else seed)
    done = subprocess.run(asked, env=environment(), capture_output=True, text=True, check=False)
    print(f"\n{done.stdout}{done.stderr}")
    if seed is None:
        assert "run_started" in done.stdout
    else:
        assert done.returncode == 0, f"seed {seed} breaks a promise; its trace is above"


@pytest.mark.usefixtures("whole_rig")
def test_no_seed_breaks_a_promise(rounds_of: Callable[[int], int], tally: Tally) -> None:
    count = rounds_of(FULL)
    tally.expect(*FAULTS)
    batch = play(count)
    tally.round(batch.seeds)
    for fault, times in batch.faults.items():
        tally.fire(fault, times)
    print(f"{batch.seeds:,} seeds, {batch.runs:,} runs, {1000 * batch.seconds / count:.1f} ms each")
    assert not batch.wrong, story(batch.wrong)


@pytest.mark.usefixtures("whole_rig")
def test_a_seed_is_the_same_story_every_time() -> None:
    assert play(100).digest == play(100).digest


SYMPTOMS: Final = {
    # Zombies need two servers.
    "guard": r"which attempt \d+ did not say|which its last attempt did not say|cannot follow",
    "sync": r"was acknowledged and is lost|the power loss took it",
    "resume": r"^reader of run \d+, run \d+: replay differs from what a reader saw",
}


@pytest.mark.usefixtures("whole_rig")
@pytest.mark.parametrize("flaw", SYMPTOMS)
def test_a_planted_fault_is_found(flaw: str, tally: Tally) -> None:
    seeds = 600
    servers = ("--replicas", 2) if flaw == "guard" else ()
    tally.expect(f"flaw_{flaw}")
    found = showing(SYMPTOMS[flaw], play(seeds, "--flaw", flaw, *servers).wrong)
    tally.round(seeds)
    tally.fire(f"flaw_{flaw}", len(found))
    print(f"without the {flaw}: {len(found)} of {seeds} seeds are red, {found[:5]} …")
    assert found
    assert not play(seeds, *servers).wrong, "that is no proof"
