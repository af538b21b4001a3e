"""A secret box that hides nothing, for tests whose secrets are none."""

from hashlib import sha256


class PlainBox:
    """`ports.SecretBox` and `ports.Signer` that anybody can read and sign with."""

    def seal(self, secret: str, context: str) -> bytes:
        """Return the secret with its place."""
        return f"{context}|{secret}".encode()

    def unseal(self, sealed: bytes, context: str) -> str:
        """Return the secret; raises ValueError if the place is another."""
        place, _, secret = sealed.decode().partition("|")
        if place != context:
            raise ValueError(f"sealed for {place}")
        return secret

    def is_current(self, sealed: bytes, context: str) -> bool:
        """Return whether it is sealed for that place."""
        return sealed.startswith(f"{context}|".encode())

    def sign(self, message: bytes) -> bytes:
        """Return the message's hash."""
        return sha256(message).digest()

    def is_signed(self, message: bytes, signature: bytes) -> bool:
        """Return whether that is the message's hash."""
        return self.sign(message) == signature
