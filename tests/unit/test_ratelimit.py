"""What a limit lets through: no more than it says, the same for each caller, on any clock."""

import re
from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core.ratelimit import N_MAX, Limit, Limiter, Verdict, headers

LIMITS = st.builds(
    Limit,
    st.one_of(st.integers(1, 12), st.integers(1, N_MAX)),
    st.sampled_from([1, 60, 3600, 86_400]),
)
SMALL = st.builds(Limit, st.integers(1, 12), st.sampled_from([1, 60]))
# Binary fractions, so that sums of them are exact seconds and the rule can be tested to the letter.
STEPS = st.one_of(st.just(0), st.integers(0, 200), st.integers(0, 80_000)).map(lambda n: n / 1024)
JUMPS = st.one_of(STEPS, st.integers(-8_000_000, 8_000_000).map(lambda n: n / 1024))


def times(steps: list[float], start: float = 1000.0) -> list[float]:
    """Return the readings of a clock that moves by these steps."""
    found = [start]
    for step in steps:
        found.append(found[-1] + step)
    return found


def taken(limit: Limit, steps: list[float]) -> list[tuple[float, Verdict]]:
    """Return what one caller was told, with the time."""
    limiter = Limiter()
    return [(now, limiter.take("k", limit, now)) for now in times(steps)]


def promised(limit: Limit, seconds: float) -> Fraction:
    """Return the most requests that may pass in so many seconds."""
    return limit.n + Fraction(seconds) * limit.n / limit.window_s


# Limits as text


@given(LIMITS)
def test_a_limit_is_what_its_text_says(limit: Limit) -> None:
    assert Limit.parse(str(limit)) == limit


@pytest.mark.parametrize(
    ("text", "n", "window_s"),
    [("600/m", 600, 60), ("10/s", 10, 1), ("5000/h", 5000, 3600), ("1000/d", 1000, 86_400),
     ("1/s", 1, 1), ("1000000/d", 1_000_000, 86_400)],
)  # fmt: skip
def test_limits_are_written_so(text: str, n: int, window_s: int) -> None:
    assert Limit.parse(text) == Limit(n, window_s)
    assert str(Limit(n, window_s)) == text


@pytest.mark.parametrize(
    "text",
    ["", "600", "/m", "600/", "600/M", "600/min", "600 / m", " 600/m", "600/m\n", "0/s", "-1/s",
     "+1/s", "1e3/s", "1.5/s", "1_000/s", "01/s", "1000001/s", "9" * 5000 + "/s", "٣/s", "600/w"],
)  # fmt: skip
def test_anything_else_is_refused_with_the_rule(text: str) -> None:
    with pytest.raises(ValueError, match=r"^a limit is a whole number .* such as 600/m, not "):
        Limit.parse(text)


@pytest.mark.parametrize(("n", "window_s"), [(0, 1), (N_MAX + 1, 1), (5, 0), (5, 61), (5, -1)])
def test_a_limit_that_has_no_text_cannot_be_made(n: int, window_s: int) -> None:
    with pytest.raises(ValueError, match=r"^a limit"):
        Limit(n, window_s)


# What passes


@given(SMALL, st.lists(STEPS, max_size=60))
def test_any_stretch_of_time_sees_no_more_than_the_rule(limit: Limit, steps: list[float]) -> None:
    passed = [now for now, verdict in taken(limit, steps) if verdict.allowed]
    for first, begin in enumerate(passed):
        for last, end in enumerate(passed[first:], first):
            assert last - first + 1 <= promised(limit, end - begin)


@given(SMALL, st.lists(STEPS, max_size=60))
def test_the_window_after_a_refusal_sees_at_most_n(limit: Limit, steps: list[float]) -> None:
    story = taken(limit, steps)
    for at, (begin, verdict) in enumerate(story):
        if not verdict.allowed:
            until = begin + limit.window_s
            assert sum(v.allowed for now, v in story[at:] if now <= until) <= limit.n


@given(SMALL, st.lists(STEPS, max_size=60))
def test_nobody_is_refused_who_keeps_the_rule(limit: Limit, steps: list[float]) -> None:
    # An exact model of the bucket, in requests.
    owed, last = Fraction(0), 1000.0
    for now, verdict in taken(limit, steps):
        owed = max(Fraction(0), owed - Fraction(now - last) * limit.n / limit.window_s)
        assert verdict.allowed == (owed + 1 <= limit.n)
        owed, last = owed + verdict.allowed, now
        assert verdict.remaining == (limit.n - owed) // 1


@given(LIMITS, st.integers(1, 40))
def test_an_idle_caller_may_come_with_n_at_once_and_not_one_more(limit: Limit, extra: int) -> None:
    limiter = Limiter()
    burst = min(limit.n, 200)
    told = [limiter.take("k", limit, 5.0) for _ in range(burst + extra)]
    assert [v.allowed for v in told] == [n < limit.n for n in range(burst + extra)]
    assert [v.remaining for v in told] == [max(0, limit.n - n - 1) for n in range(burst + extra)]


def test_a_steady_caller_at_the_rate_is_never_refused_in_a_year() -> None:
    limit, limiter = Limit.parse("7/d"), Limiter()
    assert [limiter.take("k", limit, 1e7).allowed for _ in range(8)] == [True] * 7 + [False]
    at = [1e7 + 0.001 + n * 86_400 / 7 for n in range(1, 365 * 7)]
    told = [limiter.take("k", limit, now) for now in at]
    assert all(v.allowed and v.remaining == 0 for v in told)


@given(LIMITS, st.lists(STEPS, max_size=30), st.lists(st.integers(0, 5), min_size=31, max_size=31))
def test_a_refused_request_costs_nothing(
    limit: Limit, steps: list[float], hammering: list[int]
) -> None:
    patient, greedy = Limiter(), Limiter()
    for now, more in zip(times(steps), hammering, strict=False):
        told = greedy.take("k", limit, now)
        assert told == patient.take("k", limit, now)
        for _ in range(0 if told.remaining else more):
            again = greedy.take("k", limit, now)
            assert (again.allowed, again.remaining) == (False, 0)


@given(LIMITS, st.lists(JUMPS, max_size=40))
def test_what_is_told_is_never_negative_and_true(limit: Limit, steps: list[float]) -> None:
    for _, verdict in taken(limit, steps):
        assert 0 <= verdict.remaining < limit.n
        assert 1 <= verdict.reset_s <= limit.window_s
        assert (verdict.retry_after_s == 0) is verdict.allowed
        assert verdict.allowed or verdict.remaining == 0


@given(SMALL, st.lists(STEPS, max_size=40))
def test_a_caller_who_waits_as_told_passes(limit: Limit, steps: list[float]) -> None:
    limiter = Limiter()
    story = [(now, limiter.take("k", limit, now)) for now in times(steps)]
    now, told = story[-1]
    assert all(limiter.take("k", limit, now).allowed for _ in range(told.remaining))
    later = [limiter.take("k", limit, now + told.reset_s) for _ in range(max(1, told.remaining))]
    assert all(v.allowed for v in later)


@given(LIMITS, st.lists(STEPS, max_size=40))
def test_what_is_told_is_no_faster_than_the_limit(limit: Limit, steps: list[float]) -> None:
    for _, verdict in taken(limit, steps):
        assert Fraction(verdict.remaining, verdict.reset_s) <= Fraction(limit.n, limit.window_s)


# Clocks


@given(SMALL, st.lists(JUMPS, max_size=60))
def test_a_clock_that_jumps_gives_away_only_what_it_moved_forward(
    limit: Limit, steps: list[float]
) -> None:
    story = taken(limit, steps)
    forward = sum(max(0.0, b - a) for (a, _), (b, _) in pairwise(story))
    assert sum(v.allowed for _, v in story) <= promised(limit, forward)


@given(SMALL, st.integers(1, 10**6))
def test_a_clock_that_went_back_keeps_nobody_out(limit: Limit, back: int) -> None:
    limiter = Limiter()
    while limiter.take("k", limit, 2e6).allowed:
        pass
    told = limiter.take("k", limit, 2e6 - back)
    assert not told.allowed
    assert limiter.take("k", limit, 2e6 - back + told.retry_after_s).allowed


# Many callers


@given(
    SMALL,
    st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["x", "y"]), STEPS), max_size=60),
)
def test_nobody_else_changes_what_a_caller_is_told(
    limit: Limit, asked: list[tuple[str, str, float]]
) -> None:
    together = Limiter()
    told: dict[tuple[str, str], list[tuple[float, Verdict]]] = {}
    for (key, name, _), now in zip(asked, times([step for *_, step in asked]), strict=False):
        told.setdefault((key, name), []).append((now, together.take(key, limit, now, name)))
    for (key, name), story in told.items():
        alone = Limiter()
        assert [alone.take(key, limit, now, name) for now, _ in story] == [v for _, v in story]


def test_a_changed_limit_has_a_bucket_of_its_own_and_the_old_one_is_not_refilled() -> None:
    limiter, old, new = Limiter(), Limit(1, 60), Limit(2, 60)
    assert [limiter.take("k", limit, 0.0).allowed for limit in (old, new, old, new, old, new)] == [
        True, True, False, True, False, False,
    ]  # fmt: skip


@given(st.integers(1, 8), st.lists(st.tuples(st.integers(0, 30), STEPS), max_size=80))
def test_memory_is_bounded(size: int, asked: list[tuple[int, float]]) -> None:
    limiter, limit = Limiter(size), Limit(2, 60)
    for (key, _), now in zip(asked, times([step for _, step in asked]), strict=False):
        limiter.take(str(key), limit, now)
        assert len(limiter) <= size


def test_who_asked_longest_ago_is_forgotten_first_even_if_the_others_were_refused() -> None:
    limiter, limit = Limiter(2), Limit(1, 60)
    assert limiter.take("hammering", limit, 0.0).allowed
    assert limiter.take("once", limit, 0.0).allowed
    assert not limiter.take("hammering", limit, 1.0).allowed
    assert limiter.take("newcomer", limit, 2.0).allowed
    assert limiter.forgotten == 1
    assert not limiter.take("hammering", limit, 3.0).allowed
    assert limiter.take("once", limit, 4.0).allowed, "it was forgotten, so it starts anew"


def test_forgetting_who_was_idle_for_a_window_changes_nothing_and_is_not_counted() -> None:
    limiter, limit = Limiter(1), Limit(3, 60)
    for _ in range(3):
        limiter.take("a", limit, 0.0)
    limiter.take("b", limit, 60.0)
    assert (len(limiter), limiter.forgotten) == (1, 0)
    limiter.take("c", limit, 61.0)
    assert (len(limiter), limiter.forgotten) == (1, 1)


# Headers


def test_a_request_that_passed_has_the_drafts_fields() -> None:
    limiter, limit = Limiter(), Limit.parse("100/m")
    told = [limiter.take("k", limit, 0.0) for _ in range(50)][-1]
    assert headers("default", limit, told) == {
        "RateLimit-Policy": '"default";q=100;w=60',
        "RateLimit": '"default";r=50;t=30',
    }


def test_a_refused_request_is_told_when_to_come_back_and_not_before_the_windows_end() -> None:
    limiter, limit = Limiter(), Limit.parse("2/h")
    told = [limiter.take("k", limit, 0.0) for _ in range(3)][-1]
    assert headers("runs", limit, told) == {
        "RateLimit-Policy": '"runs";q=2;w=3600',
        "RateLimit": '"runs";r=0;t=1800',
        "Retry-After": "1800",
    }


@given(st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1), LIMITS)
def test_any_printable_name_is_one_string_of_structured_fields(name: str, limit: Limit) -> None:
    fields = headers(name, limit, Limiter().take("k", limit, 0.0))
    for value in fields.values():
        item = re.fullmatch(r'"((?:[ !#-\[\]-~]|\\["\\])*)"(;[a-z]+=\d{1,15})+', value)
        assert item
        assert re.sub(r"\\(.)", r"\1", item[1]) == name


@pytest.mark.parametrize("name", ["", "ü", "a\r\nX: y", "a\x00", "\x7f"])
def test_a_name_that_is_no_header_text_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="printable ASCII"):
        headers(name, Limit(1, 1), Verdict(allowed=True, remaining=0, reset_s=1, retry_after_s=0))
