"""Every Python block of the SDK's pages is run as it stands, but for addresses."""

import asyncio
import re
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest

from orchestrator_sdk import AsyncClient

from ..processes import ROOT, Running, free_port, spawn
from .python_rig import SDK, broken_rules, eventually, is_healthy, program

PAGES = (SDK / "README.md", ROOT / "docs" / "sdk-python.md")
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
HELLO = BLOCK.findall(PAGES[0].read_text())[0]
BLOCKS = [
    pytest.param(text, id=f"{page.stem}-{number}")
    for page in PAGES
    for number, text in enumerate(BLOCK.findall(page.read_text()), 1)
]
SERVES = re.compile(r"\.(run|serve)\(.*port=8001\)$", re.MULTILINE)
NAMED = re.compile(r'"(hello|editor|greeter)"')


def test_hello_world_has_ten_lines_at_most() -> None:
    assert len(HELLO.splitlines()) <= 10
    assert len(BLOCKS) >= 8


async def test_hello_world_breaks_no_rule(
    start_server: Callable[..., Running], tmp_path: Path
) -> None:
    url = start_server().url
    hello = _free(HELLO)
    with program(tmp_path, hello, ORCHESTRATOR_URL=url):
        await _healthy(url, "hello")
        port = hello.rpartition("=")[2].strip(")\n")
        assert await broken_rules(f"http://127.0.0.1:{port}") == []


@pytest.mark.parametrize("block", BLOCKS)
async def test_the_block_does_what_the_page_says(
    block: str, start_server: Callable[..., Running], tmp_path: Path
) -> None:
    url = start_server().url
    for folder in ("agent", "caller"):
        (tmp_path / folder).mkdir()
    if SERVES.search(block):
        await _serves(block, url, tmp_path)
    elif "FastAPI(" in block:
        run = '\n\nimport sys, uvicorn\nsys.stderr.write("answers at http://localhost:8001\\n")\n'
        await _serves(block + run + "uvicorn.run(app, port=8001, log_config=None)\n", url, tmp_path)
    else:
        with program(tmp_path / "agent", _free(HELLO), ORCHESTRATOR_URL=url):
            await _healthy(url, "hello")
            said = await asyncio.to_thread(_called, block, url, tmp_path / "caller")
        assert "Hello, world!" in said.replace("\n", "")


async def _serves(block: str, url: str, folder: Path) -> None:
    """Run an agent of the page and let the platform call it."""
    name = NAMED.search(block)
    assert name is not None
    other = program(folder / "caller", _free(HELLO), ORCHESTRATOR_URL=url)
    with other if name[1] == "editor" else nullcontext():
        if name[1] == "editor":
            await _healthy(url, "hello")
        with program(folder / "agent", _free(block), ORCHESTRATOR_URL=url):
            await _healthy(url, name[1])
            async with AsyncClient(url) as client:
                said = await (await client.run(name[1], "world")).text()
    assert "Hello, world!" in said


def _free(block: str) -> str:
    return block.replace("8001", str(free_port()))


async def _healthy(url: str, agent_id: str) -> None:
    async with AsyncClient(url) as client:
        await eventually(lambda: is_healthy(client, agent_id), f"{agent_id} is there")


def _called(block: str, url: str, folder: Path) -> str:
    """Run a caller of the page to its end and return what it prints."""
    path, log = folder / "program.py", folder / "program.log"
    path.write_text(block.replace("http://localhost:8080", url))
    env = {"PYTHONPATH": str(SDK / "src")}
    process: subprocess.Popen[bytes] = spawn([sys.executable, str(path)], folder, log, env)
    assert process.wait(60) == 0, log.read_text()
    return log.read_text()
