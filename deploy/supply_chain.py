"""Tells what the server is made of, and asks whether anything of it is known to be vulnerable.

python -m deploy.supply_chain            write deploy/sbom.cdx.json (CycloneDX 1.6) from the locks
python -m deploy.supply_chain --check    exit 1 when that file is not up to date
python -m deploy.supply_chain audit      ask OSV about every pin: exit 0 when nothing is known,
                                         1 when something is, 3 when it could not be asked
"""

import argparse
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from deploy import audit, bill
from deploy.locks import Problem

ROOT: Final = Path(__file__).resolve().parents[1]
OSV: Final = "https://api.osv.dev"
STALE: Final = 1
REFUSED: Final = 2
NOT_AUDITED: Final = 3


def main(args: list[str] | None = None) -> int:
    """Run one command and return its exit code."""
    asked = _arguments(args)
    if asked.command == "audit":
        return _audit(asked.root, asked.osv)
    try:
        if not asked.check:
            bill.write(asked.root)
        elif not bill.is_current(asked.root):
            _say(f"{bill.SBOM} is out of date: run make sbom")
            return STALE
    except Problem as problem:
        _remark(str(problem))
        return REFUSED
    return 0


def _audit(root: Path, osv: str) -> int:
    today = datetime.now(UTC).date()  # noqa: TID251  # a program of its own, without a World
    try:
        return 1 if audit.audit(root, osv, today, _say) else 0
    except Problem as problem:
        _remark(f"NOT AUDITED: {problem}")
        return NOT_AUDITED


def _arguments(args: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m deploy.supply_chain")
    parser.add_argument("command", nargs="?", choices=["sbom", "audit"], default="sbom")
    parser.add_argument("--check", action="store_true", help="write nothing, exit 1 if it is stale")
    parser.add_argument("--osv", type=_address, default=OSV, help="the OSV server to ask")
    parser.add_argument("--root", type=Path, default=ROOT, help="where the locks are")
    return parser.parse_args(args)


def _address(text: str) -> str:
    try:
        parts = urlsplit(text)
        well = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0
    except ValueError:
        well = False
    if not well:
        raise argparse.ArgumentTypeError(f"{text!r} is no address such as {OSV}")
    return text


def _say(sentence: str) -> None:
    sys.stdout.write(f"{sentence}\n")


def _remark(sentence: str) -> None:
    sys.stderr.write(f"{sentence}\n")


if __name__ == "__main__":
    sys.exit(main())
