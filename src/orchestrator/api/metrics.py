"""The server's numbers, in the Prometheus text format."""

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector, CollectorRegistry
from starlette.responses import Response
from starlette.types import ASGIApp

from orchestrator import telemetry
from orchestrator.api.calls import Call


async def metrics(call: Call) -> ASGIApp:
    """Return the numbers in the Prometheus text format; they are collected only when asked for."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Numbers(call.engine.stats() | telemetry.stats()))
    for histogram in telemetry.DURATIONS.values():
        registry.register(histogram)
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
