"""What every preset costs in accuracy on the trained Shapes classifier, beside as many random tokens.

    python benchmarks/accuracy.py                        # every preset at keep 0.7, 0.5 and 0.35
    python benchmarks/accuracy.py dynamic evit --keep 0.5

A preset that says how much by other means than `keep` runs at its own setting too. `keep` is the share that
survives each site, so a preset with a site in every block is left with far fewer tokens at the same `keep`;
the FLOPs tell what is comparable. Nothing is trained: learned parts are calibrated on 64 other images.

Writes results/accuracy.json and docs/accuracy.md. Not certified here, the tests do that.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch
from common import RESULTS
from torch import Tensor

from prunec.calibration.kept import KeptCounter
from prunec.compiler import fit, plan, recognise
from prunec.data import shapes
from prunec.errors import PolicyError, PruneError
from prunec.frontend.sources import ImageSet, load
from prunec.ir.program import Planned, Recognised
from prunec.measure import cost, figures
from prunec.measure.evaluate import Model, output
from prunec.measure.image_sets import CALIBRATION
from prunec.passes import BACK, run_passes
from prunec.passes.controls import RandomScores
from prunec.policy.policy import Policy, presets
from prunec.scorers.fitting import rank_correlation
from prunec.version import __version__

TABLE = Path(__file__).parent.parent / "docs" / "accuracy.md"
KEEPS = (0.7, 0.5, 0.35)
BATCH = 32
COUNTED = 16  # images that FLOPs are counted on, where they differ
OWN = "own"  # the setting of the preset itself


@dataclass(frozen=True)
class Row:
    """One preset at one setting: its figures, or why there are none."""

    preset: str
    keep: float | str
    patches: float | None = None  # kept, mean over sites and images
    flops: float | None = None  # of the dense model's
    accuracy: float | None = None
    random: float | None = None  # the same counts, mean over the seeds
    spread: float | None = None  # standard deviation over the seeds
    follows: float | None = None  # rank correlation of a busy scene's count with the area of its objects
    calibration: str = ""
    refused: str = ""


@dataclass(frozen=True)
class Setting:
    """What all rows have in common."""

    dense: Recognised
    dense_flops: int
    scenes: shapes.Scenes
    images: Tensor  # [n, 3, H, W], normalised
    busy: shapes.Scenes  # of one to four objects; the classifier's own scenes have one
    control: int  # how many of them the random control sees
    fitted_on: ImageSet
    seeds: int


def rows(name: str, policy: Policy, keeps: Sequence[float], setting: Setting) -> Iterator[Row]:
    """A preset at its own setting, where that is none of the rates, and at each rate."""
    own = [step.selector.keep_per_site for step in policy.steps]
    if own[0] not in keeps or len(own) > 1:
        row = measured(name, OWN, policy, setting)
        yield row
        if row.refused or row.patches is None:  # no rate would change that
            return
    for keep in keeps:
        try:
            chosen = policy.override(keep_per_site=keep)
        except PolicyError as error:  # it has no rate
            yield Row(name, keep, refused=_reason(error))
            return
        yield measured(name, keep, chosen, setting)


def measured(name: str, keep: float | str, policy: Policy, setting: Setting) -> Row:
    """One row; a policy that does not go with the model is a row with the reason."""
    try:
        planned = plan(setting.dense, policy)
        pruned = run_passes(BACK, planned)
        fitted = fit(setting.dense, pruned, policy, setting.fitted_on)
        pruned = pruned if fitted is None else pruned.with_values(fitted.values)
    except PruneError as error:
        return Row(name, keep, refused=_reason(error))
    counter = KeptCounter(pruned)
    right = _right(counter.run, setting.images, setting.scenes.label)
    row = Row(
        name,
        keep,
        flops=figures.flops(pruned, figures.inputs(pruned, COUNTED, setting.images)) / setting.dense_flops,
        accuracy=right,
        calibration="" if fitted is None else str(fitted.calibration),
    )
    counts = counter.by_site()
    assert len(counts) == len(planned.plan.sites) if planned.plan else not counts
    if not counts:
        return row
    few = slice(setting.control)
    random = run_passes((RandomScores(),), pruned).module
    chances = [
        _right(random, setting.images[few], setting.scenes.label[few], seed) for seed in range(setting.seeds)
    ]
    kept = torch.stack(counts).mean(dim=0)  # [n], mean over sites
    varied = len(set(kept.tolist())) > 1
    return dataclasses.replace(
        row,
        patches=float(kept.mean()),
        random=statistics.mean(chances),
        spread=statistics.pstdev(chances),
        follows=_follows(pruned, setting.busy) if varied else None,
    )


def _follows(pruned: Planned, scenes: shapes.Scenes) -> float:
    """Whether scenes with more to see keep more patches."""
    counter = KeptCounter(pruned)
    _right(counter.run, shapes.normalize(scenes.image), scenes.label)
    return rank_correlation(torch.stack(counter.by_site()).mean(dim=0), scenes.area.sum(dim=1).double())


def _right(model: Model, images: Tensor, labels: Tensor, seed: int = 0) -> float:
    """The share of the images that get their label."""
    starts = range(0, len(images), BATCH)
    found = [output(model, images[at : at + BATCH], at + seed * len(images)).argmax(dim=1) for at in starts]
    return float((torch.cat(found) == labels).double().mean())


def _reason(error: PruneError) -> str:
    return str(error).splitlines()[0]


def setting_of(count: int, control: int, seeds: int) -> Setting:
    """The trained classifier, and held-out scenes that it is not calibrated on."""
    source = load("shapes")
    dense = recognise(source)
    scenes = shapes.scenes(shapes.CLASSIFICATION, shapes.HELD_OUT_SEEDS[0], 0, count)
    images = shapes.normalize(scenes.image)
    busy = shapes.scenes(shapes.DETECTION, shapes.HELD_OUT_SEEDS[0], 0, count)
    fitted_on = source.calibration_images(CALIBRATION)
    assert fitted_on is not None
    control = min(control, count)
    return Setting(dense, figures.flops(dense), scenes, images, busy, control, fitted_on, seeds)


# --- records and tables ------------------------------------------------------------------------------


def write(record: dict[str, Any], found: Sequence[Row], output_path: Path, table_path: Path) -> None:
    """The record as JSON, and the table as Markdown."""
    listed = [
        {key: value for key, value in dataclasses.asdict(row).items() if value not in (None, "")}
        for row in found
    ]
    output_path.parent.mkdir(parents=True, exist_ok=True)
    output_path.write_text(json.dumps({**record, "rows": listed}, indent=2) + "\n", encoding="utf-8")
    table_path.write_text(markdown(record, found), encoding="utf-8")


def markdown(record: dict[str, Any], found: Sequence[Row]) -> str:
    """The page."""
    lines = [
        "# Accuracy of the presets on Shapes",
        "",
        f"The built-in classifier on {record['images']} held-out images, dense {record['dense']:.1%}; `make",
        "accuracy` writes this page. Nothing is trained: learned parts are calibrated on",
        f"{record['calibration_images']} other images, so presets that want training show what calibration",
        "alone gives.",
        "",
        "- *keep_per_site*: the share of the patches entering a site that survives it; *own*: what the",
        "  preset says. A preset with a site in every block has far fewer patches left at the same share:",
        "  compare by FLOPs.",
        "  Merging takes away at most half at a site, so smaller rates may change nothing.",
        "- *patches*: kept, of 81, mean over sites and images. *FLOPs*: of the dense model.",
        "- *random*: as many patches of each image, chosen at random; mean ± standard deviation over",
        f"  {record['seeds']} seeds, on the first {record['control_images']} of the images.",
        "- *busy*: where images differ, the rank correlation of the patches that a scene keeps with the area",
        "  of its objects, on other scenes of one to four objects.",
        "",
        f"{record['device']}, threads: {record['threads']}, torch {record['torch']},",
        f"prunec {record['prunec']}, {record['date']}.",
        "",
        "| preset | keep_per_site | patches | FLOPs | accuracy | random | busy |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [f"| {' | '.join(_cells(row))} |" for row in found if not row.refused]
    refused = [f"- `{row.preset}`, keep {row.keep}: {row.refused}" for row in found if row.refused]
    return "\n".join(lines + (["", "## Refused", "", *refused] if refused else [])) + "\n"


def _cells(row: Row) -> tuple[str, ...]:
    random = "" if row.random is None else f"{row.random:.1%} ± {row.spread:.1%}"
    return (
        row.preset,
        str(row.keep),
        _in("{:.1f}", row.patches),
        _in("{:.0%}", row.flops),
        _in("{:.1%}", row.accuracy),
        random,
        _in("{:.2f}", row.follows),
    )


def _in(form: str, value: float | None) -> str:
    return "" if value is None else form.format(value)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    known = presets()
    parser.add_argument("presets", nargs="*", metavar="PRESET", help=f"of {', '.join(known)} (default: all)")
    parser.add_argument("--keep", type=float, nargs="+", default=KEEPS)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--control", type=int, default=128, help="images of the random control")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=RESULTS / "accuracy.json")
    parser.add_argument("--table", type=Path, default=TABLE)
    options = parser.parse_args()
    if unknown := set(options.presets) - set(known):
        parser.error(f"no preset {', '.join(sorted(unknown))}; there are {', '.join(known)}")

    start = time.perf_counter()
    with cost.threads(options.threads):
        setting = setting_of(options.images, options.control, options.seeds)
        record = {
            **cost.device_facts(torch.device("cpu")),
            "prunec": __version__,
            "date": date.today().isoformat(),
            "images": options.images,
            "control_images": setting.control,
            "seeds": options.seeds,
            "calibration_images": len(setting.fitted_on.images),
            "dense": _right(setting.dense.module, setting.images, setting.scenes.label),
        }
        print(f"dense: accuracy {record['dense']:.1%}")
        found = []
        for name in options.presets or known:
            for row in rows(name, known[name], options.keep, setting):
                print(row.preset, row.keep, row.refused or _spoken(row), flush=True)
                found.append(row)
    record["seconds"] = round(time.perf_counter() - start)
    write(record, found, options.output, options.table)
    print(f"{record['seconds']} s; written to {options.output} and {options.table}")
    return 0


def _spoken(row: Row) -> str:
    names = ("patches", "FLOPs", "accuracy", "random", "busy")
    return ", ".join(f"{name} {cell}" for name, cell in zip(names, _cells(row)[2:], strict=True) if cell)


if __name__ == "__main__":
    sys.exit(main())
