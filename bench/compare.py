"""Two reports side by side: what became dearer, what cheaper."""

from collections.abc import Iterator

import msgspec

from bench.report import Report, Row


class Change(msgspec.Struct, frozen=True):
    """One figure in both reports."""

    old: Row
    new: Row

    @property
    def times(self) -> float | None:
        """Return the new figure divided by the old one."""
        if self.old.value and self.new.value is not None:
            return self.new.value / self.old.value
        return None


def changes(old: Report, new: Report) -> Iterator[Change]:
    """Yield the figures that both reports have, in the order of the new one."""
    before = {(row.bench, row.what): row for row in old.rows}
    for row in new.rows:
        if (row.bench, row.what) in before:
            yield Change(before[row.bench, row.what], row)


def show(old: Report, new: Report) -> None:
    """Print what both reports have."""
    print(f"old: {old.machine}\nnew: {new.machine}")
    for change in changes(old, new):
        row = change.new
        times = "–" if change.times is None else f"{change.times:.2f} ×"
        figures = f"{change.old.figure:>14} {row.figure:>14} {times:>10}"
        print(f"{row.mark} {row.bench:<8} {row.what:<66} {figures}")
