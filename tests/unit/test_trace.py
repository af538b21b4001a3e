"""Trace context by the W3C's rules: what is taken on, what begins anew, what is sent on."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.clients.native import headers
from orchestrator.core.trace import MEMBERS_MAX, STATE_MAX, accepted, continued, of_run
from orchestrator.testing.fake_agent import calling

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"
GOOD = f"00-{TRACE}-{PARENT}-01"
NOISE = bytes(range(1, 25))
FORM = re.compile(r"00-[0-9a-f]{32}-[0-9a-f]{16}-0[0-3]")


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (GOOD, GOOD),
        (f"00-{TRACE}-{PARENT}-00", f"00-{TRACE}-{PARENT}-00"),
        (f"00-{TRACE}-{PARENT}-02", f"00-{TRACE}-{PARENT}-02"),
        (f"00-{TRACE}-{PARENT}-03", f"00-{TRACE}-{PARENT}-03"),
        (f"00-{TRACE}-{PARENT}-ff", f"00-{TRACE}-{PARENT}-03"),  # other flags must be zero
        (f"00-{TRACE}-{PARENT}-09", f"00-{TRACE}-{PARENT}-01"),
        (f"cc-{TRACE}-{PARENT}-01", GOOD),  # later versions are read as far as they are known
        (f"01-{TRACE}-{PARENT}-01-", GOOD),
        (f"cc-{TRACE}-{PARENT}-01-what-the-future-will-be-like", GOOD),
    ],
)
def test_a_good_traceparent_is_kept_in_our_version(given: str, kept: str) -> None:
    assert accepted([given], []) == (kept, None)


@pytest.mark.parametrize(
    "given",
    [
        "",
        "nonsense",
        f"00-{TRACE}-{PARENT}",
        f"00-{TRACE}-{PARENT}-1",
        f"00-{TRACE}-{PARENT}-011",
        f"00-{TRACE}-{PARENT}-01-",  # version 00 has 55 characters and no more
        f"00-{TRACE}-{PARENT}-01-more",
        f"00-{TRACE}-{PARENT}-01.",
        f"cc-{TRACE}-{PARENT}-01.what-the-future-will-be-like",
        f"cc-{TRACE}-{PARENT}-0",
        f"ff-{TRACE}-{PARENT}-01",
        f"ff-{TRACE}-{PARENT}-01-more",
        f"0-{TRACE}-{PARENT}-01",
        f"000-{TRACE}-{PARENT}-01",
        f".0-{TRACE}-{PARENT}-01",
        f"FF-{TRACE}-{PARENT}-01",
        f"00-{TRACE.upper()}-{PARENT}-01",
        f"00-{TRACE}-{PARENT.upper()}-01",
        f"00-{TRACE}-{PARENT}-0A",
        f"00-{'0' * 32}-{PARENT}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE[:-1]}-{PARENT}-01",
        f"00-{TRACE}0-{PARENT}-01",
        f"00-{TRACE[:-1]}.-{PARENT}-01",
        f"00-{TRACE}-{PARENT[:-1]}-01",
        f"00-{TRACE}-{PARENT}0-01",
        f"00-{TRACE}-{PARENT[:-1]}.-01",
        f"00_{TRACE}_{PARENT}_01",
        f" {GOOD}",
        f"{GOOD} ",
        f"{GOOD}\n",
        GOOD.replace("7", "\u0667"),  # a digit, but not of ours
    ],
)
def test_a_bad_traceparent_is_dropped_with_its_tracestate(given: str) -> None:
    assert accepted([given], ["foo=1"]) == (None, None)
    begun = continued(given, "foo=1", NOISE)
    assert (begun.trace_id, begun.span_id) == (NOISE[:16].hex(), NOISE[16:].hex())
    assert (begun.parent_id, begun.state, begun.sampled) == (None, None, True)


def test_two_traceparents_are_none() -> None:
    assert accepted([GOOD, GOOD], ["foo=1"]) == (None, None)
    assert accepted([], ["foo=1"]) == (None, None)


def test_a_trace_goes_on_with_a_new_span() -> None:
    trace = continued(f"00-{TRACE}-{PARENT}-02", "foo=1", NOISE)
    assert (trace.trace_id, trace.parent_id, trace.state) == (TRACE, PARENT, "foo=1")
    assert trace.traceparent == f"00-{TRACE}-{NOISE[16:].hex()}-02"
    assert not trace.sampled
    below = trace.below(b"\x11" * 8)
    assert below.traceparent == f"00-{TRACE}-{'11' * 8}-02"
    assert (below.parent_id, below.state) == (trace.span_id, "foo=1")


def test_nothing_but_zeros_is_no_id() -> None:
    begun = continued(None, None, bytes(24))
    assert accepted([begun.traceparent], []) == (begun.traceparent, None)
    below = begun.below(bytes(8))
    assert accepted([below.traceparent], []) == (below.traceparent, None)


KEY = "abcdefghijklmnopqrstuvwxyz0123456789_-*/"
VALUE = "".join(chr(code) for code in range(0x20, 0x7F) if chr(code) not in ",=")


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (["foo=1"], "foo=1"),
        (["foo=1,bar=2"], "foo=1,bar=2"),
        (["foo=1,bar=2", "rojo=1,congo=2", "baz=3"], "foo=1,bar=2,rojo=1,congo=2,baz=3"),
        (["foo=1", ""], "foo=1"),
        (["", "foo=1"], "foo=1"),
        (["foo=1,,bar=2, ,"], "foo=1,bar=2"),
        (["foo=1 \t , \t bar=2, \t baz=3"], "foo=1,bar=2,baz=3"),
        (["\t foo=1 \t"], "foo=1"),
        (["foo= 1"], "foo= 1"),  # what leads belongs to the value
        ([f"{KEY}={VALUE}"], f"{KEY}={VALUE}"),
        (["1tenant@system=x"], "1tenant@system=x"),
        (["z" * 256 + "=1"], "z" * 256 + "=1"),
        (["z=" + "1" * 256], "z=" + "1" * 256),
        (
            [",".join(f"k{n}={n}" for n in range(MEMBERS_MAX))],
            ",".join(f"k{n}={n}" for n in range(MEMBERS_MAX)),
        ),
        (["a=" + "1" * 252, "b=" + "1" * 255], f"a={'1' * 252},b={'1' * 255}"),
    ],
)
def test_a_good_tracestate_is_kept_in_order(given: list[str], kept: str) -> None:
    assert accepted([GOOD], given) == (GOOD, kept)
    assert len(kept) <= STATE_MAX


@pytest.mark.parametrize(
    "given",
    [
        [""],
        [" , \t"],
        ["foo"],
        ["foo=,bar=3"],
        ["=1"],
        ["foo =1"],
        ["FOO=1"],
        ["foo.bar=1"],
        ["@foo=1,bar=2"],
        ["foo=bar=baz"],
        ["foo=\u00e9"],
        ["foo=1\x7f"],
        ["foo=1,foo=1"],
        ["foo=1", "foo=2"],
        ["z" * 257 + "=1", "foo=1"],
        ["z=" + "1" * 257],
        [",".join(f"k{n}={n}" for n in range(MEMBERS_MAX + 1))],
        ["a=" + "1" * 253, "b=" + "1" * 255],
    ],
)
def test_a_bad_tracestate_is_dropped_alone(given: list[str]) -> None:
    assert accepted([GOOD], given) == (GOOD, None)


NEARLY = st.from_regex(r"[0-9a-f]{1,3}-[0-9a-fA-F]{31,33}-[0-9a-f]{16}-[0-9a-f]{2}(-.*)?")


@given(st.lists(st.text() | NEARLY, max_size=2), st.lists(st.text(), max_size=3))
def test_whatever_comes_what_is_kept_is_well_formed(parents: list[str], states: list[str]) -> None:
    parent, state = accepted(parents, states)
    assert parent is None or FORM.fullmatch(parent)
    assert state is None or parent is not None


@given(st.from_regex(FORM, fullmatch=True), st.binary(min_size=24, max_size=24))
def test_what_is_sent_on_is_accepted_by_the_next(given: str, noise: bytes) -> None:
    sent = continued(given, "foo=1", noise).below(noise[:8])
    assert accepted([sent.traceparent], [sent.state or ""]) == (sent.traceparent, sent.state)
    assert (sent.state is None) == (accepted([given], []) == (None, None))


def test_a_run_has_one_place_whoever_looks() -> None:
    first, again = of_run("run_1", GOOD, "foo=1"), of_run("run_1", GOOD, "foo=1")
    assert first == again
    assert (first.trace_id, first.parent_id) == (TRACE, PARENT)
    assert of_run("run_2", GOOD, None).span_id != first.span_id
    alone = of_run("run_1", None, None)
    assert alone.span_id == first.span_id
    assert alone.trace_id not in {TRACE, of_run("run_2", None, None).trace_id}
    assert (alone.parent_id, alone.traceparent[-2:]) == (None, "03")


def test_an_agent_is_sent_both_headers() -> None:
    sent = headers(calling("http://agent", traceparent=GOOD, tracestate="foo=1"), "*/*")
    assert (sent["traceparent"], sent["tracestate"]) == (GOOD, "foo=1")
    assert "tracestate" not in headers(calling("http://agent"), "*/*")
