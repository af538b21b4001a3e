"""Starts that are refused: the exit code, one sentence, and nothing left behind or changed.

The databases are files; what PostgreSQL refuses is in test_refused_postgres.py.
"""

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = (sys.executable, "-m", "orchestrator")
PR_CAPBSET_DROP, CAP_DAC_OVERRIDE = 24, 1


def as_anybody() -> None:
    """Take from root what lets it write files that nobody may write."""
    if os.geteuid() == 0:
        ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, 0, 0, 0)


def refused(folder: Path, *words: str, **env: str) -> str:
    """Start the server in a folder; return the sentence with which it ends with code 2."""
    around = {"PATH": os.defpath, "HOME": str(folder), "HTTP_PORT": "0", "INGRESS_URL": "off"}
    done = subprocess.run(
        [*PROGRAM, *words], cwd=folder, env=around | env, capture_output=True, text=True,
        timeout=30, check=False, preexec_fn=as_anybody,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("orchestrator: ")
    assert "Traceback" not in done.stderr
    return done.stderr


def test_a_database_to_be_read_only(tmp_path: Path) -> None:
    assert "mode=ro, and a server writes" in refused(tmp_path, DATABASE_URL="file:o.db?mode=ro")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform != "linux", reason="needs capabilities to be dropped")
def test_a_database_file_that_may_not_be_written(tmp_path: Path) -> None:
    subprocess.run(
        [*PROGRAM, "demo"], cwd=tmp_path, capture_output=True, timeout=60, check=True,
        env={"PATH": os.defpath, "HOME": str(tmp_path), "HTTP_PORT": "0"},
    )  # fmt: skip
    database = tmp_path / "orchestrator.db"
    before = database.read_bytes()
    database.chmod(0o444)
    assert f"{database} cannot be opened for writing" in refused(tmp_path)
    assert database.read_bytes() == before


def test_a_database_that_is_a_folder_or_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    assert "data is a folder; DATABASE_URL must name" in refused(tmp_path, DATABASE_URL="file:data")
    elsewhere = refused(tmp_path, DATABASE_URL="file://otherhost/p")
    assert "names the host 'otherhost'" in elsewhere


def test_a_variable_that_this_version_does_not_read(tmp_path: Path) -> None:
    assert "LLM_ROUTER_URL is set" in refused(tmp_path, LLM_ROUTER_URL="http://x")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "told",
    [{"AUTH_MODE": "keys"}, {"HTTP_HOST": "0.0.0.0"}],  # noqa: S104  # refused before it listens
    ids=["keys", "others"],
)
def test_a_server_for_others_without_a_key(tmp_path: Path, told: dict[str, str]) -> None:
    sentence = refused(tmp_path, **told)
    assert "./orchestrator keys create --role admin NAME" in sentence
    assert "AUTH_MODE=off ./orchestrator" in sentence
    key = "k" * 31
    assert "ADMIN_KEY must be 32 or more" in (short := refused(tmp_path, ADMIN_KEY=key))
    assert key not in short


def test_a_key_that_is_too_short_or_no_text(tmp_path: Path) -> None:
    assert "at least 32 characters" in refused(tmp_path, SECRET_KEY="short")
    assert "SECRET_KEY must be" in refused(tmp_path, SECRET_KEY="\udcff" * 40)
