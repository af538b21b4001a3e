"""What the rigs of this folder share."""

from collections.abc import Iterator

import pytest

from .calls import DRIVERS, Chosen


@pytest.fixture(params=sorted(DRIVERS))
def driver(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run the test with each of our HTTP clients in turn."""
    before, Chosen.name = Chosen.name, request.param
    yield Chosen.name
    Chosen.name = before
