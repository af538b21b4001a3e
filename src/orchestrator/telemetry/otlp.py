"""Sends spans to a collector by OTLP/HTTP, on a thread of its own.

The libraries are the extra `otel`; no other file imports them, and this one only when it is wanted.
"""

import logging
from collections.abc import Sequence
from threading import Thread
from typing import Final

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState

from orchestrator.core.trace import Trace
from orchestrator.telemetry import conventions
from orchestrator.telemetry.ended import Ended
from orchestrator.telemetry.logs import get_logger

log = get_logger(__name__)

QUEUE_MAX: Final = 2048
"""How many spans may wait for the collector; what ends meanwhile is dropped and counted."""
EVERY_MS: Final = 1000
"""How long a span waits for others to be sent with it."""
_KINDS: Final = {"run": SpanKind.SERVER, "invoke_agent": SpanKind.CLIENT}
_UNSET: Final = Status(StatusCode.UNSET)
_FAILED: Final = Status(StatusCode.ERROR)
_NS_PER_MS: Final = 1_000_000


class Exporter:
    """Makes spans of ours into OpenTelemetry's and has them sent; never waits, never raises.

    They are made when they are over, with ids that the agent was sent before, so no tracer of the
    library makes them; the rest of the way is the library's.
    """

    def __init__(self, endpoint: str, version: str) -> None:
        self._sender = _Sender(f"{endpoint.rstrip('/')}/v1/traces")
        self._processor = BatchSpanProcessor(
            self._sender,
            max_queue_size=QUEUE_MAX,
            schedule_delay_millis=EVERY_MS,
        )
        self._resource = _resource(version)
        self._scope = InstrumentationScope("orchestrator", version)
        self._taken = self._dropped = 0

    def export(self, ended: Ended, trace: Trace) -> None:
        """Have a span sent, or drop it where too many wait."""
        if self._taken - self._sender.seen >= QUEUE_MAX:
            self._dropped += 1
            return
        try:
            self._processor.on_end(self._made(ended, trace))
        except Exception:  # the border to a library: a span is no reason for a run to fail
            self._dropped += 1
            log.exception("span_not_made", span=ended.name)
        else:
            self._taken += 1

    def _made(self, ended: Ended, trace: Trace) -> ReadableSpan:
        kind = _KINDS.get(ended.name, SpanKind.INTERNAL)
        attributes = conventions.told(ended)
        agent = attributes.get(conventions.AGENT_NAME)
        began = ended.began * _NS_PER_MS
        return ReadableSpan(
            f"{ended.name} {agent}" if agent else ended.name,
            context=_context(trace, trace.span_id),
            parent=_context(trace, trace.parent_id, remote=kind is SpanKind.SERVER),
            resource=self._resource,
            attributes=attributes,
            kind=kind,
            status=_FAILED if ended.error is not None else _UNSET,
            start_time=began,
            end_time=began + int(ended.seconds * 1000 * _NS_PER_MS),
            instrumentation_scope=self._scope,
        )

    def close(self, within_s: float) -> None:
        """Send what waits, for `within_s` at most; what is left then is lost and said."""
        # A thread that the process does not wait for: the collector may hang.
        last = Thread(target=self._processor.shutdown, name="last-spans", daemon=True)
        last.start()
        last.join(within_s)
        left = self._taken - self._sender.seen
        if left:
            log.warning("spans_left_behind", spans=left)
        self._sender.close()

    def stats(self) -> dict[str, float]:
        """Return what became of the spans, for `/metrics`."""
        return {
            "spans_sent_total": float(self._sender.sent),
            "spans_refused_total": float(self._sender.seen - self._sender.sent),
            "spans_dropped_total": float(self._dropped),
        }


class _Sender(SpanExporter):
    """Counts what the collector takes, and says once that it does not and once that it does again.

    The library says why, with every batch: the first time is heard.
    """

    def __init__(self, url: str) -> None:
        self._inner = OTLPSpanExporter(url)
        self._away = False
        self.seen = self.sent = 0
        self._said = logging.getLogger(OTLPSpanExporter.__module__)
        self._said.addFilter(self._news)

    def _news(self, _: logging.LogRecord) -> bool:
        return not self._away

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send a batch; called on the thread of the batches."""
        result = self._inner.export(spans)
        good = result is SpanExportResult.SUCCESS
        self.seen += len(spans)
        self.sent += len(spans) if good else 0
        if good and self._away:
            log.info("spans_taken_again", refused=self.seen - self.sent)
        elif not good and not self._away:
            log.warning("spans_refused", spans=len(spans))
        self._away = not good
        return result

    def shutdown(self) -> None:
        """Send nothing more."""
        self._inner.shutdown()  # type: ignore[no-untyped-call]  # as the library has it

    def close(self) -> None:
        """Let go of the library's log."""
        self._said.removeFilter(self._news)


def _context(trace: Trace, span_id: str | None, *, remote: bool = False) -> SpanContext | None:
    if span_id is None:
        return None
    state = TraceState.from_header([trace.state]) if trace.state else None
    flags = TraceFlags(trace.flags)
    return SpanContext(int(trace.trace_id, 16), int(span_id, 16), remote, flags, state)


def _resource(version: str) -> Resource:
    """Return what all spans have in common; OTEL_SERVICE_NAME and its like are read by the SDK."""
    found = Resource.create({"service.version": version})
    if str(found.attributes["service.name"]).startswith("unknown_service"):
        found = found.merge(Resource({"service.name": "orchestrator"}))
    return found
