"""After a power loss a reader is told what it saw in vain, and goes on with what was left."""

import asyncio
from pathlib import Path

import msgspec
import pytest

from orchestrator.api.streams import Resume, resume_point
from orchestrator.core.access import TENANT
from orchestrator.core.errors import InvalidRequest
from orchestrator.core.events import AgentStreamDelta, RunDone, draft
from orchestrator.core.ops import Op
from orchestrator.core.records import Run
from orchestrator.core.states import RunState
from orchestrator.engine.session_tail import SessionCursor
from orchestrator.stores.sqlite import open_store
from orchestrator.testing import records as r
from orchestrator.testing.fake_world import FakeWorld

from ..engine.rig import at
from .conftest import Client, serving


@pytest.mark.parametrize(
    ("header", "query", "wanted"),
    [
        (None, None, Resume(0)),
        ("7", None, Resume(7, 0)),
        ("7.0", None, Resume(7, 0)),
        ("7.2", "3", Resume(7, 2)),
        (None, "7", Resume(7)),
        (None, "7.1", Resume(7, 1)),
    ],
)
def test_a_cursor_names_its_generation(header: str, query: str, wanted: Resume) -> None:
    assert resume_point(header, query) == wanted


@pytest.mark.parametrize("text", ["x", "1.x", "-1", "1e3", "٣", "1" * 16, "1.2.3"])
def test_a_cursor_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest):
        resume_point(text, None)


@pytest.mark.parametrize(
    ("seq", "generation", "forks", "agreed"),
    [
        (9, 0, [], None),
        (9, None, [3], None),
        (3, 0, [3], None),
        (4, 0, [3], 3),
        (9, 1, [3], None),
        (9, 0, [5, 3], 3),
        (9, 1, [5, 7], 7),
        (6, 0, [5, 7], 5),
    ],
)
def test_a_reader_agrees_up_to_the_earliest_fork(
    seq: int, generation: int | None, forks: list[int], agreed: int | None
) -> None:
    assert Resume(seq, generation).agreed(forks) == agreed


async def _left_open(path: Path, boot: str) -> Run:
    """Leave a store as a host that stopped would: open, and not closed by us."""
    store = await open_store(f"file:{path}", world=FakeWorld(boot_id=boot))
    made = r.run(1)
    events = [draft(f"evt_{n}", r.AT, AgentStreamDelta(text=f"word {n}")) for n in range(4)]
    await store.commit(r.accept(made), Op(run_id=made.run_id, events=events))
    _copy(path)
    await store.close()
    return made


def _copy(path: Path) -> None:
    for end in ("", "-wal"):
        source = path.with_name(path.name + end)
        path.with_name("left.db" + end).write_bytes(source.read_bytes())


@pytest.mark.parametrize(
    "starts",
    [
        [("first", []), ("second", [])],  # a killed process, then a clean stop
        [("second", [5]), ("second", [5]), ("third", [5])],
    ],
)
async def test_only_a_host_that_stopped_makes_a_generation(
    tmp_path: Path, starts: list[tuple[str, list[int]]]
) -> None:
    made = await _left_open(tmp_path / "o.db", "first")
    for boot, forks in starts:
        store = await open_store(f"file:{tmp_path}/left.db", world=FakeWorld(boot_id=boot))
        found = await store.get(Run, made.run_id)
        assert found is not None
        assert found.forks == forks, boot
        await store.close()


async def test_a_reader_that_saw_more_is_reset(tmp_path: Path) -> None:
    made = await _left_open(tmp_path / "o.db", "first")
    store = await open_store(f"file:{tmp_path}/left.db", world=FakeWorld(boot_id="second"))
    done = draft("evt_end", r.AT, RunDone())
    await store.commit(r.append(made, done, status=RunState.DONE, ended_at=r.AT))
    await store.close()
    async with serving(at(tmp_path / "left.db")) as api:
        path = f"/v1/runs/{made.run_id}/events/stream"
        behind = await api.get(path, Last_Event_ID="9")
        assert behind.raw.startswith(b'event: log_reset\ndata: {"after_seq":5}\n\nid: 6.1\n')
        agreeing = await api.get(path, Last_Event_ID="5")
        assert agreeing.raw.startswith(b"id: 6.1\nevent: run_done\n")
        assert (await api.get(path, Last_Event_ID="6.1")).status == 204
        assert (await api.get(f"{path}?after_seq=9")).status == 204
        assert (await api.get(f"/v1/runs/{made.run_id}")).json["generation"] == 1


async def test_a_page_after_more_than_is_left_is_reset(tmp_path: Path) -> None:
    made = await _left_open(tmp_path / "o.db", "first")
    store = await open_store(f"file:{tmp_path}/left.db", world=FakeWorld(boot_id="second"))
    await store.commit(r.append(made, *r.deltas(2)))
    await store.close()
    async with serving(at(tmp_path / "left.db")) as api:
        path = f"/v1/runs/{made.run_id}/events"
        page = (await api.get(f"{path}?cursor=9.0&limit=1")).json
        assert (page["log_reset"], page["next_cursor"]) == ({"after_seq": 5}, "6.1")
        assert [event["seq"] for event in page["events"]] == [6]
        for cursor in ("6.1", "9.1", "5.0", "9"):
            assert "log_reset" not in (await api.get(f"{path}?cursor={cursor}")).json


async def test_a_reader_of_a_session_that_saw_more_is_reset(tmp_path: Path) -> None:
    made = await _left_open(tmp_path / "o.db", "first")
    store = await open_store(f"file:{tmp_path}/left.db", world=FakeWorld(boot_id="second"))
    await store.commit(r.append(made, *r.deltas(2)))
    await store.close()
    older = SessionCursor(seqs={made.run_id: 9, "run_gone": 3, "run_done": -1})
    newer = SessionCursor(done=1, seqs={made.run_id: 9})
    async with serving(at(tmp_path / "left.db")) as api:
        for read in (older, newer):
            frames = await _frames(api, read.text(), 3)
            reset = f'{{"run_id":"{made.run_id}","after_seq":5,"generation":1}}'
            assert frames[0] == {"event": "log_reset", "data": reset}
            assert [msgspec.json.decode(one["data"])["seq"] for one in frames[1:]] == [6, 7]
            cursor = SessionCursor.parse(frames[1]["id"], TENANT, "s1")
            assert (cursor.seqs, cursor.forks) == ({made.run_id: 6}, {made.run_id: 1})
            [after] = await _frames(api, frames[1]["id"], 1)
            assert msgspec.json.decode(after["data"])["seq"] == 7, "it is told once"


async def _frames(api: Client, last_event_id: str, count: int) -> list[dict[str, str]]:
    """Return the first frames of a session's stream after a cursor."""
    found = []
    sent = {"Last_Event_ID": last_event_id}
    async with (
        asyncio.timeout(10),
        api.open("GET", "/v1/sessions/s1/events", **sent) as (status, _, reader),
    ):
        assert status == 200
        for _ in range(count):
            lines = (await reader.readuntil(b"\n\n")).decode().split("\n")
            found.append(dict(line.split(": ", 1) for line in lines if ": " in line))
    return found
