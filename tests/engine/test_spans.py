"""A run is one span and each attempt is one below it, in the trace that its caller began."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import structlog
from structlog.testing import capture_logs

from orchestrator import telemetry
from orchestrator.clients import streaming
from orchestrator.clients.exchange import Request
from orchestrator.clients.streaming import StreamingClient
from orchestrator.clients.wire import Connection
from orchestrator.core.frames import Delta, Done, Failed, Frame
from orchestrator.core.records import Invocation, Retry, Run
from orchestrator.core.states import RunState
from orchestrator.core.trace import of_run
from orchestrator.engine.spans import RunSpans
from orchestrator.ports import AgentCall, Claimed
from orchestrator.testing.fake_agent import FakeAgent, answering_json
from orchestrator.testing.fake_world import FakeWorld
from orchestrator.testing.open_egress import OpenEgress
from orchestrator.world import RealWorld

from ..collector import Collector, Seen, collecting
from .rig import Rig, running, until

Frames = AsyncIterator[Sequence[Frame]]
CALLER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
MERGED = [structlog.contextvars.merge_contextvars]


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting() as found:
        yield found


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """Every log line with the ids that it carries, at `debug`."""
    monkeypatch.setattr(telemetry.process.PROCESS, "debug", True)
    with capture_logs(processors=MERGED) as found:
        yield found


async def hang(_: AgentCall) -> Frames:
    yield [Delta("one")]
    await asyncio.Event().wait()


def twice() -> Any:
    """Return a script that fails first."""

    async def script(call: AgentCall) -> Frames:
        if call.attempt == 1:
            yield [Failed("my_code", "not today")]
        yield [Done("here", {"prompt_tokens": 5, "completion_tokens": 6})]

    return script


def ids(call: AgentCall) -> tuple[str, str, str]:
    """Return what an agent was told: trace, parent and flags."""
    _, trace_id, span_id, flags = call.traceparent.split("-")
    return trace_id, span_id, flags


def the_run(collector: Collector) -> Seen:
    (found,) = collector.named("run ")
    return found


async def test_the_agent_hangs_below_the_attempt_below_the_run_below_the_caller(
    tmp_path: Path, collector: Collector
) -> None:
    with telemetry.exporting(collector.url, version="1"):
        async with running(tmp_path / "o.db", twice()) as rig:
            await rig.register(retry=Retry(max_attempts=2, backoff_ms=1, codes=("my_code",)))
            run = await rig.invoke(traceparent=CALLER, tracestate="foo=1")
            assert (await rig.ended(run)).status is RunState.DONE
    whole, (first, second) = the_run(collector), collector.named("invoke_agent")
    assert (whole.trace_id, whole.parent_id) == (CALLER[3:35], CALLER[36:52])
    assert whole.attributes["orchestrator.outcome"] == "done"
    assert whole.attributes["gen_ai.agent.name"] == "demo"
    assert not [name for name in whole.attributes if name.startswith(("server.", "gen_ai.usage."))]
    for call, attempt in zip(rig.agent.calls, (first, second), strict=True):
        assert ids(call) == (CALLER[3:35], attempt.span_id, "01")
        assert (call.tracestate, attempt.state) == ("foo=1", "foo=1")
        assert (attempt.trace_id, attempt.parent_id) == (whole.trace_id, whole.span_id)
        assert attempt.attributes["orchestrator.run_id"] == run.run_id
        assert attempt.attributes["gen_ai.conversation.id"] == "s1"
    assert first.span_id != second.span_id
    assert (first.failed, first.attributes["error.type"]) == (True, "my_code")
    assert (second.failed, second.attributes["gen_ai.usage.output_tokens"]) == (False, 6)
    assert [span.attributes["orchestrator.attempt"] for span in (first, second)] == [1, 2]
    assert whole.began <= first.began <= second.began


async def test_a_run_without_a_caller_begins_a_trace_that_all_its_attempts_share(
    tmp_path: Path, collector: Collector
) -> None:
    with telemetry.exporting(collector.url, version="1"):
        async with running(tmp_path / "o.db", twice()) as rig:
            await rig.register(retry=Retry(max_attempts=2, backoff_ms=1, codes=("my_code",)))
            run = await rig.ended(await rig.invoke(tracestate="foo=1"))
    first, second = (ids(call) for call in rig.agent.calls)
    place = of_run(run.run_id, None, None)
    assert first[0] == second[0] == place.trace_id
    assert first[1] != second[1]
    assert first[2] == second[2] == "03"
    assert [call.tracestate for call in rig.agent.calls] == [None, None]
    assert (the_run(collector).span_id, the_run(collector).parent_id) == (place.span_id, "")


async def test_what_the_caller_does_not_record_is_not_sent(
    tmp_path: Path, collector: Collector
) -> None:
    with telemetry.exporting(collector.url, version="1"):
        async with running(tmp_path / "o.db") as rig:
            await rig.ended(await rig.invoke(traceparent=CALLER[:-2] + "00"))
            last = await rig.ended(await rig.invoke())
    assert [ids(call)[2] for call in rig.agent.calls] == ["00", "03"]
    assert {span.attributes["orchestrator.run_id"] for span in collector.spans} == {last.run_id}


async def test_a_cancelled_run_has_no_error(tmp_path: Path, collector: Collector) -> None:
    with telemetry.exporting(collector.url, version="1"):
        async with running(tmp_path / "o.db", hang) as rig:
            run = await rig.invoke()
            await until(lambda: rig.agent.open_now)
            await rig.engine.runs.cancel(run.run_id, "enough")
            await until(lambda: not rig.agent.open_now)
    (attempt,) = collector.named("invoke_agent")
    whole = the_run(collector)
    assert whole.attributes["orchestrator.outcome"] == "cancelled"
    assert attempt.attributes["orchestrator.outcome"] == "stopped"
    assert not {"error.type"} & (whole.attributes.keys() | attempt.attributes.keys())
    assert (whole.failed, attempt.failed) == (False, False)
    assert attempt.parent_id == whole.span_id


async def test_a_run_that_changes_hands_is_one_span_of_whoever_ends_it(
    tmp_path: Path, collector: Collector
) -> None:
    async def later(call: AgentCall) -> Frames:
        if call.attempt == 1:
            async for frames in hang(call):
                yield frames
        yield [Done("here")]

    calls: list[AgentCall] = []
    with telemetry.exporting(collector.url, version="1"):
        async with running(tmp_path / "o.db", later) as rig:
            await rig.register(on_lost="retry")
            run = await rig.invoke(traceparent=CALLER)
            await until(lambda: rig.agent.open_now)
            calls += rig.agent.calls
        assert not collector.named("run ")
        assert driven(rig) == {}
        async with running(tmp_path / "o.db", later, known=True) as rig:
            assert (await rig.ended(run)).status is RunState.DONE
            calls += rig.agent.calls
    whole, attempts = the_run(collector), collector.named("invoke_agent")
    assert [call.attempt for call in calls] == [1, 2]
    assert [span.span_id for span in attempts] == [ids(call)[1] for call in calls]
    assert {span.parent_id for span in attempts} == {whole.span_id}
    assert [s.attributes["orchestrator.outcome"] for s in attempts] == ["stopped", "done"]


def driven(rig: Rig) -> dict[str, Any]:
    """Return what is kept of the runs that an engine drives."""
    kept: dict[str, Any] = rig.engine._dispatcher._runner._spans._driven
    return kept


def test_a_run_that_came_back_is_not_forgotten_with_its_first_claim(collector: Collector) -> None:
    spans = RunSpans(FakeWorld())
    run = Run(
        run_id="run_1", tenant="default", session_id="s1", agent_id="demo", message_id="m",
        status=RunState.DONE, created_at=1000, ended_at=3500, deadline_at=9000,
    )  # fmt: skip
    asked = Invocation(run_id="run_1", role="user", content="x", traceparent=CALLER)
    first, second = Claimed(run), Claimed(run)
    with telemetry.exporting(collector.url, version="1"):
        spans.drive(first, asked, None)
        spans.drive(second, asked, None)
        spans.let_go(first)
        spans.ended(run)
        spans.let_go(second)
    (whole,) = collector.spans
    assert (whole.trace_id, whole.ended - whole.began) == (CALLER[3:35], 2_500_000_000)
    assert spans._driven == {}


async def test_runs_end_with_their_own_code_where_no_agent_was_called(
    tmp_path: Path, collector: Collector
) -> None:
    with telemetry.exporting(collector.url, version="1"):
        async with running(tmp_path / "o.db", hang) as rig:
            first = await rig.invoke()
            await until(lambda: rig.agent.open_now)
            second = await rig.invoke(traceparent=CALLER)
            await rig.engine.agents.remove("demo")
            await rig.engine.runs.cancel(first.run_id, "enough")
            assert (await rig.ended(second)).error_code == "agent_not_found"
    (nobody,) = [span for span in collector.spans if span.name == "run"]
    assert (nobody.attributes["error.type"], nobody.failed) == ("agent_not_found", True)
    assert nobody.parent_id == CALLER[36:52]


async def test_every_line_of_a_run_carries_its_ids_and_no_other(
    tmp_path: Path, lines: list[Any]
) -> None:
    log = telemetry.get_logger("orchestrator.below")
    everybody = asyncio.Barrier(12)

    async def script(call: AgentCall) -> Frames:
        log.info("entered", of=call.run_id)
        for _ in range(3):
            await everybody.wait()
            log.info("in_turn", of=call.run_id)
            asyncio.get_running_loop().call_soon(lambda: log.info("later", of=call.run_id))
            await asyncio.to_thread(log.info, "beside", of=call.run_id)
            yield [Delta("x")]
        yield [Done()]

    async with running(tmp_path / "o.db", script) as rig:
        for agent_id in ("a", "b", "c"):
            await rig.register(agent_id)
        runs = [
            await rig.invoke(agent_id=agent_id, session_id=f"s{n}")
            for n, agent_id in zip(range(12), itertools.cycle("abc"), strict=False)
        ]
        for run in runs:
            await rig.ended(run)
    told = [line for line in lines if "of" in line]
    assert len(told) == 12 * (1 + 3 * 3)
    known = {run.run_id: run for run in runs}
    for line in told:
        run = known[line["of"]]
        assert shown(line) == (run.run_id, run.session_id, run.agent_id), line
    spans = [line for line in lines if line["event"] == "span_ended"]
    assert sorted(shown(line) for line in spans) == sorted(
        2 * [(run.run_id, run.session_id, run.agent_id) for run in runs]
    )
    others = [line for line in lines if line not in told and line not in spans]
    assert not [line for line in others if "run_id" in line]


def shown(line: Any) -> tuple[str, str, str]:
    return line["run_id"], line["session_id"], line["agent_id"]


async def test_a_connection_that_is_used_again_names_no_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    heard: list[dict[str, Any]] = []

    class Telling(Connection):
        __slots__ = ()

        def data_received(self, data: bytes) -> None:
            heard.append(structlog.contextvars.get_contextvars())
            super().data_received(data)

    async def ask(http: StreamingClient, url: str, run_id: str) -> None:
        telemetry.bind(run_id=run_id)
        async with http.open(Request(url=url, headers={}, body=b"{}")) as answer:
            while await answer.read():
                pass
        assert structlog.contextvars.get_contextvars() == {"run_id": run_id}

    monkeypatch.setattr(streaming, "Connection", Telling)
    world = RealWorld()
    async with (
        FakeAgent(answering_json({})) as agent,
        StreamingClient(world, OpenEgress()) as http,
    ):
        for run_id in ("run_1", "run_2"):
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(ask(http, agent.url, run_id))
        assert agent.connections == 1
    assert heard == [{}, {}]


async def test_a_child_hangs_below_its_parent_where_its_agent_says_nothing(
    tmp_path: Path, collector: Collector
) -> None:
    with telemetry.exporting(collector.url, version="1"):
        async with running(tmp_path / "o.db", hang) as rig:
            parent = await rig.invoke(traceparent=CALLER, tracestate="foo=1")
            await until(lambda: rig.agent.open_now)
            silent = await rig.child(parent)
            spoken = await rig.child(parent, traceparent=CALLER)
            await until(lambda: rig.agent.open_now == 3)
            await rig.engine.runs.cancel(parent.run_id, "enough")
            await until(lambda: not rig.agent.open_now)
    above = {span.attributes["orchestrator.run_id"]: span for span in collector.named("run ")}
    assert above[silent.run_id].parent_id == above[parent.run_id].span_id
    assert above[silent.run_id].state == "foo=1"
    assert above[spoken.run_id].parent_id == CALLER[36:52]


async def test_what_goes_wrong_inside_is_told_with_the_ids(
    tmp_path: Path, lines: list[Any]
) -> None:
    async def broken(_: AgentCall) -> Frames:
        yield [Delta("x")]
        raise RuntimeError("broken on purpose")

    async with running(tmp_path / "o.db", broken) as rig:
        run = await rig.ended(await rig.invoke())
        assert run.error_code == "internal_error"
    (line,) = [line for line in lines if line["event"] == "run_crashed"]
    assert shown(line) == (run.run_id, "s1", "demo")
    attempt, whole = [line for line in lines if line["event"] == "span_ended"]
    assert (attempt["outcome"], attempt["error"]) == ("failed", "RuntimeError")
    assert (whole["outcome"], whole["error"]) == ("failed", "internal_error")
    (end,) = [line for line in lines if line["event"] == "run_failed"]
    assert shown(end) == (run.run_id, "s1", "demo")
    assert (end["log_level"], end["code"], end["attempt"]) == ("info", "internal_error", 1)


async def test_an_event_is_no_span(tmp_path: Path, lines: list[Any]) -> None:
    async def script(_: AgentCall) -> Frames:
        for _n in range(500):
            yield [Delta("x")]
        yield [Done()]

    async with running(tmp_path / "o.db", script) as rig:
        run = await rig.ended(await rig.invoke())
        assert len(await rig.log(run)) > 500
    spans = [line for line in lines if line["event"] == "span_ended"]
    assert [line["span"] for line in spans] == ["invoke_agent", "run"]
    assert len({line["trace_id"] for line in spans}) == 1


def counts() -> dict[tuple[str, str], float]:
    """Return how many spans were counted, by name and outcome."""
    return {
        (name, sample.labels["outcome"]): sample.value
        for name, histogram in telemetry.DURATIONS.items()
        for metric in histogram.collect()
        for sample in metric.samples
        if sample.name.endswith("_count")
    }


async def test_every_end_is_counted_by_its_outcome(tmp_path: Path) -> None:
    async def script(call: AgentCall) -> Frames:
        if call.content == "fail":
            yield [Failed("of_any_name", "because")]
        elif call.content == "hang":
            await asyncio.Event().wait()
        yield [Done()]

    before = counts()
    async with running(tmp_path / "o.db", script) as rig:
        await rig.ended(await rig.invoke("good"))
        await rig.ended(await rig.invoke("fail"))
        held = await rig.invoke("hang")
        await until(lambda: rig.agent.open_now)
        queued = await rig.invoke("never begun")
        for run in (queued, held):
            await cancelled(rig, run)
        await until(lambda: not rig.agent.open_now)
    after = counts()
    assert {key: after[key] - before[key] for key in after if after[key] != before[key]} == {
        ("run", "done"): 1,
        ("run", "failed"): 1,
        ("run", "cancelled"): 2,
        ("invoke_agent", "done"): 1,
        ("invoke_agent", "failed"): 1,
        ("invoke_agent", "stopped"): 1,
    }


async def cancelled(rig: Rig, run: Run) -> None:
    await rig.engine.runs.cancel(run.run_id, "enough")
