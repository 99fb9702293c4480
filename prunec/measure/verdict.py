"""Whether a pruned model's outputs are worth having, in words.

no better than random tokens   a warning   the main output's main figure, outside the spread of the seeds
worse than a smaller picture   a warning   the same figure of the dense model at about the same FLOPs
relative L2 above 0.5          a warning   of any output
relative L2 above 1            useless     further from the dense model's output than zeros are
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from prunec.measure.fidelity import FIGURES, LOSSES, Kind
from prunec.measure.scores import Compared, Comparison, Score

FAR = 0.5  # relative L2 above which outputs are far from the dense model's
ENOUGH = 8  # images on which a choice is told from chance
ZEROS = 1.0  # that of an output of zeros
PERFECT = 1e-6  # how far from its best value a figure may be that cannot be improved

#: A figure in words, and how it is written.
WORDS: Mapping[str, tuple[str, str]] = {
    "agreement": ("same best class", "{:.1%}"),
    "divergence": ("KL", "{:.4f}"),
    "correlation": ("correlation", "{:.3f}"),
    "iou": ("matched IoU", "{:.3f}"),
    "similarity": ("cosine", "{:.4f}"),
    "relative_l2": ("relative L2", "{:.3f}"),
    "accuracy": ("accuracy", "{:.2%}"),
    "metric": ("metric", "{:.4g}"),
}
#: What is kept of a main output, by its kind.
KEPT: Mapping[Kind, str] = {
    "class scores": "same best class as the dense model {}",
    "class map": "pixels of the same class as the dense model's {}",
    "map": "correlation with the dense model's map {}",
    "boxes": "matched IoU with the dense model's boxes {}",
    "features": "cosine with the dense model's features {}",
    "numbers": "relative L2 from the dense model's numbers {}",
}
MORE = "keep more tokens, or take another policy: `prunec policies` lists them"


@dataclass(frozen=True)
class Verdict:
    """What a comparison says of the pruned model."""

    said: str  # how it compares, in one sentence
    warnings: tuple[str, ...] = ()
    short: tuple[str, ...] = ()  # the same warnings in a few words
    useless: str = ""  # why its outputs are of no use; empty where they may be


def judged(comparison: Comparison, *, chosen: bool = True) -> Verdict:
    """The verdict on a comparison; nothing is said of one without outputs.

    Args:
        comparison: of dense, pruned and controls.
        chosen: whether any tokens are chosen, as random ones could be.
    """
    if not comparison.outputs:
        return Verdict("")
    main = comparison.outputs[0]
    furthest = max(comparison.outputs, key=_distance)
    worst, name = _distance(furthest), furthest.output.name
    of = f" ({name})" if name else ""
    useless, warnings, short = "", [], []
    if worst > ZEROS:
        useless = (
            f"the pruned model's outputs{of} are further from the dense model's than zeros would be: "
            f"relative L2 {worst:.2f}, zeros have 1"
        )
        warnings.append(f"{useless}; {MORE}")
        short.append("outputs are worse than zeros")
    elif worst > FAR:
        warnings.append(
            f"the pruned model's outputs{of} are far from the dense model's: relative L2 {worst:.2f}, and "
            f"zeros would have 1; {MORE}"
        )
        short.append("outputs are far from the dense model's")
    on = f" on {comparison.images} images"
    enough = chosen and comparison.images >= ENOUGH
    if enough and (figure := no_better(main)):
        short.append("no better than random tokens")
        warnings.append(f"{short[-1]}: {_beside(main, figure)}{on}; {MORE}")
    elif enough and (figure := worse(main)):
        short.append("worse than a smaller picture")
        about = f" ({comparison.resized})" if comparison.resized else ""
        warnings.append(f"{short[-1]}{about}: {_beside(main, figure)}{on}; give the model that, or {MORE}")
    return Verdict(_beside(main, main.output.main) + on, tuple(warnings), tuple(short), useless)


def no_better(compared: Compared) -> str:
    """The figure in which random tokens do as well, within the spread of their seeds; empty where in none.

    The main one tells, and where it cannot be improved the next.
    """
    figure, gain, spread = _gain(compared, "random")
    return "" if gain > spread else figure  # nan is no gain


def worse(compared: Compared) -> str:
    """The figure in which a smaller picture does better, by more than the spread of the seeds; or empty."""
    figure, gain, spread = _gain(compared, "resize")
    return figure if gain < -spread else ""


def _gain(compared: Compared, control: str) -> tuple[str, float, float]:
    """The figure that tells, how much better than a control the pruned model is, and the spread of seeds."""
    scores = compared.scores
    for figure in FIGURES[compared.output.kind] if control in scores else ():
        pruned, other = (_value(scores[name], figure) for name in ("pruned", control))
        spread = _value(scores["spread"], figure) if "spread" in scores else 0.0
        lower = figure in LOSSES
        if abs(pruned - (0 if lower else 1)) > PERFECT or math.isnan(pruned):
            return figure, other - pruned if lower else pruned - other, spread
    return "", math.inf, 0.0


def written(score: Score, figure: str) -> str:
    """A figure in words: `same best class 98.4%`."""
    words, form = WORDS[figure]
    return f"{words} {form.format(_value(score, figure))}"


def in_figures(score: Score, figure: str) -> str:
    """The figure alone: `98.4%`."""
    return WORDS[figure][1].format(_value(score, figure))


def _beside(compared: Compared, figure: str) -> str:
    """A figure of the pruned model beside that of its controls."""
    scores = compared.scores
    words = KEPT[compared.output.kind] if figure == compared.output.main else f"{WORDS[figure][0]} {{}}"
    kept = words.format(in_figures(scores["pruned"], figure))
    controls = []
    if "random" in scores:
        random, spread = (in_figures(scores[name], figure) for name in ("random", "spread"))
        controls.append(f"random tokens {random} ± {spread}")
    if "resize" in scores:
        controls.append(f"a smaller picture {in_figures(scores['resize'], figure)}")
    beside = f" ({', '.join(controls)})" if controls else ""
    return f"{kept}{beside}"


def _distance(compared: Compared) -> float:
    """The relative L2 of the pruned model; infinite where it cannot be computed."""
    value = _value(compared.scores["pruned"], "relative_l2")
    return math.inf if math.isnan(value) else value


def _value(score: Score, figure: str) -> float:
    value = getattr(score, figure)
    return float("nan") if value is None else float(value)
