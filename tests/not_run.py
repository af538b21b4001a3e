"""Counts what did not run, and says it in the last line of every test run."""

from collections import Counter
from collections.abc import Sequence

import pytest

from .workers import is_worker, of_worker, tell_main


class NotRun:
    """Counts the tests that were chosen away, skipped or never reached, and says it last."""

    def __init__(self) -> None:
        self.waiting: set[str] = set()
        self.reasons: Counter[str] = Counter()

    def pytest_deselected(self, items: list[pytest.Item]) -> None:
        self.reasons["deselected"] += len(items)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self.waiting.update(item.nodeid for item in session.items)

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, ids: Sequence[str]) -> None:
        self.waiting.update(ids)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        tell_main(session.config, deselected=self.reasons["deselected"])

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: object) -> None:
        # Every worker collects everything.
        self.reasons["deselected"] = of_worker(node, "deselected", self.reasons["deselected"])

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
    def pytest_unconfigure(self, config: pytest.Config) -> None:
        if is_worker(config):
            return
        if self.waiting:
            self.reasons["not reached"] += len(self.waiting)
        why = "; ".join(f"{count} {reason}" for reason, count in self.reasons.items() if count)
        print(f"did not run: {self.reasons.total()}" + (f" ({why})" if why else ""), flush=True)


def _reason(longrepr: object) -> str:
    """Return why a test was skipped, from pytest's (path, line, reason)."""
    said = longrepr[2] if isinstance(longrepr, tuple) else str(longrepr)
    return f"skipped, {said.removeprefix('Skipped: ')}"
