"""Signals that come again and again while a server ends."""

import signal
from collections.abc import Callable

from ..processes import Running
from ..rigs import Tally


def test_signals_that_do_not_cease_kill_no_server_that_ends(
    start_server: Callable[..., Running], rounds_of: Callable[[int], int], tally: Tally
) -> None:
    tally.expect("one more signal")
    rounds = rounds_of(40)
    for _ in range(rounds):
        server = start_server()
        server.process.send_signal(signal.SIGTERM)
        while server.process.poll() is None:
            server.process.send_signal(signal.SIGTERM)
            tally.fire("one more signal")
        assert server.process.returncode == 0, server.said()
    tally.round(rounds)
