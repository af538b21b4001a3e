"""A stage for the examples, and the Node that the JavaScript SDK is tested with."""

from collections.abc import Iterator

import pytest

from ..sdk.test_js import node
from .stage import Stage, stage

__all__ = ["node", "playing"]


@pytest.fixture(scope="module")
def playing(tmp_path_factory: pytest.TempPathFactory, server: str, node: str) -> Iterator[Stage]:
    """Hand out a stage beside a server, on which the tests of a module play together."""
    with stage(tmp_path_factory.mktemp("stage"), node, server) as here:
        yield here
