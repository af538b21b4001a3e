"""What may be read again: secrets at rest, encrypted with AES-GCM and bound to their place.

The same keys sign tokens.
"""

import hmac
import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from orchestrator.core.errors import SettingsInvalid
from orchestrator.core.secret import Secret

KEY_CHARACTERS: Final = 32
"""The least length of a key; made with `openssl rand -hex 32` it has twice as many."""
_FORM: Final = b"\x01"
_NONCE: Final = 12
_SEALING: Final = b"orchestrator secret box 1"
_SIGNING: Final = b"orchestrator tokens 1"


class Box:
    """A SecretBox: the first key encrypts, all of them decrypt.

    A sealed secret is a form byte, a nonce of 12 bytes and AES-256-GCM's output; the form and the
    context are authenticated with it. The nonce is taken from the system, not from the world:
    that it never repeats is what keeps the key safe, so no test may fake it.
    """

    def __init__(self, keys: Sequence[str]) -> None:
        self._ciphers = [AESGCM(_derived(key, _SEALING)) for key in keys]
        self._signers = [_derived(key, _SIGNING) for key in keys]

    def seal(self, secret: str, context: str) -> bytes:
        """Return `secret` encrypted for `context`."""
        nonce = secrets.token_bytes(_NONCE)
        bound = _FORM + context.encode()
        return _FORM + nonce + self._ciphers[0].encrypt(nonce, secret.encode(), bound)

    def unseal(self, sealed: bytes, context: str) -> str:
        """Return the secret; raises ValueError if another key or another place sealed it."""
        nonce, text = sealed[1 : 1 + _NONCE], sealed[1 + _NONCE :]
        if sealed[:1] != _FORM or len(nonce) < _NONCE:
            raise ValueError("this is not a sealed secret")
        for cipher in self._ciphers:
            try:
                return cipher.decrypt(nonce, text, _FORM + context.encode()).decode()
            except InvalidTag:
                continue
        raise ValueError("sealed by another key or for another place, or altered since")

    def is_current(self, sealed: bytes, context: str) -> bool:
        """Return whether the first key sealed it, so that the others may go."""
        try:
            self._ciphers[0].decrypt(
                sealed[1 : 1 + _NONCE], sealed[1 + _NONCE :], _FORM + context.encode()
            )
        except (InvalidTag, ValueError):
            return False
        return True

    def sign(self, message: bytes) -> bytes:
        """Return the first key's signature of `message`, 32 bytes."""
        return hmac.digest(self._signers[0], message, "sha256")

    def is_signed(self, message: bytes, signature: bytes) -> bool:
        """Return whether one of the keys made the signature."""
        made = [hmac.digest(key, message, "sha256") for key in self._signers]
        return any(hmac.compare_digest(one, signature) for one in made)


def open_box(keys: Sequence[Secret], path: Path | str) -> Box:
    """Return a box with `keys` (SECRET_KEY), else with those of the file, made when absent."""
    given = [key.reveal() for key in keys]
    return Box(_checked(given, "SECRET_KEY") if given else keys_in(Path(path)))


def keys_in(path: Path) -> list[str]:
    """Return the keys of a file, one a line; an absent file is made with a new key, mode 0600."""
    try:
        if not path.exists():
            _make(path)
        keys = path.read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsInvalid(
            f"the key file {path} cannot be read ({error}); it needs one key a line"
        ) from error
    return _checked(keys, f"the key file {path}")


def _make(path: Path) -> None:
    """Write a new key file whole or not at all; if another process was first, its file stays."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "w", encoding="ascii") as file:
                file.write(secrets.token_hex(32) + "\n")
                file.flush()
                os.fsync(file.fileno())
            _link(draft, path)
        finally:
            draft.unlink()
    except OSError as error:
        raise SettingsInvalid(
            f"the key file {path} cannot be made ({error}); set SECRET_KEY or SECRET_KEY_FILE"
        ) from error


def _link(draft: Path, path: Path) -> None:
    try:
        os.link(draft, path)
    except FileExistsError:
        return
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _checked(keys: Sequence[str], source: str) -> list[str]:
    if not keys or min(map(len, keys)) < KEY_CHARACTERS:
        raise SettingsInvalid(
            f"{source} needs keys of at least {KEY_CHARACTERS} characters each, the one that "
            "encrypts first; make one with: openssl rand -hex 32"
        )
    return list(keys)


def _derived(key: str, purpose: bytes) -> bytes:
    """Return 32 bytes for one purpose alone: what seals never signs."""
    return HKDF(SHA256(), length=32, salt=None, info=purpose).derive(key.encode())
