"""The small pure rules: ids, names, contents, delays, live names, rows of a decision."""

from collections.abc import Callable

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core import backoff, ids, values
from orchestrator.core import events as ev
from orchestrator.core.decide import Accept, Begin, Cancel, Complete
from orchestrator.core.errors import InvalidRequest
from orchestrator.core.live import live
from orchestrator.core.ops import Delete, Insert, Patch
from orchestrator.core.project import accept, project
from orchestrator.core.records import (
    NEXT,
    WAITING,
    Invocation,
    Message,
    Retry,
    Run,
    Session,
    Timer,
)
from orchestrator.core.states import RunState

TIMES = st.integers(min_value=0, max_value=(1 << 48) - 1)
NOISE = st.binary(min_size=ids.NOISE_BYTES, max_size=ids.NOISE_BYTES)


@given(TIMES, TIMES, NOISE, NOISE)
def test_ids_sort_by_time_and_tell_it(a: int, b: int, x: bytes, y: bytes) -> None:
    first, second = ids.mint("run", a, x, "00"), ids.mint("run", b, y, "00")
    assert (a < b) <= (first < second)
    assert ids.minted_at(first) == a
    assert len(first) == len("run_") + ids.BODY_LENGTH


def test_a_session_has_one_shard_and_tenants_do_not_share_it_by_concatenation() -> None:
    assert ids.shard_of("a", "b") == ids.shard_of("a", "b")
    assert ids.shard_of("ab", "c") != ids.shard_of("a", "bc")
    assert len({ids.shard_of("t", str(n)) for n in range(20_000)}) == 1024


@pytest.mark.parametrize("text", ["run_abc", "run_" + "!" * 28, ""])
def test_a_foreign_id_has_no_time(text: str) -> None:
    with pytest.raises(ValueError, match="not an id"):
        ids.minted_at(text)


@pytest.mark.parametrize("bad", ["", "a b", "a/b", "ä", "x" * 129, "a\n"])
def test_names_outside_the_rule_are_refused(bad: str) -> None:
    with pytest.raises(InvalidRequest, match="agent_id must be"):
        values.name(bad, "agent_id")


@pytest.mark.parametrize("bad", ["", "a/b", "a:b", "a\x00", "a\n", "x" * 257])
def test_session_ids_outside_the_rule_are_refused(bad: str) -> None:
    with pytest.raises(InvalidRequest, match="session_id must be"):
        values.session_id(bad)


@pytest.mark.parametrize("good", ["s", "日本", "a b", "x" * 256])
def test_session_ids_may_be_anything_else(good: str) -> None:
    assert values.session_id(good) == good


@pytest.mark.parametrize("bad", [None, "", []])
def test_missing_content_has_the_contracts_sentence(bad: object) -> None:
    with pytest.raises(InvalidRequest, match=r"^input_message\.content is required$"):
        values.content(bad)


@pytest.mark.parametrize("bad", [5, {"type": "text"}, ["x"], [{"text": "x"}]])
def test_content_of_another_shape_is_refused(bad: object) -> None:
    with pytest.raises(InvalidRequest, match="string or a list of parts"):
        values.content(bad)


@given(st.integers(1, 60), st.floats(0, 0.999))
def test_delays_grow_within_their_ceiling(attempt: int, noise: float) -> None:
    retry = Retry(max_attempts=9, backoff_ms=100, max_backoff_ms=2000)
    delay = backoff.delay_ms(retry, attempt, noise)
    full = min(100 * 2 ** (attempt - 1), 2000)
    assert full // 2 <= delay <= full
    asked = backoff.delay_ms(retry, attempt, noise, at_least=60_000)
    assert 60_000 <= asked <= 60_000 + delay / 2 + 1
    assert asked == 60_000 or noise > 0
    assert backoff.delay_ms(retry, attempt, noise, at_least=700) >= 700


def test_only_what_the_policy_names_is_retried() -> None:
    retry = Retry(max_attempts=3, codes=("agent_eof",))
    assert backoff.may_retry(retry, 2, "agent_eof", retryable=True)
    assert not backoff.may_retry(retry, 3, "agent_eof", retryable=True)
    assert not backoff.may_retry(retry, 1, "agent_status", retryable=True)
    assert not backoff.may_retry(retry, 1, "agent_eof", retryable=False)


def test_a_wait_that_is_too_long_is_not_cut_short_but_left() -> None:
    retry, longer = Retry(max_attempts=3), Retry(max_attempts=3, max_backoff_ms=600_000)
    for policy, most in ((retry, 300_000), (longer, 600_000)):
        assert backoff.may_retry(policy, 1, "agent_status", retryable=True, at_least=most)
        assert not backoff.may_retry(policy, 1, "agent_status", retryable=True, at_least=most + 1)


def _mint() -> Callable[[], str]:
    numbers = iter(range(1000))
    return lambda: f"evt_{next(numbers)}"


RUN = Run(
    run_id="run_1", tenant="t", session_id="s", agent_id="a", message_id="m", created_at=1,
    deadline_at=9,
)  # fmt: skip
ACCEPT = Accept(message_id="m", role="user", content="hello")
ASKED = Invocation(run_id="run_1", role="user", content="hello")


def test_acceptance_writes_the_session_the_question_and_the_clock_with_the_run() -> None:
    op = accept(RUN, ACCEPT, _mint(), ASKED)
    kinds = [type(w.record) for w in op.writes if isinstance(w, Insert)]
    assert kinds == [Invocation, Timer, Session, Message]
    assert [d.type for d in op.events] == ["run_started", "user_input"]
    question = op.writes[3]
    assert isinstance(question, Insert)
    assert question.record.pos == WAITING  # type: ignore[attr-defined]


def test_a_child_leaves_the_transcript_alone() -> None:
    child = msgspec.structs.replace(RUN, parent_run_id="run_0")
    op = accept(child, ACCEPT, _mint(), ASKED)
    running = msgspec.structs.replace(child, status=RunState.RUNNING)
    done = Complete(message_id="m2", final_message="hi", usage={})
    ended, _ = project(running, done, 5, _mint())
    assert ended is not None
    touched = [getattr(w, "kind", None) or type(w.record) for w in (*op.writes, *ended.writes)]  # type: ignore[union-attr]
    assert Message not in touched
    assert Session not in touched


def test_a_message_takes_its_place_when_its_run_leaves_created() -> None:
    for command in (Begin(endpoint="http://a"), Cancel(reason="x")):
        op, _ = project(RUN, command, 5, _mint())
        assert op is not None
        assert Patch(Message, ("m",), {"pos": NEXT}) in op.writes


def test_the_end_of_a_run_stops_its_clocks_and_frees_its_owner() -> None:
    run = msgspec.structs.replace(RUN, status=RunState.RUNNING, owner="me")
    op, after = project(run, Complete(message_id="m2", final_message="hi", usage={}), 5, _mint())
    assert op is not None
    assert Delete(Timer, ("run_1",)) in op.writes
    assert op.changes["owner"] is None
    assert after.status is RunState.DONE


def _event(payload: ev.Payload) -> ev.LogEvent:
    return ev.seal("run_1", 7, ev.draft("evt_1", 5, payload))


def test_sealed_bytes_are_one_json_object_in_the_wire_order() -> None:
    event = _event(ev.AgentStreamDelta(text='a"b\u2028'))
    assert event.data == (
        b'{"event_id":"evt_1","run_id":"run_1","seq":7,"ts":5,"type":"agent_stream_delta",'
        b'"payload":{"text":"a\\"b\xe2\x80\xa8"}}'
    )
    assert ev.open_event(event.data).decoded() == ev.AgentStreamDelta(text='a"b\u2028')


@pytest.mark.parametrize(
    ("payload", "fields"),
    [
        (ev.AgentStreamDelta(text="x"), {"type": "delta", "text": "x"}),
        (
            ev.AgentState(state="busy"),
            {"type": "state", "state": "busy", "detail": None},
        ),
        (ev.RunDone(usage={"tokens": 3}), {"type": "done", "usage": {"tokens": 3}}),
        (
            ev.RunFailed(code="c", message="m"),
            {"type": "error", "code": "c", "message": "m"},
        ),
        (
            ev.RunCancelled(reason="r"),
            {"type": "error", "code": "cancelled", "message": "r"},
        ),
        (
            ev.UserInput(message_id="m", content="x", queued=True),
            {"type": "state", "state": "queued", "detail": None},
        ),
        (
            ev.RunStarted(session_id="s", agent_id="a", request_id="q"),
            {
                "type": "run_started",
                "request_id": "q",
                "session_id": "s",
                "agent_id": "a",
            },
        ),
    ],
)
def test_live_names(payload: ev.Payload, fields: dict[str, object]) -> None:
    pushed = live(_event(payload))
    assert pushed is not None
    common = {"ts": 5, "run_id": "run_1", "event_id": "evt_1", "seq": 7}
    assert msgspec.json.decode(pushed) == fields | common


def test_what_only_the_log_needs_is_not_pushed() -> None:
    assert live(_event(ev.UserInput(message_id="m", content="x"))) is None
    assert live(_event(ev.AgentInvokeDone(final_message="", usage={}))) is None
