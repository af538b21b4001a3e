"""Whether the server lives, whether it may get traffic, and its numbers."""

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector, CollectorRegistry
from starlette.responses import Response
from starlette.types import ASGIApp

from orchestrator.api.calls import Call
from orchestrator.api.problems import json_response
from orchestrator.api.shapes import HealthAnswer

_UNAVAILABLE = 503


async def health(call: Call) -> ASGIApp:
    """Say whether commits reach the disk."""
    found = await call.engine.health()
    answer = HealthAnswer(
        status="healthy" if found.healthy else "unhealthy",
        version=call.settings.version,
        draining=found.draining,
        problems=found.problems,
    )
    return json_response(answer, 200 if found.healthy else _UNAVAILABLE)


async def live(call: Call) -> ASGIApp:
    """Say that the process turns."""
    return json_response(HealthAnswer(status="healthy", version=call.settings.version))


async def ready(call: Call) -> ASGIApp:
    """Say whether the server may get new work."""
    found = await call.engine.health()
    good = found.healthy and not found.draining
    answer = HealthAnswer(
        status="ready" if good else "not_ready",
        version=call.settings.version,
        draining=found.draining,
        problems=found.problems,
    )
    return json_response(answer, 200 if good else _UNAVAILABLE)


async def metrics(call: Call) -> ASGIApp:
    """Return the numbers in the Prometheus text format; they are collected only when asked for."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Numbers(call.engine.stats()))
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)


class _Numbers(Collector):
    """Plain numbers as metrics: names that end in `_total` are counters."""

    def __init__(self, numbers: dict[str, float]) -> None:
        self._numbers = numbers

    def collect(self) -> list[CounterMetricFamily | GaugeMetricFamily]:
        """Return one metric per number."""
        return [_metric(f"orchestrator_{name}", value) for name, value in self._numbers.items()]


def _metric(name: str, value: float) -> CounterMetricFamily | GaugeMetricFamily:
    kind = CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily
    metric = kind(name, name.replace("_", " "))
    metric.add_metric([], value)
    return metric
