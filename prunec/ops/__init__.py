"""The dialect: the few token operations that prunec puts into a graph.

They are plain differentiable PyTorch functions, used as `call_function` targets: they run as they are (the
reference semantics), inline under torch.compile and torch.export, and print readably in a diff.

    x ---------------------- gather/fuse/pool -- x'      index: [B, n], rows of x in ascending order
     '-- score -- select -- index --'  '-- take (tables), compose (origins), scatter or share (way back)

A selection whose count differs from image to image is padded to the longest; `valid` is its padding mask:

    score -- threshold_mask -- pack -- index    [B, n], each image's kept rows first, then dropped ones
                            '-- valid_mask -- valid   [B, n], true for kept rows: read by attention, scatter

One file for each kind: scores, selections, streams, masks, representing (who stands for whom), canvas (early
exit), packing (tokens of all images as rows of one), attention (of packed rows), training (masks with
gradients), folded (attention without keys and values), counting (numbers that follow how many tokens there
are).

A new operation is a function and its name in `__all__`, both in the file of its kind; nothing else lists
them.
"""

from collections.abc import Callable
from typing import Any

from prunec.ops import (
    attention,
    canvas,
    counting,
    folded,
    masks,
    packing,
    representing,
    scores,
    selections,
    streams,
    training,
)
from prunec.ops.attention import *
from prunec.ops.canvas import *
from prunec.ops.counting import *
from prunec.ops.folded import *
from prunec.ops.learned import Learned as Learned
from prunec.ops.learned import tensors_of as tensors_of
from prunec.ops.masks import *
from prunec.ops.packing import *
from prunec.ops.packing import TOO_MANY as TOO_MANY
from prunec.ops.representing import *
from prunec.ops.scores import *
from prunec.ops.scores import SCORES as SCORES
from prunec.ops.selections import *
from prunec.ops.selections import FIXED as FIXED
from prunec.ops.selections import MASKS as MASKS
from prunec.ops.selections import RAGGED as RAGGED
from prunec.ops.selections import SELECTIONS as SELECTIONS
from prunec.ops.streams import *
from prunec.ops.training import *

_KINDS = (
    scores, selections, masks, streams, representing, canvas, packing, attention, training, folded, counting,
)  # fmt: skip

#: Every operation, for the printer and for the checks between passes.
DIALECT: tuple[Callable[..., Any], ...] = tuple(
    getattr(kind, name) for kind in _KINDS for name in kind.__all__
)


def is_ours(target: Any) -> bool:
    """Whether a call is of the dialect."""
    return target in DIALECT or isinstance(target, Learned)
