"""What `DATABASE_URL` means for PostgreSQL."""

from typing import Final
from urllib.parse import parse_qs, urlsplit

from orchestrator.core.errors import DatabaseRefused

SCHEMES: Final = ("postgres", "postgresql")
_FORM: Final = "postgresql://USER:PASSWORD@HOST:PORT/DATABASE"


def locate(url: str) -> str:
    """Return an address as the driver takes it; raises DatabaseRefused with a sentence.

    `?host=/folder` names the folder of a socket. Other parameters are settings of the session, as
    `search_path` is, or what libpq knows, as `sslmode`.
    """
    if url.partition(":")[0] not in SCHEMES:
        raise DatabaseRefused(f"DATABASE_URL has an unknown form; use {_FORM}")
    try:
        parts = urlsplit(url)
        parse_qs(parts.query, strict_parsing=bool(parts.query))
        _ = parts.port
    except ValueError:  # what it says may hold the password
        raise DatabaseRefused(
            f"DATABASE_URL cannot be read; use {_FORM}, with %-signs in a password written as %25"
        ) from None
    if not parts.path.strip("/") and "dbname" not in parts.query:
        raise DatabaseRefused(f"DATABASE_URL {shown(url)} names no database; use {_FORM}")
    return url


def shown(url: str) -> str:
    """Return what may be said of an address: its place and its database, never who or how."""
    place, _, _ = url.partition("://")[2].rpartition("@")[2].partition("?")
    host = dict(parse_qs(url.partition("?")[2])).get("host")
    return f"'{(host[0] if host and place.startswith('/') else '') + place[:80]}'"
