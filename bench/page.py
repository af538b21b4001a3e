"""Renews the table of figures in a page of the documents."""

from pathlib import Path
from typing import Final

from bench.report import Report, Row

BEGIN: Final = "<!-- figures: written by `./orchestrator bench --page` -->"
END: Final = "<!-- end of figures -->"


def renew(page: Path, report: Report) -> None:
    """Put a report's figures between the page's two marks; raises ValueError without them."""
    before, begin, rest = page.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{page} has no place for figures: {BEGIN} … {END}")
    page.write_text(f"{before}{BEGIN}\n\n{table(report)}\n\n{END}{after}")


def table(report: Report) -> str:
    """Return a report as Markdown."""
    lines = [f"{report.machine}:", "", "| | what | figure | bound | |", "|---|---|---:|---|---|"]
    return "\n".join(lines + [_line(row) for row in report.rows])


def _line(row: Row) -> str:
    bound = f"{row.bound} {row.mark}".strip()
    return f"| {row.bench} | {row.what} | {row.figure} | {bound} | {row.note} |"
