"""The picture and the page of a sweep; they need the extra `report`, which `make setup` installs."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from prunec.errors import UsageError

pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")

from matplotlib.text import Annotation

from prunec.report import drawing

ON = [
    (0.4, 3e-2, {"2": 9}), (0.62, 2e-3, {"3": 64, "7": 32}), (0.9, 4e-10, {}),
]  # fmt: skip
BEATEN = [(0.66, 8e-3, {"5": 48})]


def point(
    share: float, loss: float, schedule: dict[str, int], mode: str, *, frontier: bool
) -> dict[str, Any]:
    return {
        "mode": mode, "schedule": schedule, "predicted": share - 0.02, "expected": loss * 1.1, "share": share,
        "loss": loss, "noise": 0.015, "frontier": frontier,
    }  # fmt: skip


def sweep(**changes: Any) -> dict[str, Any]:
    """The JSON of a sweep."""
    found = {
        "model": {"source": "timm:<vit>", "arch": "", "weights": "given"},
        "place": {"device": "a <GPU> & more", "torch": "2.15.0", "threads": 2},
        "work": {"batch": 8, "dtype": "float32", "target": "eager"},
        "policy": {"name": "evit"},
        "search": {"first": 2, "sites": 3, "blocks": None},
        "points": [
            *(point(*figures, "static", frontier=True) for figures in ON),
            *(point(*figures, "static", frontier=False) for figures in BEATEN),
        ],
        "modes": [
            {"mode": "static", "frontier": [{"share": 0.38, "loss": 0.05}, {"share": 0.95, "loss": 0.0}]}
        ],
        "losses": {"kind": "divergence", "images": 64, "name": "scenes"},
        "seconds": {"table": 12.3, "losses": 4.5},
    }
    return {**found, **changes}


def labels(data: dict[str, Any]) -> list[str]:
    (axes,) = drawing.figure(data).axes
    return [note.get_text() for note in axes.texts if isinstance(note, Annotation)]


def test_points_curves_and_bars_lie_where_the_numbers_are() -> None:
    (axes,) = drawing.figure(sweep()).axes
    curves = {line.get_label(): line for line in axes.lines}
    assert [tuple(xy) for xy in curves["predicted, static"].get_xydata()] == [(0.38, 0.05), (0.95, 0.0)]
    assert [tuple(xy) for xy in curves["measured frontier"].get_xydata()] == [(x, y) for x, y, _ in ON]
    bars = {container.get_label(): container for container in axes.containers}
    for name, points in (("on the frontier", ON), ("beaten", BEATEN)):
        markers, _, (bar,) = bars[f"measured, static, {name}"]
        assert [tuple(xy) for xy in markers.get_xydata()] == [(x, y) for x, y, _ in points]
        ends = [tuple(segment[:, 0]) for segment in bar.get_segments()]
        assert ends == [pytest.approx((x - 0.015, x + 0.015)) for x, _, _ in points]
    assert bars["measured, static, beaten"][0].get_markerfacecolor() == "white"
    assert axes.get_yscale() == "symlog"
    assert axes.transData.transform((0, 4e-10))[1] == pytest.approx(
        axes.transData.transform((0, 0))[1], abs=1
    )


def test_what_lies_on_the_frontier_is_labelled() -> None:
    assert labels(sweep()) == ["2: 9", "3: 64, 7: 32", "no site"]


def test_labels_never_cover_each_other() -> None:
    crowd = [
        point(0.5 + n * 1e-3, 1e-3 - n * 1e-6, {"2": 90 - n}, "static", frontier=True) for n in range(30)
    ]
    drawn = drawing.figure(sweep(points=crowd))
    (axes,) = drawn.axes
    boxes = [note.get_window_extent() for note in axes.texts if isinstance(note, Annotation)]
    assert 1 <= len(boxes) < 30
    assert not any(one.overlaps(two) for at, one in enumerate(boxes) for two in boxes[:at])


def test_each_mode_has_its_colour() -> None:
    packed = [point(0.5, 0.01, {"2": 9}, "packed", frontier=True)]
    modes = [{"mode": mode, "frontier": [{"share": 0.5, "loss": 0.1}]} for mode in ("static", "packed")]
    (axes,) = drawing.figure(sweep(points=[*sweep()["points"], *packed], modes=modes)).axes
    colours = {line.get_label(): line.get_color() for line in axes.lines}
    assert colours["predicted, static"] != colours["predicted, packed"]
    bars = {container.get_label(): container for container in axes.containers}
    assert bars["measured, packed, on the frontier"][0].get_color() == colours["predicted, packed"]


def test_it_can_be_drawn_where_nothing_is_lost() -> None:
    free = [point(0.9, 0.0, {}, "static", frontier=True)]
    drawn = drawing.figure(
        sweep(points=free, modes=[{"mode": "static", "frontier": [{"share": 1, "loss": 0}]}])
    )
    assert len(drawn.axes) == 1


def test_schedules_are_reported_shortly() -> None:
    told = {
        "no site": {},
        "3: 112, 7: 48": {"7": 48, "3": 112},
        "2 to 4: 112, 5: 48, 7: 48": {"2": 112, "3": 112, "4": 112, "5": 48, "7": 48},
        "9: 5, 10: 4": {"10": 4, "9": 5},
    }
    assert {drawing.described({"schedule": schedule}): schedule for schedule in told.values()} == told


# Files ------------------------------------------------------------------------------------------------------


def test_png_and_svg(tmp_path: Path) -> None:
    drawing.draw(sweep(), tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    drawing.draw(sweep(), tmp_path / "a.svg")
    assert ET.parse(tmp_path / "a.svg").getroot().tag.endswith("svg")


def test_other_names_are_refused() -> None:
    with pytest.raises(UsageError, match=r"\.png, \.svg, \.html, got 'a\.pdf'"):
        drawing.check_name(Path("out/a.pdf"))


class Page(HTMLParser):
    """What a page holds: rows of cells, and what it would load from elsewhere."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.bold: list[bool] = []
        self.loaded: list[str] = []
        self.tags: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        named = dict(attrs)
        self.loaded += [str(named[name]) for name in ("src", "href") if name in named]
        if tag == "tr":
            self.rows.append([])
            self.bold.append(named.get("class") == "frontier")
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_data(self, data: str) -> None:
        if self.rows and self.rows[-1] and "dl" not in self.tags:
            self.rows[-1][-1] += data.strip()


def test_the_page_stands_by_itself(tmp_path: Path) -> None:
    drawing.draw(sweep(), tmp_path / "a.html")
    text = (tmp_path / "a.html").read_text(encoding="utf-8")
    page = Page(text)
    assert page.tags.count("svg") == 1
    assert not {"script", "link", "img", "iframe"} & set(page.tags)
    assert not re.search(r"@import|url\((?!#)", text)


def test_the_page_has_all_points_and_facts() -> None:
    text = drawing.page(sweep())
    page = Page(text)
    assert [row[:5] for row in page.rows[1:]] == [
        [f"{share:.3f}", "0.015", f"{share - 0.02:.3f}", f"{loss:.2e}", f"{loss * 1.1:.2e}"]
        for share, loss, _ in (*ON, *BEATEN)
    ]
    assert page.bold == [False, True, True, True, False]
    assert [row[6] for row in page.rows[1:3]] == ["2: 9", "3: 64, 7: 32"]
    assert "device a &lt;GPU&gt; &amp; more, torch 2.15.0, threads 2" in text
    assert "<title>timm:&lt;vit&gt;, policy evit</title>" in text
    assert "blocks None" not in text
    assert "<GPU>" not in text
    assert "It is\nno accuracy" in text
