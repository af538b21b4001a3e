"""What the benchmarks say about their figures, and how they draw and compare them."""

from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from bench.compare import changes
from bench.page import BEGIN, END, renew
from bench.picture import LABELS, PLOT, draw
from bench.report import Report, Row, read, write


@pytest.mark.parametrize(
    ("row", "good", "margin"),
    [
        (Row("b", "w", 2.0, most=4), True, 2.0),
        (Row("b", "w", 8.0, most=4), False, 0.5),
        (Row("b", "w", 2.0, least=4), False, 0.5),
        (Row("b", "w", 0.0, most=4), True, 1000),
        (Row("b", "w", -3.0, most=4), True, 1000),
        (Row("b", "w", 2.0), True, None),
        (Row("b", "w", None, note="not installed"), True, None),
        (Row("b", "w", None, most=4), False, None),
    ],
)
def test_a_figure_is_held_against_its_bound(row: Row, good: bool, margin: float | None) -> None:
    assert row.good is good
    assert row.margin == margin
    assert row.mark == (" " if not row.bounded else "✓" if good else "✗")


def test_a_report_is_read_as_it_was_written(tmp_path: Path) -> None:
    report = Report("a machine", [Row("b", "w", 1.5, "µs", most=2, note="n"), Row("b", "x", None)])
    write(tmp_path / "r.json", report)
    assert read(tmp_path / "r.json") == report


def test_what_both_reports_have_is_compared() -> None:
    old = Report("m", [Row("b", "same", 2.0), Row("b", "gone", 1.0), Row("b", "zero", 0.0)])
    new = Report("m", [Row("b", "new", 1.0), Row("b", "zero", 1.0), Row("b", "same", 3.0)])
    assert [(change.new.what, change.times) for change in changes(old, new)] == [
        ("zero", None),
        ("same", 1.5),
    ]


def test_bars_point_from_the_bound_to_the_figure() -> None:
    rows = [Row("b", "in <time>", 1.0, most=4), Row("b", "out", 1.0, least=4), Row("b", "no", 1.0)]
    svg = ET.fromstring(draw(Report("a & b", rows)))  # noqa: S314  # we made it
    bars = [e.attrib for e in svg.iter() if e.get("class") in {"good", "bad"}]
    bound = LABELS + PLOT / 2
    assert [bar["class"] for bar in bars] == ["good", "bad"]
    assert float(bars[0]["x"]) == bound
    assert float(bars[1]["x"]) + float(bars[1]["width"]) == pytest.approx(bound)


def test_a_page_keeps_all_but_its_figures(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"# Title\n{BEGIN}\nold\n{END}\nthe end\n")
    for value in (1.0, 1234.5):
        renew(page, Report("m", [Row("b", "w", value, "µs", most=2)]))
    text = page.read_text()
    assert text.startswith("# Title\n")
    assert text.endswith("\nthe end\n")
    assert "| b | w | 1,234 µs | ≤ 2 ✗ |  |" in text
    assert "old" not in text
    page.write_text("no marks")
    with pytest.raises(ValueError, match="no place for figures"):
        renew(page, Report("m", []))
