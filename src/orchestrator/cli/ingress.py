"""The ingress: the process that holds the users' devices, with a flag for every variable."""

import asyncio
import errno
import os
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import click

from orchestrator.cli import ports
from orchestrator.cli.failure import CommandFailed
from orchestrator.settings import INGRESS_VARIABLES, load_ingress


def start(*, until_eof: bool = False, **flags: str | None) -> int:
    """Start the ingress; every option is the environment variable of the same name.

    With `until_eof` it ends with its standard input, so that it never outlives who started it, and
    writes its address to standard output once it is up.
    """
    import uvloop

    from orchestrator import telemetry

    settings = load_ingress(flags={name.upper(): value for name, value in flags.items()})
    telemetry.configure(settings.log_level, terminal=sys.stderr.isatty())
    code: int = uvloop.run(_serve(settings, until_eof=until_eof))
    return code


async def _serve(settings: Any, *, until_eof: bool) -> int:
    from orchestrator.clients.streaming import StreamingClient
    from orchestrator.guards.egress import EgressGuard
    from orchestrator.ingress import serve
    from orchestrator.telemetry import get_logger
    from orchestrator.world import RealWorld

    log = get_logger(__name__)
    world = RealWorld()
    egress = EgressGuard(loopback=True)  # the orchestrator may be on this machine
    with _listening(settings.ws_host, settings.ws_port) as sockets:
        port = sockets[0].getsockname()[1]

        def ready() -> None:
            host = settings.ws_host or "localhost"
            told = f"[{host}]" if ":" in host else host
            url = f"ws://{told}:{port}/ws"
            if until_eof:
                click.echo(url)
            log.info("listening", url=url, orchestrator=settings.orchestrator_url)

        if until_eof:
            asyncio.get_running_loop().add_reader(sys.stdin.fileno(), _end_at_eof)
        async with StreamingClient(world, egress) as http:
            return await serve(settings, http, world, sockets, ready)


def _end_at_eof() -> None:
    if not os.read(sys.stdin.fileno(), 1024):
        asyncio.get_running_loop().remove_reader(sys.stdin.fileno())
        signal.raise_signal(signal.SIGTERM)


@contextmanager
def _listening(host: str | None, port: int) -> Iterator[list[socket.socket]]:
    """Bind the address, or both loopbacks; raises CommandFailed for one that is taken."""
    sockets: list[socket.socket] = []
    try:
        for address in (host,) if host else ("127.0.0.1", "::1"):
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            try:
                sockets.append(socket.create_server((address, port), family=family))
            except OSError as error:
                if sockets and error.errno != errno.EADDRINUSE:
                    continue  # a machine without IPv6
                raise _refused(address, port, error) from error
            port = sockets[0].getsockname()[1]
        yield sockets
    finally:
        for bound in sockets:
            bound.close()


def _refused(address: str, port: int, error: OSError) -> CommandFailed:
    if error.errno != errno.EADDRINUSE:
        told = f"cannot listen on {address}:{port}: {error.strerror}"
        return CommandFailed(told, hint="WS_HOST takes an address of this machine")
    owner = ports.owner_of(port)
    return CommandFailed(
        f"port {port} is in use{f'; {owner} has it' if owner else ''}",
        hint=f"stop that, or take another port: WS_PORT={ports.next_free(port)} "
        "./orchestrator ingress",
    )


def _options() -> list[click.Parameter]:
    told = [
        click.Option([v.flag], metavar="VALUE", help=f"{v.text}  [default: {v.default or 'unset'}]")
        for v in INGRESS_VARIABLES
        if not v.secret  # everybody on the machine sees a command's words
    ]
    return [*told, click.Option(["--until-eof"], is_flag=True, hidden=True)]


ingress: Final[Any] = click.Command(
    "ingress",
    callback=start,
    params=_options(),
    help="Start the ingress, which holds the users' devices by WebSocket. Every option is also an "
    "environment variable: WS_PORT=9090.",
)
