"""The rules of health and choice, on whatever may have happened."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core import wellness as w
from orchestrator.core.errors import AgentFailure
from orchestrator.core.records import Agent, Instance
from orchestrator.testing.records import agent

HOUR = 3_600_000


class Candidate(msgspec.Struct, frozen=True):
    """An instance as the choice sees it."""

    name: str
    status: str = "healthy"
    ejected: bool = False
    failing: bool = False
    trial: bool = False
    open: int = 0
    most: int | None = None

    @property
    def is_free(self) -> bool:
        """Return whether it takes another call."""
        return self.most is None or self.open < self.most


def _candidates(drawn: list[tuple[str, bool, bool, int, int | None]]) -> list[Candidate]:
    return [
        Candidate(f"i{n}", status, ejected, failing, open=busy, most=most)
        for n, (status, ejected, failing, busy, most) in enumerate(drawn)
    ]


ONE = st.tuples(
    st.sampled_from(w.STATUSES),
    st.booleans(),
    st.booleans(),
    st.integers(0, 3),
    st.sampled_from([None, 1, 3]),
)
SOME = st.lists(ONE, min_size=1, max_size=6).map(_candidates)
NAMES = st.lists(st.sampled_from([f"i{n}" for n in range(6)]), max_size=6)
WHAT = st.lists(st.sampled_from(["well", "ill", "probe good", "probe bad", "wait"]), max_size=60)


def instance(name: str = "a", **fields: Any) -> Instance:
    """Return an instance registered at 1000."""
    wanted: dict[str, Any] = {
        "tenant": "default", "agent_id": "demo", "instance_id": name, "endpoint": f"http://{name}",
        "created_at": 1000, "updated_at": 1000,
    }  # fmt: skip
    return Instance(**(wanted | fields))


def agent_at(at: int, **fields: Any) -> Agent:
    """Return an agent registered at a time."""
    return msgspec.structs.replace(agent("demo", endpoint="http://own"), updated_at=at, **fields)


def play(happenings: list[str], *, last: bool = False, noise: float = 0.5) -> tuple[w.Known, float]:
    """Return what is known after some happenings, and when that is."""
    known, now = w.UNKNOWN, 100.0
    for what in happenings:
        now += 1.0
        match what:
            case "well":
                known = w.succeeded(known)
            case "ill":
                known = w.failed(known, "agent_unavailable: x", now, noise, last=last)
            case "wait":
                now = known.ejected_until or now
            case _:
                status = "healthy" if what == "probe good" else "unhealthy"
                known = w.probed(known, status, now, noise)
    return known, now


@given(WHAT, st.floats(0, 0.999))
def test_only_failures_in_a_row_eject_and_only_success_ends_it(
    happenings: list[str], noise: float
) -> None:
    known, now = play(happenings, noise=noise)
    after = w.failed(known, "x", now, noise, last=False)
    if known.ejected_until is None:
        assert (after.ejected_until is not None) == (known.streak + 1 >= w.STREAK)
    assert w.succeeded(after).ejected_until is None
    assert w.succeeded(after).ejections == w.succeeded(after).streak == 0
    assert 0 <= after.results < 1 << w.CALLS
    assert after.results.bit_count() <= after.calls <= w.CALLS


@given(WHAT, st.floats(0, 0.999))
def test_the_last_instance_is_never_ejected(happenings: list[str], noise: float) -> None:
    bad = [what for what in happenings if what != "wait"]
    assert play(bad, last=True, noise=noise)[0].ejected_until is None


@given(st.integers(1, 20), st.floats(0, 0.999))
def test_an_ejection_doubles_with_jitter_up_to_five_minutes(times: int, noise: float) -> None:
    known, now = play(["ill"] * w.STREAK, noise=noise)
    for _ in range(times - 1):
        assert known.ejected_until is not None
        now = known.ejected_until
        known = w.failed(known, "x", now, noise, last=False)
    whole = min(5.0 * 2 ** (times - 1), 300.0)
    assert known.ejected_until is not None
    assert whole * 0.79 <= known.ejected_until - now <= whole * 1.21
    assert known.ejections == times


def test_what_was_called_before_the_ejection_does_not_prolong_it() -> None:
    known, now = play(["ill"] * 3)
    assert w.failed(known, "x", now + 1, 0.9, last=False).ejected_until == known.ejected_until


def test_health_is_asked_at_the_end_of_an_ejection_and_not_before() -> None:
    known, now = play(["ill"] * 3)
    assert not w.probed(known, "healthy", now + 1, 0.5).cleared
    assert known.ejected_until is not None
    assert w.probed(known, "unknown", known.ejected_until, 0.5).cleared
    longer = w.probed(known, "unhealthy", known.ejected_until, 0.5)
    assert not longer.cleared
    assert longer.ejections == 2


@pytest.mark.parametrize(
    ("fields", "happenings", "status"),
    [
        ({}, [], "unknown"),
        ({"draining": True, "last_heartbeat": 1}, ["ill"] * 3, "draining"),
        ({"last_heartbeat": HOUR - 90_000}, [], "healthy"),
        ({"last_heartbeat": HOUR - 90_001}, ["well"], "unhealthy"),
        ({"last_heartbeat": 1, "updated_at": HOUR - 10}, [], "healthy"),
        ({"last_heartbeat": HOUR}, ["ill"] * 3, "unhealthy"),
        ({}, ["probe bad"], "unhealthy"),
        ({"last_heartbeat": HOUR}, ["probe bad"], "healthy"),
        ({}, ["probe good"], "healthy"),
        ({}, ["well"], "healthy"),
        ({}, ["ill"], "unknown"),
        ({}, ["well", "ill"], "degraded"),
        ({}, ["ill", "well"], "healthy"),
        ({}, ["ill", "ill", "well", "ill", "well"], "degraded"),
        ({}, ["ill", "well", "well", "ill", "well"], "healthy"),
    ],
)
def test_health_is_judged_in_the_order_of_the_rules(
    fields: dict[str, Any], happenings: list[str], status: str
) -> None:
    assert w.health(instance(**fields), play(happenings)[0], HOUR, 110.0) == status


def test_a_failure_is_forgiven_after_a_while() -> None:
    known, now = play(["well", "ill"])
    assert w.health(instance(), known, HOUR, now + 30) == "degraded"
    assert w.health(instance(), known, HOUR, now + 31) == "unknown"
    assert w.health(instance(last_heartbeat=HOUR), known, HOUR, now + 31) == "healthy"


@pytest.mark.parametrize(
    ("failure", "sick"),
    [
        (AgentFailure("agent_unavailable", "x"), True),
        (AgentFailure("agent_unavailable", "x", retryable=False), False),
        (AgentFailure("agent_unavailable", "x", refused=True), False),
        (AgentFailure("agent_first_byte_timeout", "x"), True),
        (AgentFailure("agent_status", "x", http_status=503), True),
        (AgentFailure("agent_status", "x", http_status=429), False),
        (AgentFailure("agent_eof", "x"), False),
        (AgentFailure("agent_eof", "x", hung_up=True), True),
        (AgentFailure("agent_timeout", "x"), False),
    ],
)
def test_only_what_an_instance_can_help_speaks_against_it(
    failure: AgentFailure, *, sick: bool
) -> None:
    assert w.is_sick(failure) is sick


@given(SOME, NAMES, st.integers(0, 100))
def test_the_choice_keeps_to_its_order(some: list[Candidate], tried: list[str], turn: int) -> None:
    chosen = w.choose(some, tried, turn)
    routable = w.routable(some)
    assert routable
    if chosen is None:
        assert any(not one.is_free for one in routable)
        return
    assert chosen in routable
    assert chosen.is_free
    if any(one.status != "draining" for one in some):
        assert chosen.status != "draining"
    if any(one.status != "draining" and not (one.ejected or one.failing) for one in some):
        assert not chosen.ejected
    if chosen.name in tried:
        assert all(one.name in tried for one in routable)
    ranks = {"healthy": 0, "unknown": 0, "degraded": 1, "unhealthy": 2, "draining": 3}
    fresh = [one for one in routable if one.name not in tried]
    for one in fresh:
        better = (ranks[one.status], one.open) < (ranks[chosen.status], chosen.open)
        assert not (better and one.is_free)


def test_equals_take_turns_and_the_least_busy_goes_first() -> None:
    some = [Candidate("a"), Candidate("b"), Candidate("c", open=1)]
    chosen = [w.choose(some, (), turn) for turn in range(6)]
    assert [one.name for one in chosen if one] == ["a", "b"] * 3


def test_a_retry_comes_back_to_the_last_one_only_when_it_is_alone() -> None:
    some = [Candidate("a"), Candidate("b", "unhealthy")]
    for tried, name in ((["a"], "b"), (["b", "a"], "b"), (["a", "b"], "a")):
        chosen = w.choose(some, tried, 0)
        assert chosen is not None
        assert chosen.name == name
    alone = w.choose(some[:1], ["a"], 0)
    assert alone is not None
    assert alone.name == "a"


def test_nobody_goes_to_an_unhealthy_one_because_a_good_one_is_busy() -> None:
    some = [Candidate("a", open=1, most=1), Candidate("b", "unhealthy")]
    assert w.choose(some, (), 0) is None


def test_when_the_last_one_fails_too_the_ejected_ones_are_tried_again() -> None:
    some = [Candidate("a", "degraded", failing=True), Candidate("b", "unhealthy", ejected=True)]
    for tried, name in (((), "a"), (["a"], "b"), (["a", "b"], "a")):
        chosen = w.choose(some, tried, 0)
        assert chosen is not None
        assert chosen.name == name


def test_a_trial_goes_first_where_all_are_equal() -> None:
    some = [Candidate("a", open=1), Candidate("b", "unhealthy", trial=True)]
    chosen = w.choose(some, (), 0)
    assert chosen is not None
    assert chosen.name == "b"


@given(st.lists(st.integers(0, 3 * HOUR), min_size=1, max_size=5))
def test_who_was_silent_for_an_hour_goes_but_never_the_last(heard: list[int]) -> None:
    some = [instance(f"i{n}", last_heartbeat=at, updated_at=0) for n, at in enumerate(heard)]
    gone = w.dead(some, 3 * HOUR)
    assert all(3 * HOUR - (one.last_heartbeat or 0) > HOUR for one in gone)
    assert len(gone) < len(some)
    stays = [one for one in some if one not in gone]
    assert len(stays) == max(1, sum(3 * HOUR - at <= HOUR for at in heard))
    assert w.dead([instance(), instance("b", last_heartbeat=1, updated_at=0)], 3 * HOUR) == [
        instance("b", last_heartbeat=1, updated_at=0)
    ]


def test_an_agents_row_is_an_instance_where_an_older_program_wrote_it() -> None:
    (alone,) = w.merged(agent_at(5), [])
    assert (alone.instance_id, alone.endpoint) == ("default", "http://own")
    two = w.merged(agent_at(5, instance_id="b"), [instance("a")])
    assert [(one.instance_id, one.endpoint) for one in two] == [
        ("a", "http://a"),
        ("b", "http://own"),
    ]
    older = w.merged(agent_at(1000, instance_id="a", last_heartbeat=7), [instance("a")])
    assert older == [instance("a", last_heartbeat=7)]
    newer = w.merged(agent_at(1001, instance_id="a"), [instance("a", draining=True)])
    assert (newer[0].endpoint, newer[0].draining, newer[0].created_at) == (
        "http://own",
        False,
        1000,
    )
    drained = w.merged(
        agent_at(1000, instance_id="a", draining=True), [instance("a"), instance("b")]
    )
    assert [one.draining for one in drained] == [True, True]


def test_an_agent_is_as_well_as_its_best_instance() -> None:
    assert w.best(["draining", "unhealthy", "degraded"]) == "degraded"
    assert w.best(["draining", "draining"]) == "draining"
    assert w.best([]) == "unknown"
