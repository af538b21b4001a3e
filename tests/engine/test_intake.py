"""What the engine takes and what it refuses: roles, labels, numbers, cursors."""

from pathlib import Path
from typing import Any

import pytest

from orchestrator.core.errors import Conflict, InvalidRequest
from orchestrator.core.values import LABELS_MAX, NUMBER_MAX
from orchestrator.engine import Invoke

from .rig import Rig, hang, running


async def take(rig: Rig, text: str = "hello", **fields: Any) -> Any:
    return await rig.engine.runs.invoke(Invoke(agent_id="demo", content=text, **fields))


@pytest.mark.parametrize("role", ["user", "assistant", "system", "tool"])
async def test_roles_are_those_of_the_transcript(tmp_path: Path, role: str) -> None:
    async with running(tmp_path / "o.db") as rig:
        assert (await take(rig, role=role)).run.run_id
        with pytest.raises(InvalidRequest, match=r"input_message\.role must be one of user"):
            await take(rig, role=f"{role}s")


async def test_a_run_with_all_its_labels_can_be_repeated_and_that_one_too(tmp_path: Path) -> None:
    labels = {f"k{n}": "v" for n in range(LABELS_MAX)}
    async with running(tmp_path / "o.db") as rig:
        run = (await take(rig, labels=labels)).run
        for _ in range(2):
            await rig.ended(run)
            before, run = run, (await rig.engine.runs.rerun(run.run_id)).run
            assert run.labels == labels | {"rerun_of": before.run_id}
        with pytest.raises(InvalidRequest, match="labels may have"):
            await take(rig, labels=labels | {"one": "more"})


async def test_an_open_run_is_not_repeated(tmp_path: Path) -> None:
    async with running(tmp_path / "o.db", hang) as rig:
        run = (await take(rig)).run
        with pytest.raises(Conflict, match="cancel it, or wait for its end"):
            await rig.engine.runs.rerun(run.run_id)


@pytest.mark.parametrize("number", [0, -1, NUMBER_MAX + 1, 1 << 63, 1 << 64, 1 << 70])
async def test_every_number_has_bounds(tmp_path: Path, number: int) -> None:
    rule = f"must be a whole number from 1 to {NUMBER_MAX}"
    async with running(tmp_path / "o.db") as rig:
        with pytest.raises(InvalidRequest, match=f"timeout_ms {rule}"):
            await take(rig, timeout_ms=number)
        with pytest.raises(InvalidRequest, match=f"max_concurrency {rule}"):
            await rig.register(max_concurrency=number)


async def test_the_largest_numbers_are_taken(tmp_path: Path) -> None:
    async with running(tmp_path / "o.db") as rig:
        await rig.register(max_concurrency=NUMBER_MAX)
        run = (await take(rig, timeout_ms=NUMBER_MAX)).run
        assert (await rig.ended(run)).status == "DONE"


@pytest.mark.parametrize("cursor", ["9" * 30, "9" * 5000, "٣", "-1", "x"])
async def test_a_cursor_of_no_list_is_refused(tmp_path: Path, cursor: str) -> None:
    async with running(tmp_path / "o.db") as rig:
        with pytest.raises(InvalidRequest, match="the cursor is not one of this list"):
            await rig.engine.runs.find(cursor=cursor)
        assert (await rig.engine.runs.find(cursor="9" * 18)).items == []
