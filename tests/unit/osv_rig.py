"""A server that answers as the OSV database does, or as a broken one would."""

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread
from typing import Any, Final

BATCH: Final = "/v1/querybatch"


class FakeOsv:
    """What it knows: ids for each (name, version), a detail for each id; `page` ids come at once.

    `instead` answers a path by status and body, whatever is known. `asked` are the paths that were
    asked for, `sizes` the numbers of queries. A `silent` one answers nothing, a `slow` one without
    end, byte by byte.
    """

    def __init__(self) -> None:
        self.known: dict[tuple[str, str], list[str]] = {}
        self.details: dict[str, dict[str, Any]] = {}
        self.page = 1000
        self.instead: dict[str, tuple[int, bytes]] = {}
        self.asked: list[str] = []
        self.sizes: list[int] = []
        self.silent = False
        self.slow = False
        self.ended = Event()

    def add(self, package: tuple[str, str], name: str, **detail: Any) -> None:
        """Let a package have an advisory."""
        self.known.setdefault(package, []).append(name)
        self.details[name] = {"id": name, "modified": "2026-01-01T00:00:00Z", **detail}

    def answer(self, path: str, body: bytes) -> tuple[int, bytes]:
        """Return status and body."""
        self.asked.append(path)
        if path in self.instead:
            return self.instead[path]
        if path == BATCH:
            queries = json.loads(body)["queries"]
            self.sizes.append(len(queries))
            return 200, json.dumps({"results": [self._result(query) for query in queries]}).encode()
        name = path.removeprefix("/v1/vulns/")
        if name not in self.details:
            return 404, b'{"code":5,"message":"Bug not found."}'
        return 200, json.dumps(self.details[name]).encode()

    def _result(self, query: dict[str, Any]) -> dict[str, Any]:
        assert query["package"]["ecosystem"] == "PyPI"
        ids = self.known.get((query["package"]["name"], query["version"]), [])
        start = int(query.get("page_token", "0"))
        end = start + self.page
        more = {"next_page_token": str(end)} if end < len(ids) else {}
        return {"vulns": [{"id": name} for name in ids[start:end]], **more} if ids else {}

    @contextmanager
    def serving(self) -> Iterator[str]:
        """Serve on a port of loopback; yields the address."""
        fake = self

        class Answers(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                status, text = fake.answer(self.path, body)
                if fake.silent:
                    fake.ended.wait()
                    return
                self.send_response(status)
                self.send_header("Content-Length", str(fake.slow << 40 or len(text)))
                self.end_headers()
                with suppress(OSError):  # the other side may hang up
                    self.wfile.write(text)
                    while fake.slow and not fake.ended.wait(0.01):
                        self.wfile.write(b" ")

            do_POST = do_GET  # noqa: N815  # http.server wants this name

            def log_message(self, *args: Any) -> None:
                """Stay quiet."""

        with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
            serving = Thread(target=server.serve_forever, args=(0.01,))
            serving.start()
            try:
                yield f"http://127.0.0.1:{server.server_port}"
            finally:
                self.ended.set()
                server.shutdown()
                serving.join()
