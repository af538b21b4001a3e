"""An agent that knows nothing of the orchestrator: any server of /v1/chat/completions is one.

Beside a running `./orchestrator`; the first command goes on, so the others have their own terminal:

    $ python3 examples/openai_agent.py
    $ ./orchestrator agents add parrot http://localhost:8005 --protocol openai
    $ ./orchestrator invoke parrot "Good morning"
    Message 1 of this conversation was: Good morning

vLLM, Ollama and llama.cpp are added likewise, under the name of the model, because the agent's
name is what the request says in `model`. This one is written out to show what such a server gets.
"""

import json
import re
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Model(BaseHTTPRequestHandler):
    """A model that counts the messages of the conversation, and repeats the last one."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        users = [line["content"] for line in asked["messages"] if line["role"] == "user"]
        said = users[-1]
        if not isinstance(said, str):  # a list of parts such as {"type": "text", "text": …}
            said = "".join(part.get("text", "") for part in said)
        answer = f"Message {len(users)} of this conversation was: {said}"
        if asked.get("stream"):
            with suppress(ConnectionError):  # the caller hung up: the run was cancelled
                self.stream(answer)
        else:
            self.begin("application/json")
            message = {"role": "assistant", "content": answer}
            self.wfile.write(json.dumps({"choices": [{"message": message}]}).encode())

    def stream(self, answer: str) -> None:
        words: list[Any] = re.split("(?= )", answer)
        chunks = [{"choices": [{"index": 0, "delta": {"content": word}}]} for word in words]
        self.begin("text/event-stream")
        for chunk in [*chunks, {"choices": [], "usage": {"completion_tokens": len(words)}}]:
            self.wfile.write(f"data: {json.dumps(chunk)}\n\n".encode())
        self.wfile.write(b"data: [DONE]\n\n")

    def begin(self, content_type: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", content_type)
        self.end_headers()


print("parrot answers at http://localhost:8005", flush=True)
with suppress(KeyboardInterrupt):
    ThreadingHTTPServer(("127.0.0.1", 8005), Model).serve_forever()
