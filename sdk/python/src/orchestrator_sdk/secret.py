"""A text that never prints: tokens travel in this, and are taken out where they are sent."""

import hmac


class Secret:
    """A secret text; what formats, logs or pickles it by accident gets three dots or an error."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """Return the text."""
        return self._text

    def matches(self, text: str) -> bool:
        """Compare in a time that does not tell how much of `text` is right."""
        return hmac.compare_digest(self._text.encode(), text.encode("utf-8", "replace"))

    def __bool__(self) -> bool:
        return bool(self._text)

    def __repr__(self) -> str:
        return "Secret(…)"

    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError("a secret is not pickled")


def secret(value: str | Secret | None) -> Secret | None:
    """Return a value as a secret, None where it is empty."""
    if not value:
        return None
    return value if isinstance(value, Secret) else Secret(value)
