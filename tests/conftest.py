"""What every test may ask for, and the last line of every test run: what did not run."""

import os
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

ROUNDS_SHARE = 20
SBIN = ":/usr/local/sbin:/usr/sbin:/sbin"

settings.register_profile("quick", derandomize=True, database=None, deadline=None)
settings.register_profile("full", deadline=None, database=None, max_examples=2_000)


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("orchestrator")
    group.addoption("--full", action="store_true", help="run rigs with their full number of rounds")
    group.addoption("--rounds", type=int, metavar="N", help="run rigs with N rounds instead")


def pytest_configure(config: pytest.Config) -> None:
    settings.load_profile("full" if config.getoption("--full") else "quick")
    config.pluginmanager.register(NotRun(), "not-run")


@pytest.fixture(scope="session")
def rounds_of(request: pytest.FixtureRequest) -> Callable[[int], int]:
    """Turn a rig's full number of rounds into that of this run, a twentieth unless told."""

    def rounds(full: int) -> int:
        told = request.config.getoption("--rounds")
        if told:
            return int(told)
        return full if request.config.getoption("--full") else max(1, full // ROUNDS_SHARE)

    return rounds


@pytest.fixture(scope="session")
def program() -> Callable[[str], Path]:
    """Find a program of the system; a missing one fails the test unless WITHOUT names it."""

    def find(name: str) -> Path:
        if name in os.environ.get("WITHOUT", "").replace(",", " ").split():
            pytest.skip(f"WITHOUT={name}")
        found = shutil.which(name, path=os.environ.get("PATH", os.defpath) + SBIN)
        if found is None:
            pytest.fail(f"{name} is not installed: `apt-get install {name}`, or set WITHOUT={name}")
        return Path(found)

    return find


class NotRun:
    """Counts the tests that were chosen away, skipped or never reached, and says it last."""

    def __init__(self) -> None:
        self.waiting: set[str] = set()
        self.reasons: Counter[str] = Counter()

    def pytest_deselected(self, items: list[pytest.Item]) -> None:
        self.reasons["deselected"] += len(items)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self.waiting = {item.nodeid for item in session.items}

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.reasons[f"cannot be read: {report.nodeid}"] += 1
        elif report.skipped:
            self.reasons[_reason(report.longrepr)] += 1

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.skipped:
            self.waiting.discard(report.nodeid)
            self.reasons[_reason(report.longrepr)] += 1
        elif report.when == "call" or report.failed:
            self.waiting.discard(report.nodeid)

    @pytest.hookimpl(trylast=True)
    def pytest_unconfigure(self) -> None:
        if self.waiting:
            self.reasons["not reached"] += len(self.waiting)
        why = "; ".join(f"{count} {reason}" for reason, count in self.reasons.items() if count)
        print(f"did not run: {self.reasons.total()}" + (f" ({why})" if why else ""), flush=True)


def _reason(longrepr: object) -> str:
    """Return why a test was skipped, from pytest's (path, line, reason)."""
    said = longrepr[2] if isinstance(longrepr, tuple) else str(longrepr)
    return f"skipped, {said.removeprefix('Skipped: ')}"
