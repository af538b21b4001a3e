"""Serving: the server itself, with a flag for every variable."""

import sys
from typing import Any, Final

import click
import uvloop

from orchestrator import telemetry
from orchestrator.app import Beside
from orchestrator.app import serve as serve_app
from orchestrator.settings import VARIABLES, Settings, load


def run(settings: Settings, beside: Beside | None = None) -> int:
    """Serve until told to stop; return the exit code."""
    telemetry.configure(settings.log_level, terminal=sys.stderr.isatty())
    code: int = uvloop.run(serve_app(settings, beside=beside))
    return code


def start(**flags: str | None) -> int:
    """Start the server; every option is the environment variable of the same name."""
    given = {name.upper(): value for name, value in flags.items()}
    return run(load(flags=given))


def _options() -> list[click.Parameter]:
    return [
        click.Option([v.flag], metavar="VALUE", help=f"{v.text}  [default: {v.default or 'unset'}]")
        for v in VARIABLES
        if not v.secret  # everybody on the machine sees a command's words
    ]


serve: Final[Any] = click.Command(
    "serve",
    callback=start,
    params=_options(),
    help="Start the server. Every option is also an environment variable: HTTP_PORT=9000.",
)
