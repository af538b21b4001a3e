"""The reducer of the Python SDK keeps to the vectors of all SDKs, however a log is split."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core.events import CATALOGUE, DELTAS
from orchestrator_sdk.reducer import View, reduce
from orchestrator_sdk.shapes import RunEvent

from ..processes import ROOT

CASES: list[dict[str, Any]] = msgspec.json.decode(
    (ROOT / "sdk" / "vectors" / "reducer.json").read_bytes()
)["cases"]
TEXTS = st.text(max_size=5)
IDS = st.sampled_from(["1", "2"])


def fold(events: list[dict[str, Any]], view: View | None = None) -> View:
    """Return what the events come to, after those that `view` has seen."""
    view = view or View()
    for event in events:
        view = reduce(view, msgspec.convert(event, RunEvent))
    return view


def kept(view: View) -> View:
    """Return a view that went through JSON, as a page or a cache keeps it."""
    return msgspec.json.decode(msgspec.json.encode(view), type=View)


def plain(view: View) -> dict[str, Any]:
    """Return a view as the JSON that all SDKs have."""
    decoded: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(view))
    return decoded


def test_there_are_vectors_by_hand_and_of_real_runs_for_every_event() -> None:
    real = [case for case in CASES if case["name"].startswith("a real run")]
    assert len(real) >= 5
    assert len(CASES) - len(real) >= 25
    assert len({case["name"] for case in CASES}) == len(CASES)
    assert {event["type"] for case in CASES for event in case["events"]} >= CATALOGUE.keys()


@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case["name"]))
def test_the_vectors(case: dict[str, Any]) -> None:
    events = case["events"]
    whole = fold(events)
    assert plain(whole) == plain(View()) | case["view"]
    for at in range(len(events) + 1):
        assert fold(events[at:], kept(fold(events[:at]))) == whole


def payloads() -> st.SearchStrategy[tuple[str, dict[str, Any]]]:
    """Return any event's type and payload, of a few items that they speak about."""
    number = st.integers(0, 9)
    of_tool: dict[str, Any] = {"tool_call_id": IDS, "state": st.sampled_from(["RUNNING", "FAILED"])}
    kinds: dict[str, dict[str, Any]] = {
        "run_started": {"session_id": TEXTS, "agent_id": TEXTS},
        "user_input": {"content": TEXTS, "queued": st.booleans()},
        "agent_invoke_started": {"agent_id": TEXTS, "endpoint": TEXTS, "attempt": number},
        "agent_stream_delta": {"text": TEXTS},
        "agent_state": {"state": TEXTS, "detail": number},
        "agent_event": {"name": TEXTS, "data": number},
        "agent_invoke_done": {"final_message": TEXTS, "usage": st.just({"tokens": 1})},
        "agent_invoke_retrying": {
            "code": TEXTS, "message": TEXTS, "delay_ms": number, "attempt": number,
            "discard_from_seq": st.integers(1, 20),
        },
        "run_paused": {"state": st.just("PAUSED_WAITING_TOOL")},
        "run_resumed": {"state": st.just("RUNNING")},
        "run_done": {},
        "run_failed": {"code": TEXTS, "message": TEXTS},
        "run_cancelled": {"reason": TEXTS},
        "agent_called_child": {"child_run_id": TEXTS, "agent_id": TEXTS},
        "llm_call_started": {"request_id": IDS, "model": TEXTS, "stream": st.booleans()},
        "llm_call_done": {"request_id": IDS, "model": TEXTS, "stream": st.booleans(),
                          "latency_ms": number, "total_tokens": number},
        "tool_call_created": of_tool | {"tool_name": TEXTS, "kind": TEXTS, "args": number},
        "policy_decision": of_tool | {"decision": st.sampled_from(["allow", "block"])},
        "tool_dispatched": of_tool,
        "tool_request": of_tool | {"tool_name": TEXTS, "args": number, "deadline_ts": number},
        "tool_result": of_tool | {"status": TEXTS, "result": number},
        "approval_required": of_tool | {"approval_id": IDS, "expires_at": number},
        "approval_decision": {
            "approval_id": IDS, "decision": st.sampled_from(["APPROVED", "EXPIRED"]),
        },
        "moon_rose": {},
    }  # fmt: skip
    assert kinds.keys() >= CATALOGUE.keys()
    return st.one_of(
        [st.tuples(st.just(name), st.fixed_dictionaries(of)) for name, of in kinds.items()]
    )


@st.composite
def logs(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Draw what a reader may see of a log: with doubles, holes and resets."""
    events: list[dict[str, Any]] = []
    seq = 0
    for kind, payload in draw(st.lists(payloads(), max_size=25)):
        seq = max(1, seq + draw(st.sampled_from([1, 1, 1, 1, 0, -2, 3])))
        events.append(_event(seq, kind, payload))
        if draw(st.integers(0, 9)) == 0:
            seq = draw(st.integers(0, seq))
            reset = {"after_seq": seq}
            events.append({"type": "log_reset", "run_id": "run_1", "payload": reset})
    return events


def _event(seq: int, kind: str, payload: dict[str, Any]) -> dict[str, Any]:
    return {"run_id": "run_1", "seq": seq, "ts": 1000 + seq, "type": kind, "payload": payload}


def begin_calls_once(events: list[dict[str, Any]]) -> None:
    """Let every model call begin once and end after that, as in every log there is."""
    begun: list[str] = []
    for event in events:
        if event["type"] == "llm_call_started":
            begun.append(f"llm_{event['seq']}")
            event["payload"] = event["payload"] | {"request_id": begun[-1]}
        elif event["type"] == "llm_call_done":
            request_id = begun.pop() if begun else f"unseen_{event['seq']}"
            event["payload"] = event["payload"] | {"request_id": request_id}


@given(logs(), st.integers(0, 50), st.integers(0, 50))
def test_any_log_may_be_split_anywhere(events: list[dict[str, Any]], one: int, two: int) -> None:
    first, second = sorted((one, two))
    view = fold(events[second:], kept(fold(events[first:second], kept(fold(events[:first])))))
    assert view == fold(events)


@given(st.lists(payloads(), min_size=1, max_size=25), st.data())
def test_a_reset_is_the_view_as_it_was_then(
    drawn: list[tuple[str, dict[str, Any]]], data: st.DataObject
) -> None:
    events = [_event(n, kind, payload) for n, (kind, payload) in enumerate(drawn, 1)]
    begin_calls_once(events)
    view = fold(events)
    after = data.draw(st.integers(max(1, view.durable_seq), len(events)))
    assert not [e for e in events[after:] if e["type"] in CATALOGUE.keys() - DELTAS]
    reset = {"type": "log_reset", "run_id": "run_1", "payload": {"after_seq": after}}
    assert fold([reset], view) == fold(events[:after])
    assert fold([reset, *events[after:]], view) == view


@given(logs())
def test_what_was_seen_before_changes_nothing(events: list[dict[str, Any]]) -> None:
    told = [event for event in events if event["type"] != "log_reset"]
    view = fold(told)
    assert fold(told, view) == view
