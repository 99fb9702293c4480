"""The model card of an artefact, README.md: what was pruned, what was measured, and how to load it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from prunec.artefact.spec import InputRecord, Spec
from prunec.policy.rules import rates
from prunec.report.report import Report

#: What the hub calls a model by the kind of its main output.
TASKS = {
    "class scores": "image-classification",
    "boxes": "object-detection",
    "class map": "image-segmentation",
}
#: The rows of a report that are in its card.
FIGURES = ("WARNING", "certificate", "FLOPs", "pictures", "fidelity", "latency", "verdict", "note")
_PUBLIC = re.compile(r"(hf|hf-hub):([\w.-]+/[\w.-]+)")


def text(report: Report, spec: Spec, labels: Sequence[str], *, portable: bool) -> str:
    """The card as Markdown, with what the hub reads at its head."""
    parts = [
        "\n".join(_head(report, spec)),
        f"# {report.source} with fewer tokens",
        _about(report),
        "## How to load it",
        _loading(spec, portable=portable),
        "## What it takes and gives",
        "\n".join(_interface(spec, labels)),
        "## Measured",
        "\n".join(_table(report)),
        "Made with prunec; `report.html` beside this file says how each figure was measured.",
    ]
    return "\n\n".join(parts) + "\n"


def _head(report: Report, spec: Spec) -> Iterator[str]:
    """YAML between dashes."""
    yield "---"
    yield "library_name: prunec"
    public = _PUBLIC.fullmatch(report.source)
    if public:
        yield f"base_model: {public[2]}"
    task = TASKS.get(spec.outputs[0].kind) if spec.outputs else None
    if task:
        yield f"pipeline_tag: {task}"
    yield "tags:"
    yield from ("- prunec", "- token-pruning", "- vision-transformer")
    yield "---"


def _about(report: Report) -> str:
    part = f" (its part `{report.submodule}`)" if report.submodule else ""
    weights = f"weights of `{report.arch}`" if report.arch else f"{report.weights} weights"
    sites = "; ".join(map(str, report.plan.sites)) or "nothing is pruned"
    return (
        f"`{report.source}`{part}, with {weights}, transformed by the policy `{report.policy['name']}` "
        f"({rates(report.plan.rules)}): {_inline(sites)}."
    )


def _loading(spec: Spec, *, portable: bool) -> str:
    anywhere = (
        "The folder needs nothing else: neither the original checkpoint nor the library that the model is of."
    )
    if not portable:
        return "\n".join(
            [
                "```python",
                "import prunec",
                'model = prunec.load("this-folder")  # needs the model\'s library',
                "```",
            ]
        )
    call = _call(spec.inputs)
    lines = [
        anywhere, "", "```python", "import prunec", 'model = prunec.load("this-folder")', "```", "",
        "```", "prunec run this-folder picture.jpg", "```", "",
        "With PyTorch alone, which may run what such a file holds (only for folders that you trust):",
        "", "```python", "import torch",
        f'outputs = torch.export.load("this-folder/model.pt2").module()({call})', "```",
    ]  # fmt: skip
    return "\n".join(lines)


def _call(inputs: Sequence[InputRecord]) -> str:
    """How the exported program is called, as its model is."""
    given = [
        (one.name, one.name if one.sizes is not None else repr(one.value), one.by_name) for one in inputs
    ]
    return ", ".join(f"{name}={value}" if by_name else value for name, value, by_name in given)


def _interface(spec: Spec, labels: Sequence[str]) -> Iterator[str]:
    yield "| | name | sizes | |"
    yield "|---|---|---|---|"
    for one in spec.inputs:
        what = f"{one.dtype}" if one.sizes is not None else f"always {one.value!r}"
        yield f"| input | {_inline(one.name)} | {_sizes(one.sizes)} | {_inline(what)} |"
    for output in spec.outputs:
        yield f"| output | {_inline(output.name)} | {_sizes(output.sizes)} | {output.kind} |"
    yield ""
    yield "It takes any number of pictures." if spec.batch is None else f"It takes {spec.batch} at a time."
    if spec.pictures is not None:
        yield f"Pictures are {spec.pictures.preprocess()}."
    if labels:
        yield f"Its {len(labels)} classes are named in `labels.json`."


def _sizes(sizes: Sequence[int | None] | None) -> str:
    return "" if sizes is None else " x ".join("B" if size is None else str(size) for size in sizes)


def _table(report: Report) -> Iterator[str]:
    """The rows of the report that are figures, and its warnings."""
    yield "| | |"
    yield "|---|---|"
    label = ""
    for name, line in report.rows():
        label = name or label
        if label in FIGURES:
            yield f"| {name} | {_inline(line)} |"


def _inline(line: str) -> str:
    """A line that a cell of a table may hold."""
    return line.replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")
