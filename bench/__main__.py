"""Runs benchmarks: `./orchestrator bench` for all, `./orchestrator bench NAME ...` for some.

Each prints its rows: what was measured, the figure, the bound that we set ourselves. The exit code
is 1 when a bound is broken. `./orchestrator bench compare OLD.json [NEW.json]` shows two reports
side by side, measuring now where there is no second one.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Final

from bench import compare
from bench.page import renew
from bench.picture import draw
from bench.report import QUICK, Report, Row, Size, machine, read, show, write
from bench.rig import Neighbours, Rig, many_descriptors
from tests.processes import ROOT

NAMES: Final = (
    "paced", "burst", "churn", "held", "stalled", "replay", "start", "ingress", "devices", "stores",
    "heartbeats",
)  # fmt: skip


def measured(names: list[str], size: Size, checkout: Path) -> Report:
    """Run benchmarks one after the other, showing each row as it comes."""
    many_descriptors()
    report = Report(machine(), [])
    print(report.machine)
    for name in names:
        neighbours = Neighbours()
        try:
            for row in _rows(name, size, checkout):
                show(row)
                report.rows.append(row)
        except RuntimeError as problem:
            print(f"{name} could not be measured to its end: {problem}", flush=True)
            report.unfinished.append(name)
        others = Row(name, "taken by other programs meanwhile", neighbours.processors(), "CPUs")
        show(others)
        report.rows.append(others)
    return report


def _rows(name: str, size: Size, checkout: Path) -> Iterator[Row]:
    with (
        tempfile.TemporaryDirectory(prefix=f"bench-{name}-") as folder,
        Rig(folder, checkout) as rig,
    ):
        yield from import_module(f"bench.{name}").measure(rig, size)


def main(arguments: list[str]) -> int:
    """Do what the command line asks for."""
    parser = argparse.ArgumentParser(prog="orchestrator bench", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("names", nargs="*", help=f"of {', '.join(NAMES)}; all without")
    parser.add_argument("--quick", action="store_true", help="one short round of each")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows there")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="also draw the bounds as SVG")
    parser.add_argument("--page", type=Path, metavar="FILE", help="also renew its table of figures")
    parser.add_argument(
        "--of", type=Path, default=ROOT, metavar="CHECKOUT", help="measure the server found there"
    )
    options = parser.parse_args(arguments)
    if options.names[:1] == ["compare"]:
        report = _compared(parser, options)
    else:
        report = _measured(parser, options, options.names or list(NAMES))
    if options.json:
        write(options.json, report)
    if options.picture:
        options.picture.write_text(draw(report))
    if options.page:
        renew(options.page, report)
    broken = [row for row in report.rows if not row.good]
    print(
        f"{len(report.rows)} rows, {len(broken)} beyond their bound",
        *report.unfinished,
        sep="\nnot measured: ",
    )
    return 1 if broken or report.unfinished else 0


def _measured(
    parser: argparse.ArgumentParser, options: argparse.Namespace, names: list[str]
) -> Report:
    unknown = set(names) - set(NAMES)
    if unknown:
        parser.error(f"there is no {unknown.pop()!r}; there are {', '.join(NAMES)}")
    return measured(names, QUICK if options.quick else Size(), options.of.resolve())


def _compared(parser: argparse.ArgumentParser, options: argparse.Namespace) -> Report:
    """Show two reports side by side; return the newer one."""
    files = [Path(name) for name in options.names[1:]]
    if not 1 <= len(files) <= 2:
        parser.error("compare takes one report or two: compare OLD.json [NEW.json]")
    old = read(files[0])
    names = list(dict.fromkeys(row.bench for row in old.rows))
    new = read(files[1]) if files[1:] else _measured(parser, options, names)
    compare.show(old, new)
    return new


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
