"""A device of a user: who it is, what it says, and what it is sent."""

import asyncio
from typing import Any, Final, Protocol

import msgspec

from orchestrator.core.errors import OrchestratorError
from orchestrator.ingress import messages
from orchestrator.ingress.forwarding import forward
from orchestrator.ingress.frames import text_frame
from orchestrator.ingress.greeting import Greeted, Lobby
from orchestrator.ingress.messages import Hello, Message
from orchestrator.ingress.missed import Missed
from orchestrator.ingress.problems import Away, Problem
from orchestrator.ingress.tail import Portion, SessionTail
from orchestrator.telemetry import get_logger

log = get_logger(__name__)

POLICY: Final = 1008
"""The close code for a device that may not be here (RFC 6455 §7.4.1)."""
RESTART: Final = 1012
"""The close code for a device that is to come again at once (registered with IANA)."""
FAILED: Final = 1011
"""The close code for a fault of ours (RFC 6455 §7.4.1)."""
RETRY_S: Final = (0.1, 2.0)


class Line(Protocol):
    """The connection of a device, as the device needs it."""

    gone: bool

    def write(self, data: bytes) -> None:
        """Send frames; never waits. A device that does not keep up is cut."""
        ...

    async def drained(self) -> None:
        """Wait until most of what was sent has left."""
        ...

    def close(self, code: int, reason: str) -> None:
        """Say why, and close."""
        ...


class Device:
    """One device: what it says is done in order, what its session brings is sent in order.

    While it is behind, `_missed` sends it what it missed; in step it is sent what all others are.
    """

    def __init__(self, line: Line, lobby: Lobby) -> None:
        self._line = line
        self._lobby = lobby
        self._greeted: Greeted | None = None
        self._tail: SessionTail | None = None
        self._missed: Missed | None = None
        self._ahead: dict[str, int] = {}
        self._catching: asyncio.Task[None] | None = None

    # ------------------------------------------------------------ what it says

    async def take(self, raw: bytes) -> None:
        """Do what one message asks for; what goes wrong is answered."""
        request_id: str | None = None
        run_id: str | None = None
        try:
            request_id = messages.request_of(raw)
            message = messages.read(raw)
            run_id = message.run_id
            await self._do(message)
        except Problem as problem:
            self._tell(problem, request_id, run_id)
        except OrchestratorError as error:
            refused = Problem("invalid_request", error.message, cause=error.code)
            self._tell(refused, request_id, run_id)
        except Exception:
            log.exception("message_failed")
            sentence = "the ingress itself failed; its log has the trace"
            self._tell(Problem("internal_error", sentence), request_id, run_id)

    async def _do(self, message: Message) -> None:
        if isinstance(message, Hello):
            await self._hello(message)
            return
        greeted, tail = self._greeted, self._tail
        if greeted is None or tail is None:
            raise Problem("session_required", "say hello first: it names the session, or makes one")
        answer = await forward(self._lobby.upstream, greeted, tail.bearer, message)
        if answer is not None:
            self.say(answer)

    def say(self, fields: dict[str, Any]) -> None:
        """Send a message of the ingress's own."""
        stamped = {**fields, "ts": self._lobby.world.now()}
        self._line.write(text_frame(msgspec.json.encode(stamped)))

    def _tell(self, problem: Problem, request_id: str | None, run_id: str | None = None) -> None:
        named = {"request_id": request_id, "run_id": run_id}
        self.say(problem.fields() | {name: text for name, text in named.items() if text})
        if problem.final:
            self._line.close(POLICY if problem.code == "unauthorized" else FAILED, problem.code)

    # ------------------------------------------------------------ which session

    async def _hello(self, hello: Hello) -> None:
        self.leave()
        told = False
        wait_s = RETRY_S[0]
        while not self._line.gone:
            try:
                await self._enter(hello)
                return
            except Away as problem:
                self.leave()
                if not told:
                    self._tell(problem, hello.request_id)
                told = True
            except Problem:
                self.leave()
                raise
            await self._lobby.world.sleep(wait_s)
            wait_s = min(wait_s * 2, RETRY_S[1])

    async def _enter(self, hello: Hello) -> None:
        """Greet a device and send what it missed; then it is in step."""
        greeted = await self._lobby.greet(hello)
        tail = await self._lobby.enter(greeted, self)
        if self._line.gone:
            self.leave()
            return
        if self._missed is not None:
            await self._missed.find(greeted.place, hello.last_seq)
        self._greeted = greeted
        self._ack(hello, greeted, tail)
        if self._missed is not None:
            self._catching = self._lobby.start(self._catch_up(self._missed, greeted))

    def entered(self, greeted: Greeted, tail: SessionTail) -> None:
        """Be in a session from now on: what its tail passes on is heard."""
        self._tail = tail
        self._ahead = {}
        self._missed = None
        if greeted.resumes:
            self._missed = Missed(self._lobby.upstream, tail, self._line)

    def _ack(self, hello: Hello, greeted: Greeted, tail: SessionTail) -> None:
        place = tail.place if self._missed is None else self._missed.place
        cursor = tail.cursor_of(place, creator=greeted.creator) or greeted.cursor
        told = {"type": "hello_ack", "session_id": greeted.session_id, "cursor": cursor}
        self.say(told | ({"request_id": hello.request_id} if hello.request_id else {}))

    async def _catch_up(self, missed: Missed, greeted: Greeted) -> None:
        """Send what was missed, however often the orchestrator goes away meanwhile."""
        wait_s = RETRY_S[0]
        while True:
            try:
                self._ahead = await missed.send(creator=greeted.creator)
                self._missed = self._catching = None
                return
            except Away:
                await self._lobby.world.sleep(wait_s)
                wait_s = min(wait_s * 2, RETRY_S[1])
            except Problem as problem:
                self._catching = None
                self.lose(problem)
                return
            except Exception:
                log.exception("replay_failed", session_id=greeted.session_id)
                self._catching = None
                self.leave()
                self._line.close(FAILED, "the ingress itself failed; its log has the trace")
                return

    def leave(self) -> None:
        """Be in no session any more."""
        tail, self._tail = self._tail, None
        catching, self._catching = self._catching, None
        self._greeted = self._missed = None
        if catching is not None:
            catching.cancel()
        if tail is not None:
            self._lobby.leave(tail, self)

    # ------------------------------------------------------------ what it is sent

    def hear(self, portion: Portion) -> None:
        """Take what the session's tail passes on."""
        if self._missed is not None:
            for event, _ in portion.events:
                self._missed.note(event.run_id)
        elif self._greeted is None:
            return
        elif self._ahead:
            self._filter(portion, creator=self._greeted.creator)
        else:
            self._send(portion.frames(creator=self._greeted.creator))

    def reopened(self) -> None:
        """Go back to where the tail is, if ahead of it: the log may have lost what lies between."""
        if self._missed is not None:
            self._missed.doubt()
        elif self._ahead:
            self.leave()
            self._line.close(RESTART, "come again: the orchestrator was away")

    def lose(self, problem: Problem) -> None:
        """Let go of the device: its credential is not good any more, or the ingress's for it."""
        own = self._greeted is not None and self._greeted.token is None
        self.leave()
        if own and problem.code == "unauthorized":
            self._line.close(RESTART, "come again: your session is opened anew")
            return
        self._tell(problem, None)
        self._line.close(POLICY, problem.code)

    def _filter(self, portion: Portion, *, creator: bool) -> None:
        """Send what the device has not had: what it missed was read beyond the tail."""
        fresh: list[bytes] = []
        for event, place in portion.events:
            if event.resets:
                self._ahead.pop(event.run_id, None)
            seq = self._ahead.get(event.run_id, -1)
            if event.seq > seq:
                at = place if event.run_id not in self._ahead and not self._ahead else None
                fresh.append(portion.frame(event, at, creator=creator))
            if event.seq >= seq or event.ends:
                self._ahead.pop(event.run_id, None)
        self._send(b"".join(fresh))

    def _send(self, frames: bytes) -> None:
        if frames:
            self._line.write(frames)
