"""Which numbers of a captured graph follow the token count, and how.

    x.sum(1) / x.shape[1]     captured as div(sum, 197) and, of a shorter stream, as div(sum, 127)

The graphs of the model's code at three token counts are laid side by side (see rerun.py). A number that is
the same in all of them does not follow the count, whatever it equals; one that differs is solved for as an
expression of it (see solve.py). What no parameter and no image enters (torch.tensor(n), ones(n) / n) is
computed in each graph, and is one number if it is the same throughout; else it depends on where each token
was.

Most models have no such number, and what their numbers are is plain from their sizes: for them nothing is
captured again.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx, nn

from prunec import compat
from prunec.counting.comparison import POSITION, Comparison
from prunec.counting.rerun import SHARES, Rerun
from prunec.counting.suspicion import Suspicion
from prunec.ir import graph
from prunec.ir.program import Program, Recognised
from prunec.passes.normalise import inline_regions
from prunec.token_axis.counted import Follows, Where, note, note_position


def mark_counts(module: nn.Module | None, captured: Program, dense: Recognised) -> Program | None:
    """The captured program with a note at each number that follows its token count; None if there is none.

    Args:
        module: the model, to run its code again; None where there is only its graph.
        captured: its graph as captured.
        dense: the same, normalised and recognised.
    """
    regions = any(graph.op(node) in compat.INLINABLE_REGIONS for node in captured.graph.nodes)
    if not regions and not Suspicion(captured.module, dense).any():
        return None
    marked = captured.replace(module=graph.copy(captured.module))
    inline_regions(marked.module)
    graph.tidy(marked.module)
    suspicion = Suspicion(marked.module, dense)
    if not suspicion.any():
        return None
    rerun = Rerun(module, captured, dense) if module is not None else None
    comparison = _compare(marked.module, rerun, dense)
    doubt = _Doubt(suspicion, rerun)
    noted = [_note(node, comparison, doubt) for node in marked.graph.nodes]
    return marked if any(noted) else None


@dataclass(frozen=True)
class _Doubt:
    """The note on numbers about which no comparison says anything."""

    suspicion: Suspicion
    rerun: Rerun | None

    def unseen(self, node: fx.Node) -> dict[Where, Follows]:
        """Of a call that has no twin at other counts."""
        reason = "there is only its graph" if self.rerun is None else self.rerun.reason
        words = f"may follow the number of tokens, and the model cannot be run at another one: {reason}"
        return {where: Follows(None, number, words) for where, number in self.suspicion.by_value(node)}

    def unchanged(self, node: fx.Node) -> dict[Where, Follows]:
        """Of a call that has one, where all images were of one size."""
        if self.rerun is None or self.rerun.cut is None or self.rerun.cut.shape is None:
            return {}
        words = "may be computed of the size of the image, and the model takes no other size"
        found = self.suspicion.by_value(node, plain=True)
        return {where: Follows(None, number, words) for where, number in found}


def _compare(module: fx.GraphModule, rerun: Rerun | None, dense: Recognised) -> Comparison:
    """The graph beside those of shorter streams: one, and another if anything differs there."""
    comparison = Comparison(module, dense.anatomy.tokens, dense.anatomy.prefix + dense.anatomy.suffix)
    for share in SHARES if rerun is not None else ():
        found = rerun.run(share)  # type: ignore[union-attr]
        if found is None:
            break
        comparison.add(*found)
        if not comparison.differs():
            break
    return comparison


def _note(node: fx.Node, comparison: Comparison, doubt: _Doubt) -> bool:
    """Note what is known of a node's numbers; whether there was anything to note."""
    found = comparison.of(node)
    if found is POSITION:
        note_position(node)
        return False
    found = doubt.unseen(node) if found is None else {**doubt.unchanged(node), **found}
    for where, how in found.items():
        note(node, where, how)
    return bool(found)
