"""JSON as others write it is decoded, mended or refused, and never costs more than its length."""

import subprocess
import sys
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
    ],
)
def test_unpaired_surrogates_are_mended(text: str, value: Any) -> None:
    assert jsontext.decode(text) == value


@pytest.mark.parametrize(
    "text",
    ["", "{", "[1,]", "{'a':1}", "NaN", "Infinity", "-", "01", "1 2", '"\x01"', '"\\x"', "nul",
     b'"\xff"', b"\xff", "[" * 300 + "]" * 300, '{"a":' * 300 + "1" + "}" * 300, "[" * 100_000],
)  # fmt: skip
def test_what_is_not_json_is_refused(text: str | bytes) -> None:
    with pytest.raises(jsontext.MalformedJSON):
        jsontext.decode(text)


def test_brackets_within_strings_do_not_nest() -> None:
    text = "[" * 1000 + '"\\'
    assert jsontext.decode(msgspec.json.encode([text])) == [text]
    deep = "[" * jsontext.NESTING_MAX + "]" * jsontext.NESTING_MAX
    assert jsontext.decode(deep)


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
