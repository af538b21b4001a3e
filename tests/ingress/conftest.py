"""What the tests of the ingress share."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from ..processes import Running
from .rig import ingress_process


@pytest.fixture
def start_ingress(tmp_path: Path) -> Iterator[Callable[..., Running]]:
    """Hand out a function that starts an ingress before the server at an address."""
    with ExitStack() as stack:

        def start(orchestrator: str, **env: str) -> Running:
            return stack.enter_context(ingress_process(tmp_path, orchestrator, **env))

        yield start
