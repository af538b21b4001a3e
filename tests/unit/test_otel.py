"""Spans go to a collector by OTLP/HTTP: with our ids, bounded, and never at the cost of a run."""

import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes as gen_ai
from opentelemetry.semconv.attributes import error_attributes, server_attributes
from structlog.testing import capture_logs

from orchestrator import telemetry
from orchestrator.core.records import Agent, Run
from orchestrator.core.trace import Trace, of_run
from orchestrator.telemetry import conventions, process
from orchestrator.telemetry.otlp import QUEUE_MAX, Exporter
from orchestrator.testing.fake_world import FakeWorld

from ..collector import Collector, collecting

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
RUN = Run(
    run_id="run_1",
    tenant="default",
    session_id="s1",
    agent_id="writer",
    message_id="msg_1",
    created_at=1_800_000_000_000,
    deadline_at=1_900_000_000_000,
)
AGENT = Agent(
    tenant="default",
    agent_id="writer",
    name="The writer",
    endpoint="http://agent.example:9000/v2",
    version="7",
    created_at=0,
    updated_at=0,
)
BATCH = 512


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting() as running:
        yield running


def ended(trace: Trace | None = None, **changes: Any) -> telemetry.Ended:
    made = telemetry.Ended(
        name="invoke_agent",
        trace=trace or of_run("run_1", PARENT, None),
        began=RUN.created_at,
        seconds=0.25,
        outcome="done",
        attributes={"run": RUN, "agent": AGENT, "attempt": 2},
    )
    return replace(made, **changes)


def exported(collector: Collector, *spans: telemetry.Ended) -> None:
    with telemetry.exporting(collector.url, version="1.2.3"):
        for span in spans:
            telemetry.tell(span)


def test_a_span_arrives_as_it_was_told(collector: Collector) -> None:
    place = of_run("run_1", PARENT, "foo=1,bar=2").below(b"\x11" * 8)
    usage = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
    attributes = {"run": RUN, "agent": AGENT, "attempt": 2, "usage": usage}
    exported(collector, ended(place, attributes=attributes))
    (span,) = collector.spans
    assert collector.paths == ["/v1/traces"]
    assert (span.name, span.kind, span.failed) == ("invoke_agent The writer", "CLIENT", False)
    assert span.trace_id == "0af7651916cd43dd8448eb211c80319c"
    assert (span.span_id, span.parent_id) == ("11" * 8, of_run("run_1", PARENT, None).span_id)
    assert span.state == "foo=1,bar=2"
    assert (span.began, span.ended - span.began) == (RUN.created_at * 1_000_000, 250_000_000)
    assert span.attributes == {
        "gen_ai.operation.name": "invoke_agent",
        "gen_ai.provider.name": "orchestrator",
        "gen_ai.agent.id": "writer",
        "gen_ai.agent.name": "The writer",
        "gen_ai.agent.version": "7",
        "gen_ai.conversation.id": "s1",
        "gen_ai.usage.input_tokens": 3,
        "gen_ai.usage.output_tokens": 4,
        "server.address": "agent.example",
        "server.port": 9000,
        "orchestrator.run_id": "run_1",
        "orchestrator.tenant": "default",
        "orchestrator.attempt": 2,
        "orchestrator.outcome": "done",
    }
    assert span.resource["service.name"] == "orchestrator"
    assert span.resource["service.version"] == "1.2.3"


def test_no_word_of_an_agent_spoils_what_is_sent_with_it(collector: Collector) -> None:
    usage = {"prompt_tokens": 1 << 70, "completion_tokens": [], "\ud800": "\ud800"}
    name = replace(AGENT, name="\U0001f600" * 300, version="\0")
    exported(collector, ended(attributes={"run": RUN, "agent": name, "usage": usage}), ended())
    assert len(collector.spans) == 2


def test_a_failure_has_its_code_cut_to_size(collector: Collector) -> None:
    exported(collector, ended(outcome="failed", error="x" * 100_000))
    (span,) = collector.spans
    assert span.failed
    assert span.attributes["error.type"] == "x" * 256


def test_a_run_is_served_and_hangs_below_its_caller(collector: Collector) -> None:
    attributes = {"run": RUN, "agent_name": None}
    exported(
        collector,
        ended(name="run", attributes=attributes),
        ended(of_run("run_1", None, None), name="run", attributes=attributes),
    )
    called, alone = collector.spans
    assert (called.name, called.kind, called.parent_id) == ("run", "SERVER", "b7ad6b7169203331")
    assert (alone.parent_id, alone.trace_id) == ("", of_run("run_1", None, None).trace_id)
    assert conventions.OPERATION not in called.attributes


def test_a_trace_that_is_not_sampled_is_not_sent(collector: Collector) -> None:
    off = PARENT[:-2] + "00"
    with capture_logs() as lines:
        exported(collector, ended(of_run("run_1", off, None)), ended())
    assert [span.trace_id for span in collector.spans] == [PARENT[3:35]]
    assert lines == [], "it was waited for"


def test_the_names_are_those_of_the_conventions() -> None:
    names = {name: value for name, value in vars(conventions).items() if name.isupper()}
    theirs = {
        "OPERATION": gen_ai.GEN_AI_OPERATION_NAME,
        "PROVIDER": gen_ai.GEN_AI_PROVIDER_NAME,
        "AGENT_ID": gen_ai.GEN_AI_AGENT_ID,
        "AGENT_NAME": gen_ai.GEN_AI_AGENT_NAME,
        "AGENT_VERSION": gen_ai.GEN_AI_AGENT_VERSION,
        "CONVERSATION_ID": gen_ai.GEN_AI_CONVERSATION_ID,
        "INPUT_TOKENS": gen_ai.GEN_AI_USAGE_INPUT_TOKENS,
        "OUTPUT_TOKENS": gen_ai.GEN_AI_USAGE_OUTPUT_TOKENS,
        "ERROR_TYPE": error_attributes.ERROR_TYPE,
        "SERVER_ADDRESS": server_attributes.SERVER_ADDRESS,
        "SERVER_PORT": server_attributes.SERVER_PORT,
    }
    ours = {"OURS": "orchestrator.", "VALUE_MAX": 256, "COUNT_MAX": 2**63 - 1}
    assert {k: v for k, v in names.items() if not k.startswith("_")} == theirs | ours


@pytest.mark.parametrize(
    ("usage", "found"),
    [
        ({"input_tokens": 1, "output_tokens": 2}, (1, 2)),
        ({"prompt_tokens": 1}, (1, None)),
        ({"prompt_tokens": "1", "completion_tokens": True}, (None, None)),
        ({"prompt_tokens": 1 << 63, "completion_tokens": -1}, (None, None)),
        ({"tokens": 5}, (None, None)),
    ],
)
def test_tokens_are_told_where_an_agent_counts_them(usage: dict, found: tuple) -> None:
    named = conventions.named({"usage": usage})
    assert (named.get(conventions.INPUT_TOKENS), named.get(conventions.OUTPUT_TOKENS)) == found


def test_a_collector_that_hangs_holds_up_neither_runs_nor_the_end(
    collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "FLUSH_S", 0.05)
    collector.hold.clear()
    with capture_logs() as lines, telemetry.exporting(collector.url, version="1"):
        for _ in range(QUEUE_MAX + 100):
            telemetry.tell(ended())
        assert telemetry.stats()["spans_dropped_total"] == 100
        collector.until(collector.waiting)
    assert collector.waiting() == 1, "it was given up before the end, or waited for"
    assert [(line["event"], line["spans"]) for line in lines] == [("spans_left_behind", QUEUE_MAX)]
    assert telemetry.stats() == {}


def test_a_collector_that_refuses_is_told_of_once(
    collector: Collector, caplog: pytest.LogCaptureFixture
) -> None:
    collector.status = 401
    with capture_logs() as lines, telemetry.exporting(collector.url, version="1"):
        a_batch()
        collector.until(lambda: refused() == BATCH)
        a_batch()
        collector.until(lambda: refused() == 2 * BATCH)
        collector.status = 200
        a_batch()
        collector.until(lambda: len(collector.spans) == BATCH)
    assert [line["event"] for line in lines] == ["spans_refused", "spans_taken_again"]
    assert lines[1]["refused"] == 2 * BATCH
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 1, said
    assert "401" in said[0]


def a_batch() -> None:
    for _ in range(BATCH):
        telemetry.tell(ended())


def refused() -> float:
    return telemetry.stats()["spans_refused_total"]


def test_what_cannot_be_made_into_a_span_is_counted_and_nothing_else(
    collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: object) -> dict:
        raise KeyError("broken on purpose")

    with capture_logs() as lines, telemetry.exporting(collector.url, version="1"):
        with monkeypatch.context() as patched:
            patched.setattr(conventions, "told", broken)
            telemetry.tell(ended())
        assert telemetry.stats()["spans_dropped_total"] == 1
        telemetry.tell(ended())
    assert [line["event"] for line in lines] == ["span_not_made"]
    assert len(collector.spans) == 1


def test_the_end_of_a_span_in_use(collector: Collector) -> None:
    world = FakeWorld()
    place = of_run("run_1", None, None)
    with telemetry.exporting(collector.url, version="1"):
        with telemetry.span("fetch", world, tries=3) as span:
            span.at(place)
            world.time += 1500
        for stops in ((), (LookupError,)):
            with suppress(LookupError), telemetry.span("fetch", world, stops=stops) as span:
                span.at(place)
                raise LookupError
        with telemetry.span("nowhere", world):
            pass
    good, bad, stopped = collector.spans
    assert (good.name, good.kind, good.ended - good.began) == ("fetch", "INTERNAL", 1_500_000_000)
    assert good.attributes == {"orchestrator.tries": 3, "orchestrator.outcome": "done"}
    assert (bad.attributes["error.type"], bad.failed) == ("LookupError", True)
    assert (stopped.attributes, stopped.failed) == ({"orchestrator.outcome": "stopped"}, False)


BLOCKED = """
import sys
sys.modules["opentelemetry.exporter"] = None
from orchestrator import telemetry
from orchestrator.core.errors import SettingsInvalid
try:
    with telemetry.exporting("http://127.0.0.1:4318", version="1"):
        print("started")
except SettingsInvalid as error:
    print(error.message)
"""
QUIET = """
import sys
from orchestrator import app, telemetry
from orchestrator.core.trace import of_run
from orchestrator.testing.fake_world import FakeWorld
with telemetry.exporting(None, version="1"):
    with telemetry.span("invoke_agent", FakeWorld()) as span:
        span.at(of_run("run_1", None, None))
print({name.partition(".")[0] for name in sys.modules} & {"opentelemetry", "requests", "google"})
"""


def said(script: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    return done.stdout


def test_without_the_extra_the_start_says_what_to_do() -> None:
    sentence = said(BLOCKED)
    assert sentence.startswith("OTEL_EXPORTER_OTLP_ENDPOINT is set, and what sends spans is not ")
    assert f"`{sys.executable} -m pip install 'opentelemetry-sdk>=" in sentence
    assert sentence.count("\n") == 1


def test_the_start_asks_for_what_the_extra_installs() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert set(process.REQUIRED) == set(project["optional-dependencies"]["otel"])


def test_without_an_endpoint_nothing_of_it_is_loaded() -> None:
    assert said(QUIET) == "set()\n"


def test_the_exporter_needs_no_more_than_an_address(collector: Collector) -> None:
    exporter = Exporter(collector.url + "/", "1")
    exporter.export(ended(), of_run("run_1", PARENT, None))
    exporter.close(10)
    assert collector.paths == ["/v1/traces"]
    assert exporter.stats() == {
        "spans_sent_total": 1.0,
        "spans_refused_total": 0.0,
        "spans_dropped_total": 0.0,
    }
