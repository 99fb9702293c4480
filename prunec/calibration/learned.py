"""Learned scorers, fitted to how much each token matters (or graders, to the model's own classes).

dense model, images --> state of each site, and how much each token's block matters for the output
                        '-- fit the site's scorer to it (regression)
"""

from __future__ import annotations

import torch
from torch import Tensor

from prunec import ops
from prunec.calibration.importance import Importance, span_of
from prunec.calibration.inputs import batch_of, call_on
from prunec.dataflow.heads import ClassScores, class_scores
from prunec.errors import CalibrationError
from prunec.ir import graph
from prunec.ir.program import Planned, Recognised
from prunec.scorers.fitting import fit, fit_grader, logs, on_one_scale

#: Parameters of the scorers by their paths in the program, and how well each predicts.
Scorers = tuple[dict[str, Tensor], tuple[float, ...]]


def fit_scorers(dense: Recognised, pruned: Planned, images: Tensor) -> Scorers:
    """The scorers of a program, each fitted to the dense model's states where it stands."""
    scorers = [node.target for node in pruned.graph.nodes if isinstance(node.target, ops.Learned)]
    if not (learned := [scorer for scorer in scorers if scorer.trainable]):
        return {}, ()
    rules = pruned.plan.rules
    sites, novel = [pruned.plan.sites[scorer.site] for scorer in learned], rules.scorer.kind == "novelty"
    spans = [span_of(pruned.anatomy, site, one_block=rules.reactivate or not novel) for site in sites]
    seen = Importance(dense, spans, pruned.anatomy, of_distance=novel).run(images)
    grades = _grades(dense, images) if pruned.plan.fate == "exit" else None
    found: dict[str, Tensor] = {}
    fits = []
    for scorer, (states, importance) in zip(learned, seen, strict=True):
        path = f"prunec.site_{scorer.site}.gate"
        gate = scorer.alone(ops.tensors_of(pruned.module.get_submodule(path)))
        given = (images if scorer.pixels else states).float()
        if grades is None:
            fits.append(fit(gate, given, logs(importance) if novel else on_one_scale(importance)))
        else:
            fits.append(fit_grader(gate, given, grades))
        found |= {f"{path}.{name}": value.detach() for name, value in ops.tensors_of(gate).items()}
    return found, tuple(fits)


def _grades(dense: Recognised, images: Tensor) -> Tensor:
    """What the model itself says of each patch: class scores [n, N, K]."""
    scores = class_scores(dense)
    if not isinstance(scores, ClassScores):
        raise CalibrationError(
            f"graders are fitted to class scores of each token, and this model gives none: {scores.reason}",
            where=scores.place,
            remedy="choose a segmenter with a head for each token, or a policy that fits this task",
        )
    prefix, end = dense.anatomy.prefix, dense.anatomy.tokens - dense.anatomy.suffix
    parts = []
    for batch in images.split(batch_of(dense)):
        recorder = graph.Recorder(dense.module, {scores.node})
        with torch.no_grad():
            recorder.run(*call_on(dense, batch))
        found = recorder.values[scores.node].movedim(scores.axis, -1).flatten(1, -2)  # [B, N or T, K]
        parts.append(found[:, prefix:end] if scores.all_tokens else found)
    return torch.cat(parts).float()
