"""The event-stream parser does what the standard says, however the bytes are split."""

import tracemalloc
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.clients.sse import LineTooLong, SSEEvent, SSEParser

CASES: dict[str, tuple[bytes, list[tuple[str, str, str]]]] = {
    "data alone": (b"data: x\n\n", [("message", "x", "")]),
    "event and data": (b"event: a\ndata: x\n\n", [("a", "x", "")]),
    "data before event": (b"data: x\nevent: a\n\n", [("a", "x", "")]),
    "an empty name is a message": (b"event: \ndata: x\n\n", [("message", "x", "")]),
    "a name and lines": (b"event: a\ndata: x\ndata: y\n\n", [("a", "x\ny", "")]),
    "no space": (b"data:x\n\n", [("message", "x", "")]),
    "one space of two": (b"data:  x\n\n", [("message", " x", "")]),
    "lines are joined": (b"data: x\ndata\ndata: y\n\n", [("message", "x\n\ny", "")]),
    "empty data": (b"data:\n\n", [("message", "", "")]),
    "no data, no event": (b"event: a\n\n", []),
    "the name is forgotten": (b"event: a\n\ndata: x\n\n", [("message", "x", "")]),
    "comments": (b": hello\n:\ndata: x\n:y\n\n", [("message", "x", "")]),
    "unknown fields": (b"datas: 1\nda: 2\ndata: x\n\n", [("message", "x", "")]),
    "field names are exact": (b" data: 1\nData: 2\n\n", []),
    "a colon in the value": (b"data: a: b\n\n", [("message", "a: b", "")]),
    "ids stay": (b"id: 1\ndata: x\n\ndata: y\n\n", [("message", "x", "1"), ("message", "y", "1")]),
    "an empty id resets": (b"id: 1\nid\ndata: x\n\n", [("message", "x", "")]),
    "an id with NUL is none": (b"id: 1\nid: \x002\ndata: x\n\n", [("message", "x", "1")]),
    "an id without data stays": (b"id: 1\n\ndata: x\n\n", [("message", "x", "1")]),
    "CR": (b"event: a\rdata: x\r\rdata: y\r\r", [("a", "x", ""), ("message", "y", "")]),
    "CRLF": (b"event: a\r\ndata: x\r\n\r\n", [("a", "x", "")]),
    "all three": (b"data: x\r\ndata: y\rdata: z\n\r\n", [("message", "x\ny\nz", "")]),
    "BOM": (b"\xef\xbb\xbfdata: x\n\n", [("message", "x", "")]),
    "only one BOM": (b"\xef\xbb\xbf\xef\xbb\xbfdata: x\n\n", []),
    "a BOM later": (b"data: x\n\n\xef\xbb\xbfdata: y\n\n", [("message", "x", "")]),
    "U+2028 and U+0085 part nothing": (
        "data: a\u2028b\u0085c\x0b\x0c\n\n".encode(), [("message", "a\u2028b\u0085c\x0b\x0c", "")],
    ),
    "NUL is text": (b"event: \0\ndata: \0\n\n", [("\0", "\0", "")]),
    "a BOM in data is text": (b"data: \xef\xbb\xbfx\n\n", [("message", "\ufeffx", "")]),
    "half a BOM": (b"\xef\xbbdata: x\n\ndata: y\n\n", [("message", "y", "")]),
    "half a BOM alone": (b"\xef\xbb", []),
    "bad UTF-8 ends with its line": (b"data: \xf0\x9f\ndata: \xe2\n\n",
                                     [("message", "\ufffd\n\ufffd", "")]),
    "bad UTF-8": (b"data: \xff\xc3\n\n", [("message", "\ufffd\ufffd", "")]),
    "many blank lines": (b"\n\n\n\ndata: x\n\n\n\n\ndata: y\n\n",
                         [("message", "x", ""), ("message", "y", "")]),
    "an end without its blank line": (b'data: {"a":1}', [("message", '{"a":1}', "")]),
    "an end after its line": (b'event: done\ndata: {"a":1}\n', [("done", '{"a":1}', "")]),
    "an end that is no JSON": (b"data: {", []),
    "an end within a field's name": (b"data: 1\nda", [("message", "1", "")]),
}  # fmt: skip


def parse(pieces: list[bytes], max_line: int = 1 << 20) -> list[SSEEvent]:
    parser = SSEParser(max_line)
    events = [event for piece in pieces for event in parser.feed(piece)]
    return events + parser.close()


def told(events: list[SSEEvent]) -> list[tuple[str, str, str]]:
    return [(event.event, event.data, event.id) for event in events]


@pytest.mark.parametrize("name", CASES)
def test_the_standard_is_kept(name: str) -> None:
    stream, expected = CASES[name]
    assert told(parse([stream])) == expected


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_splits_change_nothing(name: str, size: int) -> None:
    stream, expected = CASES[name]
    pieces = [stream[at : at + size] for at in range(0, len(stream), size)]
    assert told(parse(pieces)) == expected


PIECES = st.sampled_from(
    [b"data", b"event", b"id", b"retry", b":", b": ", b" ", b"\n", b"\r", b"\r\n", b"\n\n", b"x",
     b"{}", b'"', b"\xef\xbb\xbf", b"\x00", b"\xff", "ü\u2028".encode(), b"12", b"data: 1\n\n",
     b"event: delta\ndata: {}\n\n"]
)  # fmt: skip
STREAMS = st.lists(PIECES, max_size=40).map(b"".join)


def reference(stream: bytes) -> tuple[list[tuple[str, str, str]], str, int | None]:
    """Read a whole stream line by line, in the order of the standard's own steps."""
    text = stream.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    *lines, _rest = text.split(b"\n")
    events: list[tuple[str, str, str]] = []
    data, name, last_id, shown, retry = "", "", "", "", None
    for line in lines:
        if not line:
            shown = last_id
            if data:
                events.append((name or "message", data[:-1], last_id))
            data = name = ""
            continue
        field, _, value = line.partition(b":")
        text_value = value.removeprefix(b" ").decode("utf-8", "replace")
        if field == b"data":
            data += text_value + "\n"
        elif field == b"event":
            name = text_value
        elif field == b"id" and b"\0" not in value:
            last_id = text_value
        elif field == b"retry" and value.removeprefix(b" ").isdigit():
            retry = int(text_value)
    return events, shown, retry


@given(STREAMS, st.lists(st.integers(0, 200), max_size=8))
def test_any_stream_in_any_pieces_is_as_the_reference_reads_it(
    stream: bytes, cuts: list[int]
) -> None:
    parser = SSEParser()
    edges = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    pieces = [stream[a:b] for a, b in pairwise(edges)]
    events = [event for piece in pieces for event in parser.feed(piece)]
    expected, last_id, retry = reference(stream)
    assert told(events) == expected
    assert (parser.last_event_id, parser.retry) == (last_id, retry)


@given(st.lists(STREAMS, max_size=3), STREAMS)
def test_the_end_is_the_same_in_any_pieces(pieces: list[bytes], rest: bytes) -> None:
    stream = b"".join(pieces) + rest
    assert told(parse([*pieces, rest])) == told(parse([stream]))
    assert told(parse([bytes([byte]) for byte in stream])) == told(parse([stream]))


def test_retry_and_comments_are_noted() -> None:
    parser = SSEParser()
    parser.feed(b":\n: x\nretry: 1500\nretry: 15x\nretry: " + b"9" * 30 + b"\n")
    assert (parser.retry, parser.comments) == (1500, 2)


def feed_for_ever(parser: SSEParser, piece: bytes) -> None:
    for _ in range(20_000):
        parser.feed(piece)


@pytest.mark.parametrize("size", [1, 100, 5000])
@pytest.mark.parametrize("line", [b"data: ", b": ", b"x", b""])
def test_a_line_without_end_is_refused_and_not_kept(size: int, line: bytes) -> None:
    parser = SSEParser(max_line=10_000)
    parser.feed(line)
    with pytest.raises(LineTooLong, match="10000 bytes"):
        feed_for_ever(parser, b"x" * size)
    assert len(parser._rest) == 0
    with pytest.raises(LineTooLong):
        parser.feed(b"data: y\n\n")


def test_data_of_many_lines_has_the_same_limit() -> None:
    parser = SSEParser(max_line=10_000)
    with pytest.raises(LineTooLong, match="data"):
        feed_for_ever(parser, b"data: " + b"x" * 20 + b"\n")


@pytest.mark.parametrize("extra", [0, 1])
@pytest.mark.parametrize("head", [b"", b"event: a\n", b"id: 1\n"])
def test_the_limit_is_exact(extra: int, head: bytes) -> None:
    line = b"data: " + b"x" * (1000 - 6 + extra)
    parser = SSEParser(max_line=1000)
    if extra:
        with pytest.raises(LineTooLong):
            parser.feed(head + line + b"\n\n")
    else:
        assert [len(event.data) for event in parser.feed(head + line + b"\n\n")] == [994]


def test_what_was_whole_before_the_breach_is_handed_out() -> None:
    parser = SSEParser(max_line=100)
    assert len(parser.feed(b"data: 1\n\ndata: " + b"x" * 200)) == 1
    with pytest.raises(LineTooLong):
        parser.feed(b"")


def test_an_id_counts_for_resuming_once_its_block_has_ended() -> None:
    parser = SSEParser()
    parser.feed(b"id: 1\n\nid: 2\n")
    assert parser.last_event_id == "1"
    parser.feed(b"data: x\n")
    assert parser.last_event_id == "1"
    parser.feed(b"\ndata: y\n\nid: 3\n")
    assert parser.last_event_id == "2"


def test_an_id_stands_before_the_plain_block_that_follows_it() -> None:
    parser = SSEParser()
    parser.feed(b"id: 1\n")
    assert told(parser.feed(b"data: x\n\n")) == [("message", "x", "1")]
    assert parser.last_event_id == "1"


@pytest.mark.parametrize(
    "value", [b"", b" ", b"  1", b" -1", b" +1", b" 1.5", b" 1e3", b" 1_0", "\u0663".encode()]
)
def test_a_retry_is_nothing_but_ascii_digits(value: bytes) -> None:
    parser = SSEParser()
    parser.feed(b"retry: 007\nretry:" + value + b"\n")
    assert parser.retry == 7


def test_an_end_is_told_once() -> None:
    parser = SSEParser()
    parser.feed(b"event: a\ndata: 1")
    assert told(parser.close()) == [("a", "1", "")]
    assert parser.close() == []
    parser.feed(b"event: a\ndata: {\n")
    assert parser.close() == []
    assert told(parser.feed(b"data: x\n\n")) == [("message", "x", "")]


@pytest.mark.parametrize("size", [1, 16, 100, 1000])
def test_a_line_in_pieces_may_reach_the_limit_but_not_pass_it(size: int) -> None:
    line = b"data: " + b"x" * 994
    parser = SSEParser(max_line=1000)
    for at in range(0, 1000, size):
        assert parser.feed(line[at : at + size]) == []
    assert [len(event.data) for event in parser.feed(b"\n\n")] == [994]
    for at in range(0, 1000, size):
        parser.feed(line[at : at + size])
    with pytest.raises(LineTooLong, match="line is over 1000 bytes"):
        parser.feed(b"x")


@pytest.mark.parametrize(("extra", "breach"), [(0, False), (1, True)])
def test_the_limit_of_data_counts_its_line_ends_but_the_last(extra: int, breach: bool) -> None:
    parser = SSEParser(max_line=20)
    stream = b"data: 123456789\ndata: 1234567890" + b"x" * extra + b"\n\n"
    if breach:
        with pytest.raises(LineTooLong, match="event's data is over 20 bytes"):
            parser.feed(stream)
    else:
        assert told(parser.feed(stream)) == [("message", "123456789\n1234567890", "")]


def test_the_usual_limit_is_a_mebibyte_and_bounds_what_is_kept() -> None:
    parser, piece = SSEParser(), bytes(1 << 16)
    tracemalloc.start()
    try:
        for _ in range(16):
            parser.feed(piece)
        for _ in range(64):
            with pytest.raises(LineTooLong, match="1048576"):
                parser.feed(piece)
        now, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 << 20
    assert now < 1 << 18
