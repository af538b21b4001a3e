"""What `DATABASE_URL` means for SQLite."""

from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit

import msgspec

from orchestrator.core.errors import DatabaseRefused

MODES = ("rwc", "rw", "ro")
_PATH_MAX, _NAME_MAX = 4096, 255


class Location(msgspec.Struct, frozen=True):
    """A database file; mode `rwc` creates it, `rw` does not, `ro` only reads.

    `vfs` names the layer below SQLite, None is the system's own.
    """

    path: str
    mode: str = "rwc"
    vfs: str | None = None


def locate(url: str) -> Location:
    """Return where a `file:` or `sqlite:///` URL points; raises DatabaseRefused with a sentence.

    `mode` is honoured. `cache` is accepted and not passed on, for a shared cache makes readers
    wait for the writer; other parameters are ignored.
    """
    scheme, _, rest = url.partition(":")
    if scheme not in ("file", "sqlite") or (scheme == "sqlite" and not rest.startswith("///")):
        raise DatabaseRefused(
            f"DATABASE_URL {_shown(url)} has an unknown form; use file:PATH or sqlite:///PATH"
        )
    return _located(url, scheme)


def _located(url: str, scheme: str) -> Location:
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise DatabaseRefused(f"DATABASE_URL {_shown(url)} cannot be read: {error}") from error
    if parts.netloc not in ("", "localhost"):
        raise DatabaseRefused(
            f"DATABASE_URL {_shown(url)} names the host {parts.netloc[:80]!r}, and the file must "
            "be on this machine; use file:PATH or file:///PATH"
        )
    parameters = dict(parse_qsl(parts.query))
    path = unquote(parts.path)
    path = path.removeprefix("/") if scheme == "sqlite" else path
    if not path or ":memory:" in path or parameters.get("mode") == "memory":
        raise DatabaseRefused(
            "a database in memory would lose every run at the end of the process; "
            "name a file, such as DATABASE_URL=file:orchestrator.db"
        )
    names = path.encode().split(b"/")
    if "\0" in path or len(path) > _PATH_MAX or max(map(len, names)) > _NAME_MAX:
        raise DatabaseRefused(f"DATABASE_URL {_shown(url)} names no file that a system could have")
    mode = parameters.get("mode", "rwc")
    if mode not in MODES:
        raise DatabaseRefused(f"DATABASE_URL: mode must be one of {', '.join(MODES)}, not {mode!r}")
    return Location(str(Path(path).absolute()), mode)


def _shown(url: str) -> str:
    return repr(url.rsplit("@", maxsplit=1)[-1][:80])
