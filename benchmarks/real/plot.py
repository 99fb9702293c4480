"""The record as a drawing: how far tokens are from the dense model's, over the FLOPs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 760, 420, 60, 190, 40, 50
FONT = 'font-family="sans-serif" font-size="12"'
HIGHEST = 1.0  # relative L2 at the top; what is above stands at it
COLOURS = (
    "#1f77b4", "#ff7f0e", "#2ca02c", "#9467bd", "#8c564b", "#e377c2", "#17becf", "#bcbd22", "#d62728",
    "#393b79", "#637939", "#8c6d31", "#843c39", "#7b4173",
)  # fmt: skip

Points = Sequence[tuple[float, float]]


def svg(record: Mapping[str, Any]) -> str:
    """Relative L2 of all tokens over the share of the FLOPs: a line for each preset, and for `resize`."""
    lines = {"resize": [(each["flops"], each["figures"]["l2"]["mean"]) for each in record["resize"].values()]}
    for row in record["rows"]:
        if "figures" in row:
            lines.setdefault(row["preset"], []).append((row["flops"], row["figures"]["l2"]["mean"]))
    shares = [share for points in lines.values() for share, _ in points]
    low, high = min(shares) - 0.02, max(shares) + 0.02

    def place(share: float, loss: float) -> tuple[float, float]:
        across = (share - low) / (high - low) * (WIDTH - LEFT - RIGHT)
        return LEFT + across, TOP + (1 - min(loss, HIGHEST) / HIGHEST) * (HEIGHT - TOP - BOTTOM)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" {FONT}>',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{LEFT}" y="22">Relative L2 of all tokens on real weights: lower is better</text>',
    ]
    for loss in (0.0, 0.25, 0.5, 0.75, 1.0):
        _, y = place(low, loss)
        more = " up" if loss == HIGHEST else ""
        parts.append(f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="#ddd"/>')
        parts.append(f'<text x="20" y="{y + 4:.1f}">{loss:.2f}{more}</text>')
    for budget in record["budgets"]:
        x, y = place(budget, 0)
        parts.append(f'<text x="{x - 40:.1f}" y="{y + 22:.1f}">{budget:.0%} of FLOPs</text>')
    for number, (name, points) in enumerate(sorted(lines.items(), key=lambda item: _last(item[1]))):
        parts += _line(name, [place(*point) for point in sorted(points)], number)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _last(points: Points) -> float:
    return max(loss for _, loss in points)


def _line(name: str, points: Points, number: int) -> list[str]:
    """Its dots, what joins them, and its name at the right."""
    whole = name == "resize"
    colour, width = ("black", 3) if whole else (COLOURS[number % len(COLOURS)], 1.5)
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    y = TOP + 18 * number
    return [
        f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{width}"/>',
        *(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in points),
        f'<path d="M{WIDTH - RIGHT + 14} {y}h20" stroke="{colour}" stroke-width="{width}"/>'
        f'<text x="{WIDTH - RIGHT + 40}" y="{y + 4}">{name}</text>',
    ]
