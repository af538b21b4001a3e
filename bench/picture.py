"""Draws how far inside, or beyond, its bound each figure is: one bar each, on a log scale."""

import math
from collections.abc import Iterator
from html import escape
from typing import Final

from bench.report import Report, Row

LINE: Final = 26
TOP: Final = 64
LABELS: Final = 540
PLOT: Final = 360
FIGURES: Final = 200
WIDTH: Final = LABELS + PLOT + FIGURES
REACH: Final = 5
"""How many doublings the scale reaches to each side of the bound."""
_STYLE: Final = (
    "text{font:13px system-ui,sans-serif;fill:#1f2328}.quiet{fill:#656d76;font-size:12px}"
    ".good{fill:#2f6fb3}.bad{fill:#d1622b}.grid{stroke:#d8dee4}.bound{stroke:#1f2328}"
)


def draw(report: Report) -> str:
    """Return an SVG of all figures that have a bound."""
    rows = [row for row in report.rows if row.margin is not None]
    height = TOP + LINE * len(rows) + 16
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">',
            f"<title>{escape(report.machine)}</title><style>{_STYLE}</style>",
            f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
            f'<text x="12" y="20" class="quiet">{escape(report.machine)}</text>',
            *_scale(height),
            *(part for n, row in enumerate(rows) for part in _bar(TOP + LINE * n, row)),
            "</svg>\n",
        ]
    )


def _scale(height: int) -> Iterator[str]:
    for doublings in range(-REACH, REACH + 1):
        x = _x(2.0**doublings)
        kind = "grid" if doublings else "bound"
        name = f"{2**doublings}×" if doublings > 0 else f"1/{2**-doublings}"
        label = name if doublings else "bound"
        yield f'<line x1="{x}" x2="{x}" y1="{TOP - 8}" y2="{height - 12}" class="{kind}"/>'
        yield f'<text x="{x}" y="{TOP - 16}" text-anchor="middle" class="quiet">{label}</text>'


def _bar(y: int, row: Row) -> Iterator[str]:
    end, bound = _x(row.margin or 0.0), _x(1.0)
    left, width = min(end, bound), max(abs(end - bound), 1.0)
    kind = "good" if row.good else "bad"
    figure = escape(f"{row.figure} ({row.bound})")
    yield f'<text x="12" y="{y + 14}">{escape(f"{row.bench}: {row.what}")}</text>'
    yield f'<rect x="{left}" y="{y + 3}" width="{width:.1f}" height="14" class="{kind}"/>'
    yield f'<text x="{LABELS + PLOT + 12}" y="{y + 14}">{figure}</text>'


def _x(margin: float) -> float:
    """Return where a margin stands; those beyond the scale stand at its end."""
    doublings = math.log2(margin) if margin > 0 else -REACH
    inside = max(-REACH, min(REACH, doublings))
    return round(LABELS + PLOT * (inside + REACH) / (2 * REACH), 1)
