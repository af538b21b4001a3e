"""A real browser for tests: pages of a site of the test's own, which tell it what they saw."""

import os
import queue
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import msgspec

from ..processes import STOP_S, spawn

QUIET = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-extensions", "--password-store=basic", "--enable-logging=stderr",
)  # fmt: skip
TOLD_S = 60.0


@dataclass
class Site:
    """A web site: `pages` by path; what pages POST to it waits in `told`."""

    url: str = ""
    pages: dict[str, str] = field(default_factory=dict)
    told: queue.Queue[Any] = field(default_factory=queue.Queue)

    def hear(self, timeout_s: float = TOLD_S) -> Any:
        """Return the next thing that a page has told."""
        return self.told.get(timeout=timeout_s)


@contextmanager
def site() -> Iterator[Site]:
    """Serve a site on a free port of this machine."""
    served = Site()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            page = served.pages.get(self.path.partition("?")[0])
            self.send_response(404 if page is None else 200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            self.wfile.write((page or "").encode())

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            served.told.put(msgspec.json.decode(body))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    served.url = f"http://127.0.0.1:{server.server_port}"
    serving = threading.Thread(target=server.serve_forever, daemon=True)
    serving.start()
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()
        serving.join(STOP_S)


@contextmanager
def browsing(program: Path, url: str, folder: Path) -> Iterator[Path]:
    """Show a page in a browser without a window; hands out what the browser logs."""
    log = folder / "browser.log"
    command = [str(program), *QUIET, f"--user-data-dir={folder / 'profile'}", url]
    process = spawn(command, folder, log, {}, start_new_session=True)
    try:
        yield log
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # it is many processes, all of this group
        process.wait(STOP_S)


def page(script: str, known: Mapping[str, Any]) -> str:
    """Return a page that runs a module; it has `known` and `tell(value)`, also told on errors."""
    return f"""<!doctype html><meta charset="utf-8"><title>A page of a test</title>
<script>
const known = {msgspec.json.encode(known).decode()};
const tell = (value) => fetch("/told", {{ method: "POST", body: JSON.stringify(value) }});
addEventListener("error", (event) => tell({{ error: String(event.message || event.target.src) }}));
addEventListener("unhandledrejection", (event) => tell({{ error: String(event.reason) }}));
</script>
<script type="module">{script}</script>"""
