"""How well outputs agree with the dense model's, as lines of a report."""

from __future__ import annotations

from collections.abc import Iterator

from prunec.measure.fidelity import FIGURES
from prunec.measure.scores import Compared, Comparison, Score
from prunec.measure.verdict import in_figures, written

Row = tuple[str, str]


def rows_of(comparison: Comparison, images: str) -> Iterator[Row]:
    """Label and text: what is known by labels, then every output beside its controls, then the own metric."""
    if comparison.dense.accuracy is not None:
        yield from _known(comparison, "accuracy", f"on {comparison.images} {images}")
    for number, compared in enumerate(comparison.outputs):
        start = "outputs agree with the dense model's, " if number == 0 else ""
        where = f"on {comparison.images} {images}: " if number == 0 else ""
        yield ("fidelity" if number == 0 else ""), f"{start}{where}{compared.output} ({compared.output.why})"
        yield from _beside(compared, comparison)
    if comparison.outputs and comparison.resize is None and comparison.resized:
        yield "", f"{'resize':<8} {comparison.resized}"
    if comparison.metric:
        yield from _known(comparison, "metric", comparison.metric)


def _known(comparison: Comparison, figure: str, title: str) -> Iterator[Row]:
    """A figure that the dense model has too."""
    yield figure, title
    for name in ("dense", "pruned", "random", "resize"):
        score: Score | None = getattr(comparison, name)
        if score is not None and getattr(score, figure) is not None:
            line = f"{name:<8} {in_figures(score, figure):>7}"
            if name == "random" and comparison.spread is not None:
                spread = in_figures(comparison.spread, figure).removesuffix("%")
                line += f" ± {spread}{_seeds(comparison)}"
            yield "", line


def _beside(compared: Compared, comparison: Comparison) -> Iterator[Row]:
    """An output of the pruned model and of its controls."""
    figures = FIGURES[compared.output.kind]
    for name in ("pruned", "random", "resize"):
        if name not in compared.scores:
            continue
        parts = [written(compared.scores[name], figure) for figure in figures]
        line = f"{name:<8} "
        if name == "random" and "spread" in compared.scores:
            parts[0] += f" ± {in_figures(compared.scores['spread'], figures[0])}"
            line += ", ".join(parts) + _seeds(comparison)
        elif name == "resize":
            line += f"{', '.join(parts)} ({comparison.resized})"
        else:
            line += ", ".join(parts)
        yield "", line


def _seeds(comparison: Comparison) -> str:
    return f" (the same counts, {comparison.seeds} seeds)"
