"""A sweep as a picture (PNG, SVG) or as one page that stands by itself (HTML).

It needs the extra `report` (jinja2, matplotlib), so nothing imports it at its top: it is loaded when asked
for. What it draws is the JSON of a sweep: a file of an earlier run can be drawn too.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from matplotlib.transforms import Bbox

from prunec.errors import UsageError

Sweep = Mapping[str, Any]  # the JSON of prunec.planner.sweep.Sweep
Point = Mapping[str, Any]

SUFFIXES = (".png", ".svg", ".html")
SIZE, DOTS = (9.0, 5.6), 150  # inches, dots per inch
COLOURS = ("#1f5fa8", "#c2571a", "#2f7d4f", "#7a4aa0")  # of modes
LETTERS = 62  # of a label in the picture, at most


def draw(data: Sweep, path: Path) -> None:
    """Write the picture, or the page, as the file's name ends."""
    check_name(path)
    if path.suffix == ".html":
        path.write_text(page(data), encoding="utf-8")
        return
    figure(data).savefig(path, dpi=DOTS, metadata=_UNDATED[path.suffix])


def check_name(path: Path) -> None:
    """UsageError unless the file's name says what to write."""
    if path.suffix not in SUFFIXES:
        raise UsageError(
            f"a sweep is drawn as {', '.join(SUFFIXES)}, got {path.name!r}",
            where="--plot",
            remedy="give a file name that ends so",
        )


_UNDATED: dict[str, dict[str, Any]] = {".png": {}, ".svg": {"Date": None}}


def figure(data: Sweep) -> Figure:
    """Share of the dense time against loss: what was predicted, and what was measured."""
    drawn = Figure(figsize=SIZE, layout="constrained")
    axes = drawn.add_subplot()
    modes = _modes(data)
    for mode, colour in modes.items():
        _draw_prediction(axes, data, mode, colour)
        _draw_points(axes, [point for point in data["points"] if point["mode"] == mode], mode, colour)
    best = _frontier(data)
    axes.step(
        [point["share"] for point in best], [point["loss"] for point in best], where="post",
        color="#444444", linewidth=1, linestyle=(0, (5, 3)), label="measured frontier", zorder=1,
    )  # fmt: skip
    _scale(axes, data)
    axes.set_xlabel("share of the dense model's time (left is faster)")
    axes.set_ylabel(f"loss: {data['losses']['kind']} from the dense model, no accuracy")
    axes.grid(visible=True, which="major", color="#e4e4e4", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(f"{title(data)}\n\n", loc="left", fontsize=12, fontweight="bold")
    axes.text(0, 1.015, subtitle(data), transform=axes.transAxes, fontsize=8, color="#555555")
    axes.legend(
        loc="upper right", fontsize=8, frameon=False, title="beside points: block: tokens that go on",
        title_fontsize=8, alignment="left",
    )  # fmt: skip
    _label(drawn, axes, best)
    return drawn


def page(data: Sweep) -> str:
    """One HTML page with the picture, all points and what they were measured on."""
    picture = io.StringIO()
    figure(data).savefig(picture, format="svg", metadata=_UNDATED[".svg"])
    svg = picture.getvalue()
    facts = {name: data[name] for name in ("model", "place", "work", "search", "seconds")}
    named = {name: [(k, v) for k, v in of.items() if v not in (None, "")] for name, of in facts.items()}
    template = Environment(autoescape=True).from_string(_PAGE)
    return template.render(
        title=title(data),
        subtitle=subtitle(data),
        svg=Markup(svg[svg.index("<svg") :]),
        points=[{**point, "described": described(point)} for point in data["points"]],
        facts=named,
        kind=data["losses"]["kind"],
    )


def title(data: Sweep) -> str:
    """Which model, which policy."""
    return f"{data['model']['source']}, policy {data['policy']['name']}"


def subtitle(data: Sweep) -> str:
    """Where and how it was measured: two lines."""
    place, work = data["place"], data["work"]
    threads = f", threads {place['threads']}" if "threads" in place else ""
    return (
        f"{place['device']}{threads}, torch {place['torch']}\n{work['target']}, batch {work['batch']}, "
        f"{work['dtype']}; loss on {data['losses']['images']} {data['losses']['name']}"
    )


def described(point: Point) -> str:
    """`3: 112, 7: 48`: block and how many tokens go on; blocks in a row with the same length named once."""
    runs: list[list[int]] = []  # first block, last block, length
    for block, leaves in sorted((int(block), int(leaves)) for block, leaves in point["schedule"].items()):
        if runs and runs[-1][1:] == [block - 1, leaves]:
            runs[-1][1] = block
        else:
            runs.append([block, block, leaves])
    named = (f"{first}: {n}" if first == last else f"{first} to {last}: {n}" for first, last, n in runs)
    return ", ".join(named) or "no site"


# Parts of the picture ---------------------------------------------------------------------------------------


def _modes(data: Sweep) -> dict[str, str]:
    """The colour of each mode."""
    names = dict.fromkeys(entry["mode"] for entry in (*data["modes"], *data["points"]))
    return {name: COLOURS[number % len(COLOURS)] for number, name in enumerate(names)}


def _frontier(data: Sweep) -> list[Point]:
    return sorted((point for point in data["points"] if point["frontier"]), key=lambda point: point["share"])


def _draw_prediction(axes: Axes, data: Sweep, mode: str, colour: str) -> None:
    for entry in data["modes"]:
        if entry["mode"] == mode:
            line = entry["frontier"]
            axes.plot(
                [point["share"] for point in line], [point["loss"] for point in line],
                color=colour, linewidth=1.3, alpha=0.45, label=f"predicted, {mode}", zorder=2,
            )  # fmt: skip


def _draw_points(axes: Axes, points: Sequence[Point], mode: str, colour: str) -> None:
    """Filled where they lie on the measured frontier; a bar as wide as the noise to both sides."""
    kinds = ((True, colour, "on the frontier"), (False, "white", "beaten"))
    for frontier, inside, what in kinds:
        shown = [point for point in points if point["frontier"] == frontier]
        if shown:
            axes.errorbar(
                [point["share"] for point in shown], [point["loss"] for point in shown],
                xerr=[point["noise"] for point in shown], fmt="o", markersize=6, color=colour,
                markerfacecolor=inside, elinewidth=1.2, capsize=2.5, label=f"measured, {mode}, {what}",
                zorder=3,
            )  # fmt: skip


def _scale(axes: Axes, data: Sweep) -> None:
    """Losses by their order of magnitude; zero, and what rounding loses without a site, at the bottom."""
    measured = [point["loss"] for point in data["points"] if point["schedule"] and point["loss"] > 0]
    predicted = [point["loss"] for entry in data["modes"] for point in entry["frontier"] if point["loss"] > 0]
    least = min(measured or predicted or [1.0])
    axes.set_yscale("symlog", linthresh=least, linscale=0.8)
    axes.set_ylim(bottom=-0.15 * least)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.margins(x=0.08)


def _label(drawn: Figure, axes: Axes, points: Sequence[Point]) -> None:
    """The schedule beside each point of the frontier, but where it would cover another or stick out."""
    drawn.draw_without_rendering()  # only now is known where things lie
    inside = axes.get_window_extent()
    taken = [_around(axes, point) for point in points]
    for point in points:
        text = described(point)
        for sideways, upwards, align in ((8, 6, "left"), (-8, -12, "right"), (8, -12, "left")):
            note = axes.annotate(
                text if len(text) <= LETTERS else f"{text[:LETTERS]}...", (point["share"], point["loss"]),
                (sideways, upwards), textcoords="offset points", fontsize=7.5, ha=align, color="#333333",
            )  # fmt: skip
            box = note.get_window_extent()
            fits = inside.contains(*box.p0) and inside.contains(*box.p1)
            if fits and not any(box.overlaps(other) for other in taken):
                taken.append(box)
                break
            note.remove()


def _around(axes: Axes, point: Point) -> Any:
    """The box of a marker on the screen."""
    x, y = axes.transData.transform((point["share"], point["loss"]))
    return Bbox.from_extents(x - 5, y - 5, x + 5, y + 5)


_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{{ title }}</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62em; margin: 2em auto; padding: 0 1em; color: #222; }
svg { width: 100%; height: auto; }
table { border-collapse: collapse; margin: 1em 0; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .15em .9em .15em 0; border-bottom: 1px solid #e4e4e4; }
th:last-child, td:last-child, dl { text-align: left; }
.frontier { font-weight: 600; }
dt { font-weight: 600; float: left; clear: left; width: 6em; } dd { margin: 0 0 .3em 6.5em; }
</style>
<h1>{{ title }}</h1>
<p>{{ subtitle }}</p>
{{ svg }}
<table>
<tr><th>share of dense<th>±<th>predicted<th>loss<th>added up<th>mode<th>block: tokens that go on</tr>
{% for point in points -%}
<tr{% if point.frontier %} class="frontier"{% endif %}>
<td>{{ '%.3f' % point.share }}<td>{{ '%.3f' % point.noise }}<td>{{ '%.3f' % point.predicted }}
<td>{{ '%.2e' % point.loss }}<td>{{ '%.2e' % point.expected }}
<td>{{ point.mode }}<td>{{ point.described }}</tr>
{% endfor -%}
</table>
<p>Bold: the measured frontier. The loss is the {{ kind }} of the outputs from those of the dense model. It is
no accuracy: it says which schedule changes the model less.</p>
<dl>
{% for name, values in facts.items() -%}
<dt>{{ name }}<dd>
{%- for key, value in values %}{{ key }} {{ value }}{{ ", " if not loop.last }}{% endfor %}
{% endfor -%}
</dl>
</html>
"""
