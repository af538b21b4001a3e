"""An agent that answers with the bytes of its standard input, after a time of silence.

sample_agent.py PORT [SILENCE_S] < answer
"""

import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Sample(BaseHTTPRequestHandler):
    """Answers `POST /invoke` with the sample."""

    sample = b""
    silence_s = 0.0

    def do_POST(self) -> None:
        """Send the headers, keep quiet, send the sample and close."""
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        time.sleep(self.silence_s)
        self.wfile.write(self.sample)

    def log_message(self, *_: object) -> None:
        """Write nothing."""


if __name__ == "__main__":
    Sample.sample = sys.stdin.buffer.read()
    Sample.silence_s = float(sys.argv[2]) if sys.argv[2:] else 0.0
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Sample).serve_forever()
