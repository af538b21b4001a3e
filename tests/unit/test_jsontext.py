"""JSON as others write it is decoded, mended or refused, and never costs more than its length."""

import inspect
import subprocess
import sys
from contextlib import suppress
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core import jsontext

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(VALUES)
def test_what_is_well_formed_is_unchanged(value: Any) -> None:
    assert jsontext.decode(msgspec.json.encode(value)) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (r'"\ud83d\ude00"', "\U0001f600"),
        (r'"\ud83d"', "\ufffd"),
        (r'"\ude00"', "\ufffd"),
        (r'"\ud83d\ud83d\ude00"', "\ufffd\U0001f600"),
        (r'"\ude00\ud83d"', "\ufffd\ufffd"),
        (r'"\\ud83d"', "\\ud83d"),
        (r'"\\\ud83d"', "\\\ufffd"),
        (r'"\\\\ud83d"', "\\\\ud83d"),
        (r'{"\uD83D": ["\uDE00x"]}', {"\ufffd": ["\ufffdx"]}),
        (r'"\uDBFF\uDFFF"', "\U0010ffff"),
        (r'"\uDAFF"', "\ufffd"),
        (r'"\uDBFF\uDBFF\uDFFF\uDFFF"', "\ufffd\U0010ffff\ufffd"),
        (r'"\ud83d\\ude00"', "\ufffd\\ude00"),
    ],
)
def test_unpaired_surrogates_are_mended(text: str, value: Any) -> None:
    assert jsontext.decode(text) == value


@pytest.mark.parametrize(
    "text",
    ["", "{", "[1,]", "{'a':1}", "NaN", "Infinity", "-Infinity", "[NaN]", "1e400", "9" * 5000,
     "\ufeff1", '"\ud800"', r'"\ud800', r'"\ud8"', "{1:2}",
     "-", "01", "1 2", '"\x01"', '"\\x"', "nul",
     b'"\xff"', b"\xff", "[" * 300 + "]" * 300, '{"a":' * 300 + "1" + "}" * 300, "[" * 100_000],
)  # fmt: skip
def test_what_is_not_json_is_refused(text: str | bytes) -> None:
    with pytest.raises(jsontext.MalformedJSON):
        jsontext.decode(text)


def test_brackets_within_strings_do_not_nest() -> None:
    text = "[" * 1000 + '"\\'
    assert jsontext.decode(msgspec.json.encode([text])) == [text]


@pytest.mark.parametrize(
    "fits",
    [
        "[" * 256 + "]" * 256,
        '{"a":' * 256 + "1" + "}" * 256,
        '[{"a":' * 128 + "1" + "}]" * 128,
        "[" * 255 + "[],{}," * 300 + "1" + "]" * 255,
    ],
)
def test_the_limit_of_nesting_is_exact(fits: str) -> None:
    assert jsontext.decode(fits)
    with pytest.raises(jsontext.MalformedJSON, match="nested over 256 deep"):
        jsontext.decode(f"[{fits}]")


@pytest.mark.parametrize("room", [30, 60, 100, 200])
def test_what_fits_is_decoded_or_refused_where_the_stack_is_nearly_full(room: int) -> None:
    def dive(levels: int) -> Any:
        return dive(levels - 1) if levels else jsontext.decode("[" * 256 + "]" * 256)

    free = sys.getrecursionlimit() - len(inspect.stack(0))
    with suppress(jsontext.MalformedJSON):
        assert dive(free - room)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"a":1,"b":2,"a":3}', {"a": 3, "b": 2}),
        (r'{"\ud800":1,"\ud801":2}', {"\ufffd": 2}),
        ("18446744073709551616", 1 << 64),
        ("-9223372036854775809", -(1 << 63) - 1),
        ("9" * 400, 10**400 - 1),
        ("1e-400", 0.0),
        ("0." + "1" * 5000, 1 / 9),
    ],
)
def test_odd_values_are_kept_and_can_be_written_again(text: str, value: Any) -> None:
    found = jsontext.decode(text)
    assert found == value
    assert jsontext.decode(jsontext.canonical(found)) == value


def test_a_refusal_says_where_and_not_too_much() -> None:
    with pytest.raises(jsontext.MalformedJSON, match=r"truncated \(byte 5\)"):
        jsontext.decode('{"a":')
    wanted = msgspec.defstruct("Wanted", [("x" * 1000, int)])
    with pytest.raises(jsontext.MalformedJSON) as caught:
        jsontext.decode("{}", wanted)
    assert len(str(caught.value)) == 200


@pytest.mark.parametrize(
    "text",
    [b"{" * 300 + b'"\\' * 500_000, b'"' * 1_000_000, b"[" * 1_000_000, b'"\\ud83d' * 200_000,
     b"\\" * 1_000_000, b'{"a":' * 300 + b'"\\"' * 300_000],
)  # fmt: skip
def test_hostile_texts_cost_no_more_than_long_ones(text: bytes) -> None:
    script = (
        "import sys\nfrom orchestrator.core import jsontext\n"
        "try:\n    jsontext.decode(sys.stdin.buffer.read())\n"
        "except jsontext.MalformedJSON:\n    print('refused')\n"
    )
    # A cost that grows with the square would take minutes.
    done = subprocess.run([sys.executable, "-c", script], input=text, capture_output=True,
                          timeout=20, check=True)  # fmt: skip
    assert done.stdout == b"refused\n"


@given(st.binary())
def test_bytes_become_utf8(raw: bytes) -> None:
    found = jsontext.valid_utf8(raw)
    assert found.decode() == raw.decode("utf-8", "replace")


@given(VALUES)
def test_the_canonical_form_does_not_depend_on_order(value: Any) -> None:
    def turned(one: Any) -> Any:
        if isinstance(one, dict):
            return {key: turned(inner) for key, inner in reversed(one.items())}
        return [turned(inner) for inner in one] if isinstance(one, list) else one

    assert jsontext.canonical(turned(value)) == jsontext.canonical(value)


def test_kinds_of_numbers_differ() -> None:
    assert jsontext.canonical(1) != jsontext.canonical(1.0)
    assert jsontext.canonical({"a": 1}) != jsontext.canonical({"a": "1"})
