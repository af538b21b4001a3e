"""What the plugins know of the processes that tests run in side by side (pytest-xdist)."""

from typing import Any

import pytest


def is_worker(config: pytest.Config) -> bool:
    """Return whether this process runs tests for another, which is the one that speaks."""
    return hasattr(config, "workerinput")


def tell_main(config: pytest.Config, **known: object) -> None:
    """Send what a worker knows, as plain values, to the process that speaks when it ends."""
    if is_worker(config):
        config.workeroutput.update(known)  # type: ignore[attr-defined]  # xdist's own


def of_worker(node: object, name: str, otherwise: Any) -> Any:
    """Return what a worker told, or `otherwise` from one that crashed."""
    return getattr(node, "workeroutput", {}).get(name, otherwise)
