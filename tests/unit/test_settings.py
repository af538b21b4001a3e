"""Settings: a value is taken as it is meant, or refused by a sentence that names it."""

from pathlib import Path

import msgspec
import pytest

from orchestrator.core.errors import SettingsInvalid
from orchestrator.core.values import NUMBER_MAX
from orchestrator.guards.secretbox import open_box
from orchestrator.settings import NOT_READ, VARIABLES, load, server_url

ROOT = Path(__file__).parents[2]
NONSENSE = (
    "9" * 23, "9" * 5000, "-1", "1e9", "8_085", "٣", "1.5", "nan", "http://[", "http://h:99999",
    "http://", "http://h:0", "http://h/?q", "ftp://h", "10.0.0.0/99", "file:", "file:%00", "file:[",
    "file://[", "x" * 10_000, "file:" + "x" * 10_000, "99999999999999999999d", "9007199254740993",
    "9007199254741000KB", "d", "1dd", "\udcff", "a b", "[", "\x07",
)  # fmt: skip


@pytest.mark.parametrize("text", NONSENSE, ids=lambda text: repr(text[:24]))
@pytest.mark.parametrize("name", [variable.name for variable in VARIABLES])
def test_no_value_is_misread(name: str, text: str) -> None:
    settings, refusal = None, ""
    try:
        settings = load({name: text})
    except SettingsInvalid as error:
        refusal = error.message
    if settings is None:
        assert refusal.startswith((name, "a database in memory"))
        assert len(refusal) < 500
        return
    numbers = [v for v in msgspec.structs.astuple(settings) if isinstance(v, int)]
    assert all(0 <= number <= NUMBER_MAX for number in numbers)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("RETENTION_RUNS", "999999999999d"),
        ("RETENTION_DELTAS", "9" * 23 + "s"),
        ("RETENTION_RUNS", "0d"),
        ("PUBLIC_URL", "http://[x"),
        ("PUBLIC_URL", "http://h:99999"),
        ("PUBLIC_URL", "http://h name"),
        ("INGRESS_URL", "http://["),
        ("RUN_MAX_MS", "9999999999999999999"),
        ("EGRESS_ALLOW", "10.0.0.0/99"),
        ("HTTP_PORT", "8_085"),
        ("HTTP_PORT", "65536"),
        ("HTTP_HOST", "no host"),
        ("MAX_OPEN_RUNS", "9" * 23),
        ("MIN_FREE_DISK", "9007199254740992KB"),
        ("DURABILITY", "none"),
        ("DATABASE_URL", "file://otherhost/p"),
        ("DATABASE_URL", "file://["),
        ("SECRET_KEY", "\udcff" * 40),
    ],
)
def test_an_absurd_value_stops_the_start(name: str, text: str) -> None:
    with pytest.raises(SettingsInvalid, match=f"^{name} "):
        load({name: text})


def test_the_bounds_themselves_are_taken() -> None:
    settings = load({"RUN_MAX_MS": str(NUMBER_MAX), "MAX_OPEN_RUNS": "1", "RETENTION_RUNS": "90d"})
    assert (settings.run_max_ms, settings.max_open_runs) == (NUMBER_MAX, 1)
    assert settings.retention_runs_ms == 90 * 86_400_000
    for url in ("http://[::1]:8080", "https://h.example/base/"):
        assert load({"PUBLIC_URL": url}).public_url == url.rstrip("/")
    for host in ("127.0.0.1", "::1"):
        assert load({"HTTP_HOST": host}).http_host == host
    for url in ("file:///tmp/x.db", "file://localhost/tmp/x.db", "sqlite:///x.db"):
        assert load({"DATABASE_URL": url}).database_url == url


def test_durability_is_a_setting() -> None:
    assert load({}).durability == "balanced"
    assert load({"DURABILITY": "FULL"}).durability == "full"
    assert load({}, {"DURABILITY": "full"}).durability == "full"


@pytest.mark.parametrize("name", NOT_READ)
def test_what_this_version_lacks_is_refused_not_ignored(name: str) -> None:
    with pytest.raises(SettingsInvalid, match=f"^{name} is set, and this version has no .*unset"):
        load({name: "1"})
    assert load({name: ""}).durability == "balanced"
    assert f"`{name}`" in (ROOT / "docs" / "settings.md").read_text()


def test_the_commands_refuse_a_port_that_is_none() -> None:
    assert server_url({"HTTP_PORT": "9000"}) == "http://localhost:9000"
    assert server_url({"HTTP_PORT": ""}) == "http://localhost:8080"
    with pytest.raises(SettingsInvalid, match="HTTP_PORT must be"):
        server_url({"HTTP_PORT": "abc"})


def test_a_key_file_of_no_possible_name_is_refused() -> None:
    with pytest.raises(SettingsInvalid, match="the key file"):
        open_box((), "x" * 5000)
