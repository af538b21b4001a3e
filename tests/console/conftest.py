"""A stage for the tests of the pages."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from .devtools import Tab
from .stage import Stage, staged


@pytest.fixture
async def stage(tmp_path: Path, program: Callable[[str], Path]) -> AsyncIterator[Stage]:
    """Hand out a server without keys, and its agent."""
    async with staged(tmp_path, program("chromium")) as found:
        yield found


@pytest.fixture
async def tab(stage: Stage) -> AsyncIterator[Tab]:
    """Hand out a browser that complains of nothing."""
    async with stage.tab() as found:
        yield found
