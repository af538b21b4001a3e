"""An agent with `/invoke` alone, quick to start and made to be killed: `mortal_agent.py PORT`."""

import socketserver
import sys
import time

_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
_NO = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
_WORDS = 5
_PAUSE_S = 0.01


class Agent(socketserver.StreamRequestHandler):
    """Answers one request in a few words, slowly enough to be killed in the middle."""

    def handle(self) -> None:
        """Read the request and answer it."""
        first, length = self.rfile.readline(), 0
        while (line := self.rfile.readline().strip()) != b"":
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
        self.rfile.read(length)
        if not first.startswith(b"POST"):
            self.wfile.write(_NO)
            return
        self.wfile.write(_HEAD)
        for _ in range(_WORDS):
            self.wfile.write(b'event: delta\ndata: {"text":"word "}\n\n')
            time.sleep(_PAUSE_S)
        self.wfile.write(b"event: done\ndata: {}\n\n")


class Server(socketserver.ThreadingTCPServer):
    """Listens again where one before it was killed."""

    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 256


if __name__ == "__main__":
    Server(("127.0.0.1", int(sys.argv[1])), Agent).serve_forever()
