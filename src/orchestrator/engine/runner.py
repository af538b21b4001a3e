"""Drives one claimed run to its end: exactly one terminal event, whatever happens."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from typing import TypeAlias

import msgspec

from orchestrator.core import backoff
from orchestrator.core import events as ev
from orchestrator.core import frames as fr
from orchestrator.core.decide import Begin, Command, Complete, Fail, Repeat
from orchestrator.core.errors import AgentFailure, Conflict, StoreFailure, Unavailable
from orchestrator.core.records import Agent, Invocation, Retry, Run
from orchestrator.core.states import ENDED, RunState
from orchestrator.engine.audit import Audit
from orchestrator.engine.clocks import Clocks, Stopped, Switch, limits_of
from orchestrator.engine.instances import Instances, Lease
from orchestrator.engine.ledger import Ledger, Said, Words
from orchestrator.engine.limits import EngineSettings
from orchestrator.engine.patience import patiently
from orchestrator.engine.spans import RunSpans
from orchestrator.engine.transcript import Calls
from orchestrator.ports import AgentClient, Claimed
from orchestrator.telemetry import Span, get_logger

log = get_logger(__name__)

RESTARTED = "orchestrator_restarted"
Stream: TypeAlias = AbstractAsyncContextManager[AsyncIterator[Sequence[fr.Frame]]]


class Attempt(msgspec.Struct):
    """What one invocation has brought so far."""

    words: Words
    texts: list[str] = []
    ending: fr.Done | fr.Failed | fr.Paused | None = None

    def take(self, frames: Sequence[fr.Frame]) -> list[Said]:
        """Return what a batch of frames says; an ending frame is kept for later."""
        said: list[Said] = []
        for frame in frames:
            match frame:
                case fr.Deltas(texts=texts):
                    self.texts += texts
                    said += texts
                case fr.Delta(text=text):
                    self.texts.append(text)
                    said.append(text)
                case fr.State(state=state, detail=detail):
                    said.append(ev.AgentState(state=state, detail=detail))
                case fr.Other(name=name, data=data):
                    said.append(ev.AgentEvent(name=name, data=data))
                case fr.Done() | fr.Failed() | fr.Paused():
                    self.ending = frame
                    break
        return said


class Runner:
    """Drives claimed runs, one call of `drive` each, until they are off our hands."""

    def __init__(
        self,
        ledger: Ledger,
        clients: Mapping[str, AgentClient],
        calls: Calls,
        audit: Audit,
        instances: Instances,
        settings: EngineSettings,
    ) -> None:
        self._ledger = ledger
        self._instances = instances
        self._audit = audit
        self._clients = clients
        self._calls = calls
        self._settings = settings
        self._spans = RunSpans(ledger.world)
        ledger.on_ended(self._spans.ended)

    async def drive(self, claimed: Claimed, agent: Agent | None, switch: Switch) -> None:
        """Take a run from where it stands to its end, or let go of it where it may go on elsewhere.

        Raises StoreFailure only: then nobody can write, and the process stops.
        """
        run = claimed.run
        try:
            await self._drive(claimed, agent, switch)
        except Conflict:
            return  # it ended, or changed hands, while we worked: the log has the whole story
        except StoreFailure:
            raise
        except Exception as error:
            log.exception("run_crashed", run_id=run.run_id, error=type(error).__name__)
            with suppress(Conflict):  # the same, while we gave up on it
                await self._finish(run, _internal(error))
        finally:
            self._spans.let_go(claimed)

    async def _drive(self, claimed: Claimed, agent: Agent | None, switch: Switch) -> None:
        run = claimed.run
        invocation = await patiently(
            self._ledger.world, self._ledger.store.get, Invocation, run.run_id, deciding=True
        )
        if invocation is None:
            raise LookupError(f"run {run.run_id} has no invocation")
        self._spans.drive(claimed, invocation, agent)
        if agent is None:
            gone = f"agent {run.agent_id} is not registered any more"
            await self._finish(run, Fail(code="agent_not_found", message=gone))
            return
        tried: list[str] = []
        if claimed.lost_by is not None:
            tried += await self._last_tried(run)
            next_run = await self._lost(run, agent)
            if next_run is None:
                return
            run = next_run
        try:
            while run.status not in ENDED:
                run = await self._attempt(run, agent, invocation, switch, tried)
        except Stopped as stopped:
            await self._stopped(run, agent, stopped.reason)

    async def _last_tried(self, run: Run) -> list[str]:
        """Return the instance that the latest attempt went to, if one was made."""
        if run.attempt_seq == 0:
            return []
        world, read = self._ledger.world, self._ledger.store.read
        for event in await patiently(world, read, run.run_id, run.attempt_seq - 1, 1):
            payload = ev.open_event(event.data).decoded()
            if isinstance(payload, ev.AgentInvokeStarted) and payload.instance_id is not None:
                return [payload.instance_id]
        return []

    async def _lost(self, run: Run, agent: Agent) -> Run | None:
        message = "the server that ran this stopped before the agent was done"
        if agent.on_lost == "retry":
            self._instances.counts["retries"] += 1
            repeat = Repeat(code=RESTARTED, message=message, delay_ms=0)
            return await self._ledger.insist(run, repeat, run.epoch)
        await self._finish(run, Fail(code=RESTARTED, message=message))
        return None

    async def _stopped(self, run: Run, agent: Agent, reason: str) -> None:
        if reason != "drain" or agent.on_lost == "retry":
            return  # ended by somebody else, or left for the next owner to go on with
        now = await patiently(self._ledger.world, self._ledger.load, run.run_id, deciding=True)
        if now.status is not RunState.CREATED:
            message = "the server was shut down before the agent was done"
            await self._ledger.insist(now, Fail(code=RESTARTED, message=message), run.epoch)

    async def _attempt(
        self, run: Run, agent: Agent, invocation: Invocation, switch: Switch, tried: list[str]
    ) -> Run:
        if switch.reason is not None:
            raise Stopped(switch.reason)
        async with self._instances.lease(agent, tried, switch) as lease:
            begin = Begin(endpoint=lease.agent.endpoint, instance_id=lease.name)
            run = await self._ledger.insist(run, begin, run.epoch)
            attempt = Attempt(self._ledger.words(run))
            end = await self._invoked(run, lease, invocation, switch, attempt)
        if isinstance(end, AgentFailure):
            tried.append(lease.name)
            return await self._failed(run, agent, end, switch)
        return await self._done(run, end, attempt)

    async def _invoked(
        self, run: Run, lease: Lease, invocation: Invocation, switch: Switch, attempt: Attempt
    ) -> fr.Done | AgentFailure:
        """Call the agent at the instance that is leased, and return how that ended."""
        agent = lease.agent
        limits = limits_of(self._settings, agent.timeouts, invocation.timeout_ms)
        failure = None
        with self._spans.attempt(run, agent) as span:
            try:
                stream = await self._opening(run, agent, invocation, span)
                async with switch.guard(limits) as clocks:
                    await self._listen(stream, attempt, clocks)
            except AgentFailure as failed:
                failure = failed
            await attempt.words.settled()
            end = failure or self._too_large(attempt) or _verdict(attempt.ending, agent)
            _say(span, end)
        if failure is not None or isinstance(end, fr.Done):
            lease.ended(failure)
        return end

    async def _opening(self, run: Run, agent: Agent, invocation: Invocation, span: Span) -> Stream:
        """Return the call of the agent, which nobody keeps: it has the transcript.

        The agent's clocks do not run yet, for a store that is away is no fault of his. When it was,
        the run is looked at again: nobody tells us what another server did to it meanwhile.
        """
        world, ask = self._ledger.world, self._calls.call
        place = self._calls.place(run, invocation)
        span.at(place)
        try:
            call = await ask(run, agent, invocation, place)
        except Unavailable:
            call = await patiently(world, ask, run, agent, invocation, place)
            now = await patiently(world, self._ledger.load, run.run_id, deciding=True)
            if now.status in ENDED or now.epoch != run.epoch:
                raise Stopped("ended") from None
        return self._clients[agent.protocol].open(call)

    async def _listen(self, stream: Stream, attempt: Attempt, clocks: Clocks) -> None:
        async with stream as batches:
            async for frames in batches:
                clocks.alive()
                said = attempt.take(frames)
                if said:
                    await attempt.words.say(said)
                    if (too_large := self._too_large(attempt)) is not None:
                        raise too_large
                if attempt.ending is not None:
                    return

    def _too_large(self, attempt: Attempt) -> AgentFailure | None:
        most = self._settings.max_run_bytes
        if attempt.words.bytes <= most:
            return None
        text = f"the agent's events passed {most} bytes (MAX_RUN_BYTES)"
        return AgentFailure("run_too_large", text, retryable=False)

    async def _done(self, run: Run, done: fr.Done, attempt: Attempt) -> Run:
        final = done.final_message
        complete = Complete(
            message_id=self._ledger.mint("msg", run.run_id[-2:]),
            final_message=final if final is not None else "".join(attempt.texts),
            usage=done.usage,
        )
        return await self._finish(run, complete)

    async def _failed(self, run: Run, agent: Agent, failure: AgentFailure, switch: Switch) -> Run:
        if failure.refused:
            self._audit.security("egress_refused", f"agent {agent.agent_id}", run.tenant)
        if not _again(agent.retry, run, failure):
            return await self._finish(run, Fail(code=failure.code, message=failure.message))
        noise = self._ledger.world.noise(1)[0] / 256
        self._instances.counts["retries"] += 1
        delay = backoff.delay_ms(agent.retry, run.attempt, noise, failure.retry_after_ms)
        repeat = Repeat(code=failure.code, message=failure.message, delay_ms=delay)
        run = await self._ledger.insist(run, repeat, run.epoch)
        async with switch.guard({}):
            await self._ledger.world.sleep(delay / 1000)
        return run

    async def _finish(self, run: Run, command: Command) -> Run:
        return await self._ledger.insist(run, command, run.epoch)


def _say(span: Span, end: fr.Done | AgentFailure) -> None:
    if isinstance(end, AgentFailure):
        span.outcome, span.error = "failed", end.code
    else:
        span.add(usage=end.usage)


def _verdict(
    ending: fr.Done | fr.Failed | fr.Paused | None, agent: Agent
) -> fr.Done | AgentFailure:
    """Return a good end as it is, any other as what the attempt failed by."""
    match ending:
        case fr.Done():
            return ending
        case fr.Failed(code=code, message=message):
            return AgentFailure(code, message, retryable=code in agent.retry.codes)
        case fr.Paused(wait_for=wait_for):
            names = ", ".join(wait_for) or "nothing"
            text = f"pause waits for {names}, which is no open tool call of this run"
            return AgentFailure("agent_protocol", text, retryable=False)
        case None:
            text = "the agent's stream ended without a done event"
            return AgentFailure("agent_eof", text)


def _again(retry: Retry, run: Run, failure: AgentFailure) -> bool:
    return backoff.may_retry(
        retry, run.attempt, failure.code,
        retryable=failure.retryable, at_least=failure.retry_after_ms,
    )  # fmt: skip


def _internal(error: Exception) -> Fail:
    return Fail(
        code="internal_error",
        message=f"the orchestrator itself failed ({type(error).__name__}); its log has the trace",
    )
