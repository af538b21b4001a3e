"""An agent without any SDK: the standard library, HTTP, and server-sent events.

Beside a running `./orchestrator`, in two terminals:

    $ python3 examples/plain_agent.py
    $ ./orchestrator invoke backwards "one two three"
    three two one

docs/connect-your-agent.md has the other frames, and examples/demo_agent.py shows more of them.
"""

import json
import os
import re
import urllib.request
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

ORCHESTRATOR = os.environ.get("ORCHESTRATOR_URL", "http://localhost:8080")
CARD = {"agent_id": "backwards", "name": "Backwards", "endpoint": "http://localhost:8008"}


class Agent(BaseHTTPRequestHandler):
    """Says the words of a message in the other order, one by one."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        content = asked["input_message"]["content"]
        if not isinstance(content, str):  # a list of parts such as {"type": "text", "text": …}
            content = "".join(part.get("text", "") for part in content)
        answer = " ".join(reversed(content.split()))
        self.begin("text/event-stream")
        with suppress(ConnectionError):  # the caller hung up: the run was cancelled
            for piece in re.split("(?= )", answer):
                self.say("delta", {"text": piece})
            self.say("done", {"final_message": answer})

    def do_GET(self) -> None:
        self.begin("application/json")
        self.wfile.write(b'{"status": "healthy"}')

    def begin(self, content_type: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", content_type)
        self.end_headers()

    def say(self, event: str, data: dict[str, str]) -> None:
        self.wfile.write(f"event: {event}\ndata: {json.dumps(data)}\n\n".encode())


server = ThreadingHTTPServer(("127.0.0.1", 8008), Agent)
headers = {"Content-Type": "application/json"}
if key := os.environ.get("ORCHESTRATOR_KEY"):
    headers["Authorization"] = f"Bearer {key}"
register = f"{ORCHESTRATOR}/v1/agents/register"
urllib.request.urlopen(urllib.request.Request(register, json.dumps(CARD).encode(), headers))
print(f"backwards answers at {CARD['endpoint']}", flush=True)
with suppress(KeyboardInterrupt):
    server.serve_forever()
