"""The smallest ingress: takes every push and writes it to standard output, one JSON per line."""

import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Ingress(BaseHTTPRequestHandler):
    """Answers `POST /internal/send` with 200."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        """Take one push."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/internal/send":
            sys.stdout.write(body.decode() + "\n")
            sys.stdout.flush()
        self.send_response(200 if self.path == "/internal/send" else 404)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Write nothing but the pushes."""


if __name__ == "__main__":
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Ingress).serve_forever()
