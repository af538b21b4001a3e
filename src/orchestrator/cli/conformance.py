"""Whether an agent keeps to the agent protocol: rule by rule, with the real client."""

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from orchestrator.core.errors import AgentFailure
from orchestrator.core.frames import ENDING, Delta, Done, Failed, Frame
from orchestrator.core.secret import Secret
from orchestrator.ports import AgentCall, AgentClient, AgentProbe

MANY: Final = 4
TRACE: Final = "00-" + "1".rjust(32, "0") + "-" + "1".rjust(16, "0") + "-01"


class Verdict(msgspec.Struct, frozen=True):
    """One rule of the contract; `good` None says that it could not be tried or is only a hint."""

    rule: str
    good: bool | None
    said: str = ""
    fix: str = ""


@dataclass
class Answer:
    """What one invocation brought."""

    frames: list[Frame] = field(default_factory=list)
    begun: bool = False
    batches: int = 0
    first_ms: int | None = None
    failure: AgentFailure | None = None

    @property
    def code(self) -> str:
        """Return the code of its failure; one that hung up without a word broke an earlier step."""
        if self.failure is None:
            return ""
        silent = self.failure.code == "agent_eof" and not self.begun
        return _NO_ANSWER if silent else self.failure.code

    @property
    def text(self) -> str:
        """Return the joined deltas."""
        return "".join(frame.text for frame in self.frames if isinstance(frame, Delta))


_NO_ANSWER: Final = "no answer"
_STEPS: Final = (
    (
        "POST {path} can be reached",
        ("agent_unavailable",),
        "start the agent, or correct the URL; it is called at {url}",
    ),
    (
        "it answers 200 and does not redirect",
        ("agent_status", _NO_ANSWER),
        "answer an invocation with 200; a refusal belongs into an `error` event",
    ),
    (
        "it answers with {type}, uncompressed, in well-formed events",
        ("agent_protocol",),
        "send `Content-Type: {type}`; delta, state, done, error and pause carry JSON objects",
    ),
    (
        "it answers in time",
        ("agent_timeout",),
        "send a comment line (`:`) while there is nothing to say, and end at last",
    ),
    (
        "its answer ends with done, error or pause",
        ("agent_eof",),
        'close with `event: done` and `data: {{"final_message": "…"}}`',
    ),
)
"""The steps of an invocation in their order, the failure codes that mean each, and the fix."""

_HEALTH: Final = "GET /health says how it is (optional)"
_TYPES: Final = {"native": "text/event-stream", "json": "application/json"}


@dataclass(frozen=True)
class Conformance:
    """Tries one agent; `seconds` bounds every invocation."""

    client: AgentClient
    health: AgentProbe
    endpoint: str
    protocol: str
    content: str
    credential: str | None
    seconds: float

    async def report(self) -> AsyncIterator[Verdict]:
        """Yield a verdict for every rule; after a failed step the later ones are not tried."""
        answer = await self._invoke("probe_1")
        for verdict in self._steps(answer):
            yield verdict
        if answer.failure is None:
            yield self._ended_well(answer)
            if self.protocol == "native":
                yield _piece_by_piece(answer)
            yield await self._parts()
            yield await self._hang_up()
            yield await self._together()
        yield await self._health_after(answer)

    async def once(self) -> AsyncIterator[Verdict]:
        """Yield the verdicts of a single invocation, and of the health."""
        answer = await self._invoke("probe_1")
        for verdict in self._steps(answer):
            yield verdict
        if answer.failure is None:
            yield self._ended_well(answer)
        yield await self._health_after(answer)

    async def _health_after(self, answer: Answer) -> Verdict:
        away = answer.failure is not None and answer.failure.code == "agent_unavailable"
        return (
            Verdict(_HEALTH, None, "not tried: nothing answers") if away else await self._health()
        )

    def _steps(self, answer: Answer) -> list[Verdict]:
        words = {
            "url": self.endpoint,
            "path": "/v1/chat/completions" if self.protocol == "openai" else "/invoke",
            "type": _TYPES.get(self.protocol, "text/event-stream or application/json"),
        }
        verdicts: list[Verdict] = []
        broken = False
        for rule, codes, fix in _STEPS:
            bad = answer.code in codes
            good = None if broken else not bad
            said = answer.failure.message if bad and answer.failure else ""
            verdicts.append(
                Verdict(rule.format(**words), good, said, fix.format(**words) if bad else "")
            )
            broken = broken or bad
        return verdicts

    async def _invoke(self, run_id: str, content: Any = None, until: int | None = None) -> Answer:
        """Invoke once; `until` hangs up after so many frames."""
        answer = Answer()
        began = time.monotonic()
        try:
            async with (
                asyncio.timeout(self.seconds),
                self.client.open(self._call(run_id, content or self.content)) as batches,
            ):
                answer.begun = True
                async for batch in batches:
                    if batch and answer.first_ms is None:
                        answer.first_ms = int((time.monotonic() - began) * 1000)
                    answer.frames += batch
                    answer.batches += bool(batch)
                    if until is not None and len(answer.frames) >= until:
                        break
        except AgentFailure as failure:
            answer.failure = failure
        except TimeoutError:
            text = f"nothing ended within {self.seconds:g} s"
            answer.failure = AgentFailure("agent_timeout", text)
        return answer

    def _call(self, run_id: str, content: Any) -> AgentCall:
        return AgentCall(
            endpoint=self.endpoint, agent_id="probe", session_id="probe", run_id=run_id, attempt=1,
            role="user", content=content, context={"probe": True},
            credential=Secret(self.credential) if self.credential else None,
            messages=[{"role": "user", "content": "an earlier message"}], traceparent=TRACE,
            base_url="http://localhost:8080",
        )  # fmt: skip

    def _ended_well(self, answer: Answer) -> Verdict:
        rule = "an ordinary message is answered, not failed"
        last = next((f for f in reversed(answer.frames) if type(f) in ENDING), None)
        if isinstance(last, Failed):
            return Verdict(rule, None, f"it said {last.code}: {last.message}",
                           "give a message that it can answer: --message")  # fmt: skip
        final = last.final_message if isinstance(last, Done) else None
        if not (final or answer.text):
            return Verdict(rule, good=False, said="neither deltas nor a final_message came",
                           fix="send delta events, or final_message in done")  # fmt: skip
        return Verdict(rule, good=True)

    async def _parts(self) -> Verdict:
        answer = await self._invoke("probe_2", [{"type": "text", "text": self.content}])
        bad = answer.failure is not None or any(isinstance(f, Failed) for f in answer.frames)
        return Verdict(
            "it understands content that is a list of parts",
            None if bad else True,
            "it does not; callers must send it plain text" if bad else "",
        )

    async def _hang_up(self) -> Verdict:
        rule = "it survives a caller who hangs up"
        await self._invoke("probe_3", until=1)
        again = await self._invoke("probe_4")
        if again.failure is None:
            return Verdict(rule, good=True)
        said = f"the next invocation: {again.failure.message}"
        fix = "a cancelled run closes the connection; catch the broken pipe"
        return Verdict(rule, good=False, said=said, fix=fix)

    async def _together(self) -> Verdict:
        rule = "it answers two at once"
        async with asyncio.TaskGroup() as tasks:
            both = [tasks.create_task(self._invoke(f"probe_{n}")) for n in (5, 6)]
        broken = [task.result().failure for task in both if task.result().failure]
        if not broken:
            return Verdict(rule, good=True)
        return Verdict(rule, good=False, said=str(broken[0]),
                       fix="serve concurrently, or register it with max_concurrency 1")  # fmt: skip

    async def _health(self) -> Verdict:
        found = await self.health.probe(self.endpoint, self.credential)
        match found.status:
            case "healthy":
                return Verdict(_HEALTH, good=True, said=f"version {found.version or 'not given'}")
            case "unknown":
                return Verdict(_HEALTH, None, "it has no /health; it is always taken for well")
            case _:
                fix = 'answer 200 {"status": "healthy"}, or have no /health'
                return Verdict(_HEALTH, good=False, said="it answered badly or not at all", fix=fix)


def _piece_by_piece(answer: Answer) -> Verdict:
    rule = "its words come piece by piece"
    deltas = sum(isinstance(frame, Delta) for frame in answer.frames)
    if deltas < MANY:
        return Verdict(rule, None, f"{deltas} deltas are too few to tell")
    if answer.batches == 1:
        return Verdict(rule, None, f"all {deltas} deltas came at once: is something buffering?")
    return Verdict(rule, good=True, said=f"{deltas} deltas, the first after {answer.first_ms} ms")
