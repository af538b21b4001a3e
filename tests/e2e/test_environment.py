"""The first start in a fresh clone: the ways to an environment, and what a test run says last.

No server is started, so no store is meant.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from typing import Any

import pytest

from ..processes import ROOT

REAL = os.path.realpath(sys.executable)
WITHOUT_ENSUREPIP = f"""#!/bin/sh
case "$*" in
    *"-m venv --without-pip"*) exec "{REAL}" "$@" ;;
    *"-m venv"*) echo "It was not created: ensurepip is not available"; exit 1 ;;
    *"-m pip"*) echo "No module named pip"; exit 1 ;;
esac
exec "{REAL}" "$@"
"""  # fmt: skip
FAKE_UV = """#!/bin/sh
echo "$@" >> "$(dirname "$0")/uv.log"
"""


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Hand out the root's script as a module of a clone on a machine with an odd Python."""
    shutil.copy(ROOT / "orchestrator", tmp_path)
    for lock in ("requirements.lock", "requirements-test.lock"):
        shutil.copy(ROOT / lock, tmp_path)
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    loader = SourceFileLoader("root_script", str(tmp_path / "orchestrator"))
    spec = spec_from_loader(loader.name, loader)
    assert spec is not None
    script = module_from_spec(spec)
    loader.exec_module(script)
    script.BASE = str(program(tmp_path / "bin" / "python3", WITHOUT_ENSUREPIP))  # type: ignore[attr-defined]
    return script


def program(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o755)
    return path


@pytest.fixture
def door(tmp_path: Path) -> Iterator[int]:
    """Hand out a descriptor such as the one that holds the lock."""
    descriptor = os.open(tmp_path, os.O_RDONLY)
    yield descriptor
    os.close(descriptor)


def test_a_python_without_ensurepip_makes_an_environment_without_pip(clone: Any, door: int) -> None:
    assert clone.claim() is False
    clone.build(door)
    done = subprocess.run([clone.PYTHON, "-c", "import sys; print(sys.prefix)"],
                          capture_output=True, text=True, check=True)  # fmt: skip
    assert done.stdout.strip() == clone.VENV
    assert not (Path(clone.VENV) / "bin" / "pip").exists()


def test_every_way_that_was_tried_is_told_with_what_helps(
    clone: Any, door: int, capsys: pytest.CaptureFixture[str]
) -> None:
    clone.claim()
    clone.build(door)
    with pytest.raises(SystemExit, match="python3-venv python3-pip"):
        clone.install(clone.RUNTIME, door)
    said = capsys.readouterr().err
    assert "cannot install requirements.lock; tried in turn:" in said
    assert f"-m pip --python {clone.PYTHON} install" in said
    assert "No module named pip" in said


def test_uv_is_the_last_way_and_checks_hashes_too(clone: Any, door: int) -> None:
    uv = program(Path(clone.ROOT) / "bin" / "uv", FAKE_UV.replace("dirname", "/usr/bin/dirname"))
    clone.claim()
    clone.build(door)
    clone.install(clone.TESTS, door)
    [asked] = uv.with_name("uv.log").read_text().splitlines()
    assert asked.startswith(f"pip install --quiet --python {clone.PYTHON} --require-hashes")
    assert asked.endswith("requirements-test.lock")


def test_an_interrupted_start_begins_anew_and_a_foreign_folder_is_left_alone(
    clone: Any, door: int
) -> None:
    clone.claim()
    clone.build(door)
    assert clone.claim() is False, "the mark says that it was never finished"
    clone.build(door)
    Path(clone.MARK).unlink()
    before = sorted(Path(clone.VENV).rglob("*"))
    with pytest.raises(SystemExit, match="was not made by this program"):
        clone.claim()
    assert sorted(Path(clone.VENV).rglob("*")) == before


def test_the_last_line_of_a_test_run_counts_what_did_not_run(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(
        "from tests.not_run import NotRun\n"
        "def pytest_configure(config):\n"
        "    config.pluginmanager.register(NotRun())\n"
    )
    (tmp_path / "test_it.py").write_text(
        "import pytest\n"
        "def test_a(): pass\n"
        "@pytest.mark.skip(reason='no moon')\n"
        "def test_b(): pass\n"
        "def test_c(): assert False\n"
        "def test_d(): pass\n"
        "def test_e(): pass\n"
    )
    last, code = last_line(tmp_path, "-x", "--deselect", "test_it.py::test_e")
    assert (last, code) == (
        "did not run: 3 (1 deselected; 1 skipped, no moon; 1 not reached)", 1,
    )  # fmt: skip
    last, code = last_line(tmp_path, "-k", "test_a")
    assert (last, code) == ("did not run: 4 (4 deselected)", 0)
    last, code = last_line(tmp_path, "-n", "2", "--deselect", "test_it.py::test_e")
    assert (last, code) == ("did not run: 2 (1 skipped, no moon; 1 deselected)", 1)
    (tmp_path / "test_it.py").write_text("def test_a(): pass\n")
    assert last_line(tmp_path) == ("did not run: 0", 0)
    (tmp_path / "test_it.py").write_text("import no_such_module\n")
    last, code = last_line(tmp_path)
    assert (last, code) == ("did not run: 1 (1 cannot be read: test_it.py)", 2)


def last_line(folder: Path, *words: str) -> tuple[str, int]:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *words], cwd=folder,
        env={"PATH": os.defpath, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip
    return done.stdout.rstrip().splitlines()[-1], done.returncode
