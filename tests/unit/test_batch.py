"""A batch is its events, however it was made: one by one, many at once, or read from a segment."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core import events as ev
from orchestrator.core import ids
from orchestrator.core.batch import Batch, Deltas, seal_all, unpack

RUN = "run_1"
TEXTS = st.lists(st.text(max_size=20), min_size=1, max_size=12)
SEAM = '},{"event_id":"'


def noise(count: int) -> bytes:
    return bytes(range(ids.NOISE_BYTES)) * count


@given(TEXTS)
def test_words_that_go_together_are_the_same_as_one_by_one(texts: list[str]) -> None:
    drafts = Deltas(5, texts, noise(len(texts)), "zz")
    together = seal_all(RUN, 7, drafts)
    singly = [ev.seal(RUN, 7 + n, draft) for n, draft in enumerate(drafts)]
    assert together == singly
    assert [msgspec.json.decode(e.data)["payload"]["text"] for e in together] == texts
    assert together.size == sum(len(e.data) for e in singly)


@pytest.mark.parametrize("text", ['","', '"', "\\", '\\","', "", SEAM, "\u2028\x00\x1f", "é😀"])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_texts_that_look_like_seams_stay_whole(text: str, count: int) -> None:
    batch = Deltas(5, [text] * count, noise(count), "zz").sealed(RUN, 1)
    assert [msgspec.json.decode(e.data)["payload"]["text"] for e in batch] == [text] * count
    assert unpack(1, count, batch.stored()) == (list(batch.types), batch.texts)


@given(st.lists(st.one_of(st.text(max_size=9), st.just([{"event_id": "x"}] * 3)), min_size=1))
def test_a_segment_is_unpacked_whatever_is_in_it(said: list) -> None:
    drafts = [
        ev.draft(f"evt_{n}", 3, ev.AgentEvent(name='"type":"x"', data=data))
        for n, data in enumerate(said)
    ]
    batch = seal_all(RUN, 1, drafts)
    types, texts = unpack(1, len(said), batch.stored())
    assert (types, texts) == (["agent_event"] * len(said), batch.texts)
    assert [msgspec.json.decode(text)["payload"]["data"] for text in texts] == said


def test_a_segment_whose_count_is_wrong_is_an_error() -> None:
    batch = Deltas(5, ["a", "b"], noise(2), "zz").sealed(RUN, 1)
    with pytest.raises(ValueError, match="holds 2 events, not 3"):
        unpack(1, 3, batch.stored())


def test_frames_name_the_seq_and_are_made_once() -> None:
    batch = Deltas(5, ["a", "b"], noise(2), "zz").sealed(RUN, 41)
    frames = batch.frames()
    assert frames is batch.frames()
    assert frames.startswith(b"id: 41\nevent: agent_stream_delta\ndata: {")
    assert frames.count(b"\n\n") == 2
    assert batch.framed(".1").startswith(b"id: 41.1\n")
    chained = Batch.chain([batch, Deltas(5, ["c"], noise(1), "zz").sealed(RUN, 43)])
    assert chained.frames().startswith(frames)
    assert list(chained.seqs) == [41, 42, 43]


def test_parts_are_cut_by_number() -> None:
    batch = Deltas(5, list("abcd"), noise(4), "zz").sealed(RUN, 1)
    assert batch.after(0) is batch
    assert batch.before(9) is batch
    assert list(batch.after(2).seqs) == [3, 4]
    assert list(batch.before(3).seqs) == [1, 2]
    assert not batch.after(4)
    assert batch[1:3] == batch.part(1, 3)
