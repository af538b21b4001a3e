"""Runs benchmarks: `./orchestrator bench` for all, `./orchestrator bench NAME ...` for some.

Each prints its rows: what was measured, the figure, the bound that we set ourselves. The exit code
is 1 when a bound is broken. `./orchestrator bench compare OLD.json [NEW.json]` puts two stored
reports side by side.
"""

import argparse
import sys
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Final

from bench.report import QUICK, Report, Row, Size, machine, show, write
from bench.rig import Rig, many_descriptors
from tests.processes import ROOT

NAMES: Final = ("paced", "burst", "churn", "held", "stalled", "replay", "start", "ingress")


def run(names: list[str], size: Size, checkout: Path) -> list[Row]:
    """Run benchmarks one after the other, showing each row as it comes."""
    rows: list[Row] = []
    for name in names:
        with (
            tempfile.TemporaryDirectory(prefix=f"bench-{name}-") as folder,
            Rig(folder, checkout) as rig,
        ):
            for row in import_module(f"bench.{name}").measure(rig, size):
                show(row)
                rows.append(row)
    return rows


def main(arguments: list[str]) -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(prog="orchestrator bench", description=__doc__)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(NAMES)}; all without")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows there")
    parser.add_argument("--quick", action="store_true", help="one short round of each")
    parser.add_argument(
        "--of", type=Path, default=ROOT, metavar="CHECKOUT", help="measure the server found there"
    )
    options = parser.parse_args(arguments)
    unknown = set(options.names) - set(NAMES)
    if unknown:
        parser.error(f"there is no {unknown.pop()!r}; there are {', '.join(NAMES)}")
    many_descriptors()
    report = Report(machine(), [])
    print(report.machine)
    size = QUICK if options.quick else Size()
    report.rows += run(options.names or list(NAMES), size, options.of.resolve())
    if options.json:
        write(options.json, report)
    broken = [row for row in report.rows if not row.good]
    print(f"{len(report.rows)} rows, {len(broken)} beyond their bound")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
