"""A collector of spans: a real OTLP/HTTP receiver on a free port of 127.0.0.1."""

import select
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue

WAIT_S = 20


class Seen(NamedTuple):
    """A span as the collector got it; ids are in hex, times in nanoseconds."""

    name: str
    trace_id: str
    span_id: str
    parent_id: str
    kind: str
    failed: bool
    began: int
    ended: int
    state: str
    attributes: dict[str, Any]
    resource: dict[str, Any]


class Collector:
    """What came in; `status` is what it answers, which it does while `hold` is set."""

    def __init__(self) -> None:
        self.spans: list[Seen] = []
        self.paths: list[str] = []
        self.status = 200
        self.hold = threading.Event()
        self.hold.set()
        self.changed = threading.Condition()
        self.url = ""
        self._asking: set[socket.socket] = set()

    def until(self, condition: Callable[[], object]) -> None:
        """Return once `condition` holds; it is looked at whenever something came, and often."""
        looks = WAIT_S * 100
        with self.changed:
            while not condition():
                assert (looks := looks - 1), f"it never came true with {len(self.spans)} spans"
                self.changed.wait(0.01)

    def named(self, prefix: str) -> list[Seen]:
        """Return the spans whose name begins so, in the order of their beginning."""
        found = [span for span in self.spans if span.name.startswith(prefix)]
        return sorted(found, key=lambda span: span.began)

    def waiting(self) -> int:
        """Return how many requests are unanswered whose senders are still there."""
        return sum(not select.select([one], [], [], 0)[0] for one in tuple(self._asking))

    def take(self, path: str, body: bytes, peer: socket.socket) -> int:
        """Take a request and return the status of its answer."""
        with self.changed:
            self.paths.append(path)
            self._asking.add(peer)
            self.changed.notify_all()
        self.hold.wait(WAIT_S)
        with self.changed:
            self._asking.discard(peer)
            if self.status == 200:
                self.spans += _spans(body)
            self.changed.notify_all()
            return self.status


@contextmanager
def collecting() -> Iterator[Collector]:
    """Run a collector until the block ends."""
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            status = collector.take(self.path, body, self.connection)
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    collector.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield collector
    finally:
        collector.hold.set()
        server.shutdown()
        thread.join()
        server.server_close()


def _spans(body: bytes) -> Iterator[Seen]:
    for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
        common = _plain(resource.resource.attributes)
        for scope in resource.scope_spans:
            for span in scope.spans:
                yield Seen(
                    name=span.name,
                    trace_id=span.trace_id.hex(),
                    span_id=span.span_id.hex(),
                    parent_id=span.parent_span_id.hex(),
                    kind=type(span).SpanKind.Name(span.kind).removeprefix("SPAN_KIND_"),
                    failed=span.status.code == span.status.STATUS_CODE_ERROR,
                    began=span.start_time_unix_nano,
                    ended=span.end_time_unix_nano,
                    state=span.trace_state,
                    attributes=_plain(span.attributes),
                    resource=common,
                )


def _plain(pairs: Iterable[KeyValue]) -> dict[str, Any]:
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(one: AnyValue) -> Any:
    return getattr(one, one.WhichOneof("value") or "string_value")
