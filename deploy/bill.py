"""Writes the bill of materials of the server as CycloneDX 1.6, the same to the byte each time."""

import json
import re
import uuid
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from deploy.locks import Pin, Problem, pins

SBOM: Final = "deploy/sbom.cdx.json"
OURSELVES: Final = "orchestrator"
VERSION_FILE: Final = f"src/{OURSELVES}/__init__.py"

Licences = list[dict[str, Any]]
"""A component's `licenses`: one SPDX expression, or names."""

_VERSION: Final = re.compile(r'^__version__ = "([^"]+)"$', re.MULTILINE)
_NAME_LENGTH: Final = 100


def bill(root: Path, licences: Callable[[Pin], Licences | None]) -> str:
    """Return the SBOM of the locks in `root` as text; raises Problem.

    It has no time, and its serial number is made from its content.
    """
    everything = pins(root)
    version = own_version(root)
    # Not pkg:pypi: we are not published there, and what has our name there is somebody else's.
    us = f"pkg:generic/{OURSELVES}@{quote(version, safe='')}"
    content = {
        "version": 1,
        "metadata": {
            "lifecycles": [{"phase": "pre-build"}],
            "component": {
                "type": "application",
                "bom-ref": us,
                "name": OURSELVES,
                "version": version,
                "purl": us,
            },
        },
        "components": [_component(pin, licences(pin)) for pin in everything],
        "dependencies": [
            _dependencies(us, OURSELVES, everything),
            *(_dependencies(pin.purl, pin.name, everything) for pin in everything),
        ],
    }
    serial = uuid.uuid5(uuid.NAMESPACE_OID, json.dumps(content))
    head = {"bomFormat": "CycloneDX", "specVersion": "1.6", "serialNumber": f"urn:uuid:{serial}"}
    return json.dumps(head | content, indent=1) + "\n"


def own_version(root: Path) -> str:
    """Return `orchestrator.__version__` as the file in `root` has it; raises Problem."""
    path = root / VERSION_FILE
    known = _VERSION.search(path.read_text()) if path.is_file() else None
    if not known:
        raise Problem(f"{VERSION_FILE} has no __version__; write one there")
    return known[1]


def write(root: Path) -> None:
    """Write the SBOM; what is known of a licence stays where the package is not installed."""
    before = _written(root)
    text = bill(root, lambda pin: installed(pin) or before.get(pin.purl))
    (root / SBOM).write_text(text)


def is_current(root: Path) -> bool:
    """Return whether the SBOM is what would be written.

    A licence may be missing: who wrote it need not have had every package installed.
    """
    before = _written(root)

    def licences(pin: Pin) -> Licences | None:
        said = before.get(pin.purl)
        return (installed(pin) or said) if said else None

    path, wanted = root / SBOM, bill(root, licences)
    return path.is_file() and path.read_text() == wanted


def installed(pin: Pin) -> Licences | None:
    """Return what the metadata of an installed package tells; None unless it has that version.

    An SPDX expression (PEP 639) stays one; older packages have a name, or classifiers.
    """
    try:
        found = metadata.distribution(pin.name)
    except metadata.PackageNotFoundError:
        return None
    if found.version != pin.version:
        return None
    told: Mapping[str, Any] = found.metadata.json
    if expression := told.get("license_expression"):
        return [{"expression": expression}]
    name = str(told.get("license", "")).strip()
    if name and name != "UNKNOWN" and "\n" not in name and len(name) <= _NAME_LENGTH:
        return [{"license": {"name": name}}]
    marks = [mark.split(" :: ") for mark in told.get("classifier", ())]
    return [{"license": {"name": mark[-1]}} for mark in marks if mark[0] == "License"] or None


def _written(root: Path) -> dict[str, Licences | None]:
    """Return what the present SBOM says of each purl's licence; nothing if it cannot be read."""
    try:
        components = json.loads((root / SBOM).read_text())["components"]
        return {component["purl"]: component.get("licenses") for component in components}
    except (FileNotFoundError, ValueError, LookupError, TypeError, AttributeError):
        return {}


def _component(pin: Pin, licences: Licences | None) -> dict[str, Any]:
    """Return a pin as a component; what only tests and benchmarks need is out of the scope."""
    return {
        "type": "library",
        "bom-ref": pin.purl,
        "name": pin.name,
        "version": pin.version,
        "scope": "required" if pin.runtime else "excluded",
        "hashes": [{"alg": "SHA-256", "content": content} for content in sorted(pin.hashes)],
        **({"licenses": licences} if licences else {}),
        "purl": pin.purl,
    }


def _dependencies(ref: str, name: str, everything: list[Pin]) -> dict[str, Any]:
    return {"ref": ref, "dependsOn": [pin.purl for pin in everything if name in pin.wanted_by]}
