"""The one source of randomness of a simulation: what a seed decides, it decides every time."""

import random  # noqa: TID251  # seeded, so that a simulation repeats
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


class Chance:
    """A stream of decisions; each actor has one of its own, so that one's haste moves no other."""

    def __init__(self, seed: str) -> None:
        self._seed = seed
        self._random = random.Random(seed)  # noqa: S311  # it decides faults, not secrets
        self.bytes = self._random.randbytes
        self.shuffle = self._random.shuffle

    def of(self, name: str) -> "Chance":
        """Return the stream of that name."""
        return Chance(f"{self._seed}/{name}")

    def hit(self, share: float) -> bool:
        """Return True in that share of cases."""
        return self._random.random() < share

    def between(self, low: float, high: float) -> float:
        """Return a number of that range."""
        return low + (high - low) * self._random.random()

    def whole(self, low: int, high: int) -> int:
        """Return a whole number of that range, both ends included."""
        return low + int((high - low + 1) * self._random.random())

    def pick(self, choices: Sequence[T]) -> T:
        """Return one of the choices."""
        return choices[int(len(choices) * self._random.random())]
