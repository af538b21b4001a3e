"""Runs benchmarks: `./orchestrator bench` for all, `./orchestrator bench NAME ...` for some.

Each prints its rows: what was measured, the figure, the bound that we set ourselves. The exit code
is 1 when a bound is broken; bounds are ratios of things measured side by side in this run.
"""

import argparse
import asyncio
import sys
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Final

from bench.report import Row, machine, show, write

NAMES: Final = ("ingress",)


async def run(names: list[str]) -> list[Row]:
    """Run benchmarks one after the other, showing each row as it comes."""
    rows: list[Row] = []
    for name in names:
        with tempfile.TemporaryDirectory(prefix=f"bench-{name}-") as folder:
            async for row in import_module(f"bench.{name}").measure(Path(folder)):
                show(row)
                rows.append(row)
    return rows


def main() -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(prog="orchestrator bench")
    parser.add_argument("names", nargs="*", help=f"of {', '.join(NAMES)}; all without")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows there")
    options = parser.parse_args()
    unknown = set(options.names) - set(NAMES)
    if unknown:
        parser.error(f"there is no {unknown.pop()!r}; there are {', '.join(NAMES)}")
    print(machine())
    rows = asyncio.run(run(options.names or list(NAMES)))
    if options.json:
        write(options.json, rows)
    broken = [row for row in rows if not row.good]
    print(f"{len(rows)} rows, {len(broken)} beyond their bound")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
