"""The documents are true: links lead somewhere, generated pages are current, codes are known."""

import ast
import re
import runpy
from pathlib import Path
from typing import Any

import pytest

from orchestrator import settings
from orchestrator.api import admission, streams
from orchestrator.clients import dial, fetch, native, refusal, wire
from orchestrator.core import credentials, errors, jsontext, ratelimit, values, wellness
from orchestrator.core.errors import AgentFailure, OrchestratorError
from orchestrator.core.events import CATALOGUE
from orchestrator.core.records import Retry
from orchestrator.engine import (
    access,
    audit,
    heartbeats,
    intake,
    keys,
    limits,
    prober,
    pusher,
    tokens,
)
from orchestrator.ingress import greeting, upstream

ROOT = Path(__file__).resolve().parents[1]
SKIPPED = {".venv", ".git", "node_modules", ".pytest_cache", "src"}  # src: a part of API.md
PAGES = sorted(
    path for path in ROOT.rglob("*.md") if not SKIPPED.intersection(path.relative_to(ROOT).parts)
)
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
PROOF = re.compile(r"`((?:tests|src/orchestrator/testing)/[\w/]+\.py)(?:::(\w+))?`")

AGENT_FAILURES = (
    "agent_unavailable",
    "agent_status",
    "agent_protocol",
    "agent_eof",
    "agent_first_byte_timeout",
    "agent_idle_timeout",
    "agent_timeout",
    "orchestrator_restarted",
)


def test_there_are_pages_to_look_at() -> None:
    assert {"README.md", "PROMISES.md"} <= {path.name for path in PAGES}


def headings(path: Path) -> list[str]:
    """Return the headings of a page as they are written."""
    return re.findall(r"^#+ (.+)$", FENCE.sub("", path.read_text()), re.MULTILINE)


def anchors(path: Path) -> set[str]:
    """Return what a link into a page may name, by the rule that GitHub follows."""
    kept = (re.sub(r"[^\w\- ]", "", heading.strip().lower()) for heading in headings(path))
    return {text.replace(" ", "-") for text in kept}


def links(path: Path) -> list[str]:
    """Return the links of a page that stay in this repository."""
    found: list[str] = LINK.findall(FENCE.sub("", path.read_text()))
    return [link for link in found if not re.match(r"[a-z]+:", link)]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    for link in links(page):
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), f"{link} leads nowhere"
        assert not anchor or anchor in anchors(target), f"{link}: no such heading"


def test_every_page_is_in_the_index() -> None:
    reached = {
        (ROOT / "docs" / link.partition("#")[0]).resolve() for link in links(ROOT / "docs/index.md")
    }
    missing = [path.name for path in (ROOT / "docs").glob("*.md") if path.resolve() not in reached]
    assert missing == ["index.md"]


@pytest.mark.parametrize("name", ["events.md", "states.md", "settings.md", "access.md", "cli.md"])
def test_generated_pages_are_current(name: str) -> None:
    generator: dict[str, Any] = runpy.run_path(str(ROOT / "docs" / "generate.py"))
    assert (ROOT / "docs" / name).read_text() == generator["PAGES"][name](), "run docs/generate.py"


def codes() -> set[str]:
    """Return every code that an error of ours can have."""
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    ours = [kind for kind in kinds if issubclass(kind, OrchestratorError)]
    return {kind.code for kind in ours if kind is not AgentFailure}


def raised_for_agents() -> set[str]:
    """Return every code written out in the source where an invocation or a run fails."""
    found: set[str] = set()
    for path in (ROOT / "src" / "orchestrator").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and _name(node.func) in {
                "AgentFailure",
                "Fail",
            }:
                values = [
                    *node.args[:1],
                    *(k.value for k in node.keywords if k.arg == "code"),
                ]
                found |= {str(v.value) for v in values if isinstance(v, ast.Constant)}
    return found


def refused() -> set[str]:
    """Return every code that the API answers without an error of the tree."""
    texts = "".join(p.read_text() for p in (ROOT / "src" / "orchestrator" / "api").glob("*.py"))
    found = re.findall(r'(?:refusal|=) ?\(\s*\d{3}, "(\w+)"', texts)
    return set(found)


def _name(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def test_every_error_code_has_its_paragraph() -> None:
    explained = set(headings(ROOT / "docs" / "errors.md"))
    assert codes() >= {"internal_error", "queue_full", "port_busy"}
    assert codes() | set(AGENT_FAILURES) <= explained
    assert {"method_not_allowed", "headers_too_slow", "malformed_request"} <= refused() <= explained
    assert raised_for_agents()
    assert raised_for_agents() <= explained


def test_every_event_has_its_section_and_the_readme_invents_none() -> None:
    assert set(CATALOGUE) <= set(headings(ROOT / "docs" / "events.md"))
    readme = (ROOT / "README.md").read_text()
    section = readme.partition("## Event types")[2].partition("\n## ")[0]
    named = set(re.findall(r"`([a-z_]+)`", section))
    assert {"run_started", "run_done"} <= named <= set(CATALOGUE)


def test_every_promise_names_a_test_that_exists() -> None:
    proofs = PROOF.findall((ROOT / "PROMISES.md").read_text())
    assert proofs
    for path, function in proofs:
        source = (ROOT / path).read_text()
        assert not function or re.search(rf"def {function}\b", source), f"{path}::{function}"


def test_every_promise_is_proven_or_says_that_it_is_not() -> None:
    promises = re.split(r"^## ", (ROOT / "PROMISES.md").read_text(), flags=re.MULTILINE)[1:]
    for promise in promises:
        assert PROOF.search(promise) or "Not yet proven" in promise, promise.splitlines()[0]


SETTINGS = limits.EngineSettings()
STATED = {
    "depth of a tree of runs": str(limits.DEPTH_MAX),
    "open children of a run": f"{limits.CHILDREN_MAX},",
    "runs shown of a tree": f"{limits.TREE_MAX:,},",
    "runs that wait in a session": f"{limits.SESSION_QUEUE_MAX},",
    "transcript sent to an agent": (
        f"the newest {limits.TRANSCRIPT_MESSAGES} messages, "
        f"at most {limits.TRANSCRIPT_BYTES >> 10} KiB"
    ),
    "any count, any number of milliseconds": f"1 to {values.NUMBER_MAX} ",
    "labels of a run": f"{values.LABELS_MAX}, each key and value up to {values.LABEL_LENGTH} ",
    "events of one run": f"{SETTINGS.max_run_bytes >> 20} MiB",
    "open runs": f"{SETTINGS.max_open_runs:,}",
    "one invocation of an agent": f"{SETTINGS.agent_timeout_ms // 1000} s",
    "life of a run, queue included": f"{SETTINGS.run_max_ms // 3_600_000} h",
    "drain at shutdown": f"{SETTINGS.drain_timeout_ms // 1000} s",
    "one line of an agent's stream": f"{native.LINE_MAX >> 20} MiB",
    "kept of an agent's error answer": f"{refusal.BODY_MAX >> 10} KiB",
    "attempts of a run (`retry.max_attempts`)": str(Retry().max_attempts),
    "undelivered pushes to the ingress": f"{pusher.GRACE_MS // 1000} s",
    "runs remembered for the ingress": f"{pusher.TRACKS_MAX:,}",
    "heartbeat of an agent": f"every {heartbeats.HEARTBEAT_S} s",
    "a credential in a request": f"{admission.SHOWN_MAX >> 10} KiB",
    "a token of ours": f"{credentials.TOKEN_MAX:,} characters",
    "`ADMIN_KEY`, `API_KEY`, `INGRESS_KEY`, a key in `SECRET_KEY`": (
        f"at least {settings.ADMIN_KEY_MIN} "
    ),
    "runs that wait for a free instance": f"{limits.AGENT_QUEUE_MAX:,},",
    "instances of an agent": f"{limits.INSTANCES_MAX:,}",
    "question for an agent's health": f"every {prober.PROBE_S:g} s",
    "ejection of an instance": f"{wellness.EJECTED_S:g} s",
    "an instance is forgotten": f"after {wellness.GONE_AFTER_MS // 3_600_000} h",
    "limits remembered at a time": f"{ratelimit.SIZE:,}",
    "limits of a key": str(keys.LIMITS_MAX),
    "life of the old key of a rotation": f"{keys.OVERLAP_S:,} s",
    "life of a session's token": f"{tokens.TTL_S:,} s, up to {tokens.TTL_MAX_S:,} s",
    "a revoked key, token or right is believed": f"{access.LOOK_S:g} s",
    "security events of one kind": f"one audit entry in {audit.WINDOW_S:g} s",
    "keys and agents in one list, secrets in one rotation": f"{keys.KEYS_MAX:,}",
    "documents of an identity provider": f"{fetch.DOCUMENT_MAX >> 10} KiB, {fetch.TIMEOUT_S:g} s",
    "JSON, wherever it comes from": f"{jsontext.NESTING_MAX} deep",
    "finding and reaching an agent": f"{dial.DIAL_S:g} s",
    "headers of an agent's answer": f"{wire.HEAD_BYTES >> 10} KiB in {wire.HEADERS} lines",
    "a reader that takes nothing of what is sent": f"{streams.STALL_S:g} s",
    "an answer that the ingress waits for": f"{upstream.CALL_S:g} s",
    "life of the token that the ingress makes for a session": f"{greeting.TOKEN_S // 3600} h",
    "`request_id`": f"1 to {intake.REQUEST_ID_MAX} characters",
}
"""Rows of the page of limits and what the code says their figure begins with."""


@pytest.mark.parametrize("what", STATED)
def test_the_page_of_limits_states_the_figures_of_the_code(what: str) -> None:
    rows = re.findall(r"^\| (.+?) \| (.+?) \|", (ROOT / "docs/limits.md").read_text(), re.MULTILINE)
    assert dict(rows)[what].startswith(STATED[what].rstrip())
