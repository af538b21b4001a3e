"""Who in the process wants to know of spans: a log at `debug`, a collector."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from orchestrator.core.errors import SettingsInvalid

if TYPE_CHECKING:
    from orchestrator.telemetry.otlp import Exporter

FLUSH_S: Final = 2.0
"""How long the last spans may take when the process stops."""
REQUIRED: Final = ("opentelemetry-sdk>=1.45", "opentelemetry-exporter-otlp-proto-http>=1.45")
"""What the extra `otel` installs."""


class _Process:
    """What there is once in a process, as there is one set of log lines."""

    debug = False
    exporter: "Exporter | None" = None


PROCESS: Final = _Process()


def heard() -> bool:
    """Return whether spans go anywhere; their durations are counted in any case."""
    return PROCESS.debug or PROCESS.exporter is not None


@contextmanager
def exporting(endpoint: str | None, *, version: str) -> Iterator[None]:
    """Send the spans that end meanwhile to an OTLP/HTTP collector; without `endpoint` none are.

    `endpoint` is its address without `/v1/traces`. Leaving waits 2 s at most until the last spans
    are there. Raises SettingsInvalid when the libraries for it are not installed.
    """
    if endpoint is None:
        yield
        return
    exporter = PROCESS.exporter = _open(endpoint, version)
    try:
        yield
    finally:
        PROCESS.exporter = None
        exporter.close(FLUSH_S)


def stats() -> dict[str, float]:
    """Return how many spans were sent, refused and dropped; nothing while none are sent."""
    return {} if PROCESS.exporter is None else PROCESS.exporter.stats()


def _open(endpoint: str, version: str) -> "Exporter":
    try:
        from orchestrator.telemetry.otlp import Exporter  # noqa: PLC0415  # only where it is wanted
    except ImportError as error:
        command = " ".join([sys.executable, "-m pip install", *(f"'{one}'" for one in REQUIRED)])
        raise SettingsInvalid(
            f"OTEL_EXPORTER_OTLP_ENDPOINT is set, and what sends spans is not installed ({error}); "
            f"run `{command}`, or unset it"
        ) from error
    return Exporter(endpoint, version)
