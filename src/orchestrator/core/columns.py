"""Many deltas at once: what they have in common is kept once, what each has of its own in columns.

So a burst becomes bytes by two joins in C; an event at a time would take longer than all else.
"""

from collections.abc import Sequence

import msgspec

_END = '"}}'


class Columns(msgspec.Struct, frozen=True):
    """The JSON texts of consecutive deltas of one commit, taken apart.

    A text is `before` + its noise + `between` + its seq + `behind` + its body + the end.
    """

    before: str
    between: str
    behind: str
    noises: list[str]
    bodies: list[str]

    def part(self, start: int, end: int) -> "Columns":
        """Return the deltas at positions `start` to `end`, which is not among them."""
        noises, bodies = self.noises[start:end], self.bodies[start:end]
        return Columns(self.before, self.between, self.behind, noises, bodies)

    def texts(self, seqs: Sequence[int]) -> list[str]:
        """Return the text of each."""
        rows = zip(self.noises, seqs, self.bodies, strict=True)
        return [
            f"{self.before}{noise}{self.between}{seq}{self.behind}{body}{_END}"
            for noise, seq, body in rows
        ]

    def array(self, seqs: Sequence[int]) -> str:
        """Return a JSON array of the texts."""
        pieces = self._woven(["", "", self.between, "", self.behind, "", f"{_END},{self.before}"])
        pieces[1::7], pieces[3::7], pieces[5::7] = self.noises, list(map(str, seqs)), self.bodies
        pieces[0], pieces[-1] = f"[{self.before}", f"{_END}]"
        return "".join(pieces)

    def frames(self, seqs: Sequence[int], mark: str, kind: str) -> str:
        """Return the texts as server-sent events `kind`, whose ids end in `mark`."""
        data = f"{mark}\nevent: {kind}\ndata: {self.before}"
        pieces = self._woven(
            ["id: ", "", data, "", self.between, "", self.behind, "", f"{_END}\n\n"]
        )
        numbers = list(map(str, seqs))
        pieces[1::9], pieces[3::9], pieces[5::9], pieces[7::9] = (
            numbers, self.noises, numbers, self.bodies,
        )  # fmt: skip
        return "".join(pieces)

    def _woven(self, pattern: list[str]) -> list[str]:
        return pattern * len(self.bodies)
