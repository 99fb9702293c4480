"""Published ways to reduce tokens, by hand in plain PyTorch from their descriptions; nothing of prunec.

One image at a time, boolean masks and loops: to be read, and compared with, not to be fast. Each takes an
unmodified model, one image [3, H, W] and its sites, with counts given rather than computed from a rate. It
returns what the model would return for that image, and for each site the original rows that went on (where
tokens merge: for each token after the site the rows that it stands for). EViT is in tests/references.py.
"""

from tests.methods.dropping import (
    ats,
    ats_sample,
    ats_scores,
    bavit,
    bavit_embedding,
    bavit_scores,
    cropr,
    cropr_scores,
    cropr_scores_folded,
    dynamicvit,
    dynamicvit_predictor,
    representation_shift,
    svit,
    svit_gate,
)
from tests.methods.exiting import dtop, dtop_exits, dtop_grader
from tests.methods.merging import (
    algm,
    algm_matches,
    algm_windows,
    diffrate,
    match,
    merge,
    pomt,
    pomt_scores,
    tome,
)
from tests.methods.model import (
    Attended,
    Layer,
    Parts,
    Segmenter,
    Stream,
    attention,
    paint,
    ranked,
    take_apart,
)
from tests.methods.representing import represented

__all__ = [
    "Attended",
    "Layer",
    "Parts",
    "Segmenter",
    "Stream",
    "algm",
    "algm_matches",
    "algm_windows",
    "ats",
    "ats_sample",
    "ats_scores",
    "attention",
    "bavit",
    "bavit_embedding",
    "bavit_scores",
    "cropr",
    "cropr_scores",
    "cropr_scores_folded",
    "diffrate",
    "dtop",
    "dtop_exits",
    "dtop_grader",
    "dynamicvit",
    "dynamicvit_predictor",
    "match",
    "merge",
    "paint",
    "pomt",
    "pomt_scores",
    "ranked",
    "representation_shift",
    "represented",
    "svit",
    "svit_gate",
    "take_apart",
    "tome",
]
