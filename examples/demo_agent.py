"""A whole agent in one file: what it must do, and a few things that agents sometimes do.

An agent is an HTTP server with one route. `POST /invoke` brings the user's message and the
conversation before it as JSON; the answer is a stream of server-sent events, each with a name
and JSON data: `delta {text}` is a piece of the answer, `state {state, detail?}` says what the
agent is doing, `error {code, message}` that it gave up, and `done {final_message?, usage?}` ends
the stream. That is all a new agent needs to know. `GET /health` is optional, but good manners.
"""

import argparse
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

Frame = tuple[str, dict[str, Any]]


class Invocation(NamedTuple):
    """What one request asks of the agent."""

    text: str  # the user's message
    earlier: list[dict[str, Any]]  # the conversation before it: {"role": …, "content": …}
    attempt: int  # 2 and more when an earlier attempt at the same run was lost
    wait_for_hang_up: Callable[[], object]


def number_in(text: str, otherwise: int) -> int:
    """Return the number in a message such as `count 5`."""
    return next((int(word) for word in text.split() if word.isdecimal()), otherwise)


def say(text: str, pause_s: float = 0.03) -> Iterator[Frame]:
    """Say a text word by word, so slowly that one can watch it grow."""
    for word in text.split(" "):
        yield "delta", {"text": f"{word} "}
        time.sleep(pause_s)


def greet(invocation: Invocation) -> Iterator[Frame]:
    """Echo what was said."""
    yield from say(f"Hello! You said: “{invocation.text}”. I am the demo agent.")
    yield from say("My words reach you one at a time. Say “help” to see what else I can do.")


def show_help(_: Invocation) -> Iterator[Frame]:
    """Show this list."""
    yield "delta", {"text": "Begin your message with one of these words:\n"}
    for word, behave in BEHAVIOURS.items():
        yield "delta", {"text": f"  {word:9}{behave.__doc__}\n"}


def count(invocation: Invocation) -> Iterator[Frame]:
    """Count as fast as possible: count 1000."""
    for number in range(1, number_in(invocation.text, 10) + 1):
        yield "delta", {"text": f"{number} "}


def slow(invocation: Invocation) -> Iterator[Frame]:
    """Say one word each second: slow 20."""
    yield from say("tick " * (number_in(invocation.text, 5) - 1) + "done", pause_s=1)


def think(_: Invocation) -> Iterator[Frame]:
    """Tell what I am doing before I answer."""
    for step in ("reading the question", "looking for an answer", "choosing the words"):
        yield "state", {"state": "thinking", "detail": step}
        time.sleep(0.3)
    yield from say("I thought about it in three steps, and you saw each of them.")


def remember(invocation: Invocation) -> Iterator[Frame]:
    """Repeat what you told me earlier in this session."""
    said = [f"“{line['content']}”" for line in invocation.earlier if line["role"] == "user"]
    yield from say(f"You told me: {', '.join(said)}." if said else "You told me nothing yet.")


def own_event(_: Invocation) -> Iterator[Frame]:
    """Send an event that only I know; the log keeps it as it is."""
    yield "weather", {"place": "here", "degrees": 21.5, "clouds": ["few", "high"]}
    yield from say("I sent an event of my own: look for `agent_event` in the log.")


def fail(_: Invocation) -> Iterator[Frame]:
    """Report an error after a few words."""
    yield from say("I am trying, but")
    yield "error", {"code": "demo_failure", "message": "the demo agent was asked to fail"}


def crash(_: Invocation) -> Iterator[Frame]:
    """Hang up in the middle of a sentence."""
    yield from say("I was just about to")
    raise ConnectionAbortedError


def flaky(invocation: Invocation) -> Iterator[Frame]:
    """Hang up at the first attempt, answer at the second."""
    yield from crash(invocation) if invocation.attempt == 1 else say("Here I am, at last.")


def hang(invocation: Invocation) -> Iterator[Frame]:
    """Say nothing until you lose patience."""
    invocation.wait_for_hang_up()
    yield from ()


BEHAVIOURS: dict[str, Callable[[Invocation], Iterator[Frame]]] = {
    "help": show_help,
    "count": count,
    "slow": slow,
    "think": think,
    "remember": remember,
    "json": own_event,
    "fail": fail,
    "crash": crash,
    "flaky": flaky,
    "hang": hang,
}


def answer(invocation: Invocation) -> Iterator[Frame]:
    """Hand out the frames of one answer: those of the chosen behaviour, then `done`."""
    first_word = invocation.text.strip().partition(" ")[0].lower()
    said: list[str] = []
    for event, data in BEHAVIOURS.get(first_word, greet)(invocation):
        yield event, data
        if event == "error":
            return
        if event == "delta":
            said.append(data["text"])
    yield "done", {"final_message": "".join(said).strip(), "usage": {"tokens": len(said)}}


class Handler(BaseHTTPRequestHandler):
    """HTTP around `answer`."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Answer `GET /health`."""
        self.begin("/health", "application/json")
        self.wfile.write(b'{"status": "healthy", "version": "1", "capabilities": ["demo"]}')

    def do_POST(self) -> None:
        """Answer `POST /invoke` with a stream; a caller who hangs up has cancelled it."""
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        try:
            invocation = self.understand(json.loads(body))
        except (ValueError, KeyError, TypeError, AttributeError) as problem:
            self.send_error(400, "Not an invocation", repr(problem))
            return
        self.begin("/invoke", "text/event-stream")
        with suppress(ConnectionError):
            for event, data in answer(invocation):
                frame = f"event: {event}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n"
                self.wfile.write(frame.encode())

    def begin(self, path: str, content_type: str) -> None:
        """Begin an answer, which ends where the connection ends."""
        self.send_response(200 if self.path == path else 404)
        self.send_header("Content-Type", content_type)
        self.send_header("Connection", "close")
        self.end_headers()

    def understand(self, body: dict[str, Any]) -> Invocation:
        """Take what we need from the request; its other fields may be ignored."""
        content = body["input_message"]["content"]
        if not isinstance(content, str):  # a list of parts such as {"type": "text", "text": …}
            content = "".join(part.get("text", "") for part in content)
        attempt, hang_up = int(self.headers.get("X-Attempt", 1)), partial(self.connection.recv, 1)
        return Invocation(content, body.get("messages", []), attempt, hang_up)

    def log_message(self, *_: object) -> None:
        """Keep quiet: whoever started us may be showing an answer on this terminal."""


def main() -> None:
    """Serve until Ctrl-C or, with --until-eof, until standard input is closed."""
    parser = argparse.ArgumentParser(description="An agent to try things out with.")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 for every address")
    parser.add_argument("--port", type=int, default=8000, help="0 takes any free port")
    parser.add_argument("--until-eof", action="store_true", help="stop when stdin is closed")
    options = parser.parse_args()
    ThreadingHTTPServer.request_queue_size = 128  # many may call in the same moment
    server = ThreadingHTTPServer((options.host, options.port), Handler)
    print(f"http://{options.host}:{server.server_port}", flush=True)
    serving = threading.Thread(target=server.serve_forever, daemon=True)
    serving.start()
    with suppress(KeyboardInterrupt):
        sys.stdin.read() if options.until_eof else serving.join()


if __name__ == "__main__":
    main()
