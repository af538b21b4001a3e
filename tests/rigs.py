"""Counts what the fault rigs did, fails one whose fault never fired, and closes with a table."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

FOLDER = "fault"
TALLY = "tally"


class Tally:
    """What one test did: its rounds, and how often each of its faults really fired."""

    def __init__(self) -> None:
        self.rounds = 0
        self.fired: Counter[str] = Counter()
        self.figures: dict[str, float] = {}
        self._expected: set[str] = set()

    def expect(self, *faults: str) -> None:
        """Name faults that must fire; one that has not by the end of the test fails it."""
        self._expected.update(faults)

    def round(self, count: int = 1) -> None:
        """Note rounds that are over."""
        self.rounds += count

    def fire(self, fault: str, count: int = 1) -> None:
        """Note that a fault fired."""
        self.fired[fault] += count

    def most(self, what: str, figure: float) -> None:
        """Note a figure, of which the table shows the largest; `what` begins with its unit."""
        self.figures[what] = max(figure, self.figures.get(what, figure))

    def plain(self) -> dict[str, Any]:
        """Return its rounds, its faults and its figures as plain values."""
        return {"rounds": self.rounds, "fired": dict(self.fired), "figures": self.figures}

    def silent(self) -> list[str]:
        """Return the faults that were to fire and did not."""
        return sorted(fault for fault in self._expected if not self.fired[fault])


@dataclass
class Rig:
    """The sum of a rig's tests."""

    rounds: int = 0
    fired: Counter[str] = field(default_factory=Counter)
    figures: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    failed: int = 0

    def add(self, rounds: int, fired: Mapping[str, int], figures: Mapping[str, float]) -> None:
        """Add what one test did, as its tally told it."""
        self.rounds += rounds
        self.fired.update(fired)
        for what, figure in figures.items():
            self.figures[what] = max(figure, self.figures.get(what, figure))


class Rigs:
    """The plugin: hands out tallies and adds them up per file of tests/fault."""

    def __init__(self) -> None:
        self.rigs: defaultdict[str, Rig] = defaultdict(Rig)
        self.broken: set[str] = set()

    @pytest.fixture
    def tally(self, request: pytest.FixtureRequest) -> Iterator[Tally]:
        """Hand out the test's tally; fail it when a fault that it named did not fire."""
        tally = Tally()
        yield tally
        # A report's own way, which also leads out of a worker.
        request.node.user_properties.append((TALLY, tally.plain()))
        if tally.silent() and request.node.nodeid not in self.broken:
            pytest.fail(f"never fired: {', '.join(tally.silent())}; this rig proved nothing")

    @pytest.fixture
    def ground(self) -> Iterator[Path]:
        """Hand out a folder in memory where there is one: rigs write files by the thousand."""
        memory = Path("/dev/shm")  # noqa: S108  # a folder of our own is made in it
        with TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
            yield Path(folder)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.broken.add(report.nodeid)
        path = Path(report.nodeid.partition("::")[0])
        if path.parent.name == FOLDER:
            rig = self.rigs[name_of(path)]
            rig.seconds += report.duration
            rig.failed += report.failed
            told: Any = dict(report.user_properties).get(TALLY)
            if told and report.when == "teardown":
                rig.add(**told)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if not self.rigs:
            return
        terminalreporter.section("rigs")
        for name, rig in sorted(self.rigs.items()):
            fired = [f"{fault} {count:,}" for fault, count in sorted(rig.fired.items())]
            fired += [f"at most {most:.3g} {what}" for what, most in rig.figures.items()]
            mark = "FAILED" if rig.failed else "held"
            rounds = f"{rig.rounds:,}" if rig.rounds else "-"
            terminalreporter.write_line(
                f"{name:<16} {mark:<7} {rounds:>9} rounds {rig.seconds:>8.1f} s  {', '.join(fired)}"
            )


def name_of(path: Path) -> str:
    """Return a rig's name, as `./orchestrator prove` takes it."""
    return path.stem.removeprefix("test_")
