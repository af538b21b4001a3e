"""Chatting: a conversation with one agent, turn by turn, in one session."""

import secrets
import shlex
import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Final
from urllib.parse import quote

import click

from orchestrator.cli import options, shapes
from orchestrator.cli.events import follow
from orchestrator.cli.failure import CommandFailed, Exit
from orchestrator.cli.output import Output
from orchestrator.cli.server import Server

PROMPT: Final = "> "


@click.command()
@click.argument("agent")
@click.option("--session", metavar="ID", help="Go on with this conversation.")
@options.as_json
@options.url
def chat(agent: str, session: str | None, json: bool, url: str | None) -> Exit:
    """Talk with AGENT, message by message.

    Ctrl-C during an answer cancels that run and keeps the chat, Ctrl-D leaves it. When standard
    input is no terminal each of its lines is a message, and the exit code is the outcome of the
    first run that did not end well.
    """
    talk = _Chat(options.server(url), agent, session, Output(json=json))
    return talk.with_person() if sys.stdin is not None and sys.stdin.isatty() else talk.with_lines()


class _Chat:
    """A conversation; the session is the first run's where none is named."""

    def __init__(self, server: Server, agent: str, session: str | None, out: Output) -> None:
        self._server = server
        self._agent = agent
        self._session = session
        self._out = out
        self._answered = False
        self._styled = out.terminal and not out.json

    def with_lines(self) -> Exit:
        """Answer every line of standard input."""
        code = Exit.OK
        for text in _lines():
            outcome = self._turn(text)
            code = code or outcome
        return code

    def with_person(self) -> Exit:
        """Answer until the person leaves; what goes wrong with one message ends no chat."""
        if self._styled:
            with suppress(ImportError):
                import readline  # noqa: F401  # input() edits lines with it
        try:
            while (text := self._asked()) is not None:
                if text.strip():
                    self._answer(text)
        finally:
            if self._session is not None:
                words = f"chat {self._agent} --session {shlex.quote(self._session)}"
                self._out.remark(f"go on: ./orchestrator {words}")
        return Exit.OK

    def _asked(self) -> str | None:
        """Return what the person types, None when they leave; Ctrl-C drops a line begun."""
        while True:
            try:
                return _typed() if self._styled else _typed_beside()
            except EOFError:
                self._out.remark("")
                return None
            except KeyboardInterrupt:
                self._out.remark("\nCtrl-D leaves")

    def _answer(self, text: str) -> None:
        try:
            self._turn(text)
        except KeyboardInterrupt:
            return  # what became of the run was said, if one had begun
        except CommandFailed as problem:
            if not self._answered:
                raise
            self._out.remark(problem.message, "red")
            if problem.hint:
                self._out.remark(f"  {problem.hint}")

    def _turn(self, text: str) -> Exit:
        """Run the agent once and show its answer; Ctrl-C cancels the run, and is raised."""
        body: dict[str, Any] = {
            "agent_id": self._agent,
            "input_message": {"role": "user", "content": text},
            "request_id": f"chat_{secrets.token_hex(16)}",
        }
        if self._session is not None:
            body["session_id"] = self._session
        run_id = ""
        try:
            run_id = self._begun(body)
            return follow(self._server.events(run_id), self._out, talk=True)
        except KeyboardInterrupt:
            self._cancel(run_id, body)
            raise

    def _begun(self, body: dict[str, Any]) -> str:
        """Return the run that the message began; the same message again is the same run."""
        run = self._server.post("/v1/runs", body, shapes.Run)
        self._session, self._answered = run["session_id"], True
        return str(run["run_id"])

    def _cancel(self, run_id: str, body: dict[str, Any]) -> None:
        """End the run; where its id had not come yet, it is asked for first."""
        try:
            path = f"/v1/runs/{quote(run_id or self._begun(body), safe='')}:cancel"
            self._server.post(path, {"reason": "Ctrl-C"})
        except CommandFailed as problem:
            self._out.remark(f"not cancelled: {problem.message}", "red")
        except KeyboardInterrupt:
            self._out.remark("not cancelled: there was no answer yet; the run may go on", "red")
            raise
        else:
            self._out.remark("cancelled", "yellow")


def _lines() -> Iterator[str]:
    """Yield the lines of standard input that say something, as they come."""
    if sys.stdin is None:
        raise CommandFailed("standard input is closed", hint="write one message on each line of it")
    for line in sys.stdin.buffer:
        text = options.text_of(line, "a line of standard input").rstrip("\r\n")
        if text.strip():
            yield text


def _typed() -> str:
    return _text(input(PROMPT))


def _typed_beside() -> str:
    """Return a line typed while standard output goes elsewhere, so the prompt does not."""
    sys.stderr.write(PROMPT)
    sys.stderr.flush()
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return _text(line.rstrip("\n"))


def _text(typed: str) -> str:
    """Return what was typed; bytes that are no text come as unpaired surrogates."""
    return typed.encode("utf-8", "replace").decode()
