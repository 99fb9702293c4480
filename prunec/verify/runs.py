"""One run of a program, whose selections are recorded and checked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from prunec import compat
from prunec.errors import REPORT, VerificationError
from prunec.ir import graph
from prunec.ir.interface import images_in
from prunec.ir.program import Planned, Recognised
from prunec.structure import Anatomy
from prunec.verify import invariants
from prunec.verify.choices import Choice, choices, sites_of
from prunec.verify.scattering import Scattering

#: Operators that PyTorch tags as random and that are not, in eval mode.
_QUIET = ("scaled_dot_product_attention", "dropout", "dropout_", "feature_dropout", "rrelu")


@dataclass(frozen=True)
class Run:
    """A program's outputs at its own token counts, and what each site chose for each image."""

    outputs: Sequence[Any]
    chosen: list[list[Choice]]

    @property
    def idle(self) -> bool:
        """Whether there is a site at which no image leaves anything out."""
        return any(not any(bool(choice.leaving.any()) for choice in images) for images in self.chosen)


class _Recorder(Scattering):
    """Runs a program with its own selections, or with random ones."""

    def __init__(self, program: Planned, batch: int, wanted: set[str], *, scattered: bool) -> None:
        super().__init__(program, range(batch))
        self.wanted, self.scattered = wanted, scattered
        self.values: dict[str, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        """The node's value, recorded if it is wanted."""
        value = super().run_node(n)
        if n.name in self.wanted:
            self.values[n.name] = value
        return value

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        """The call as it is, but for selections if they are random."""
        if self.scattered:
            return super().call_function(target, args, kwargs)
        return fx.Interpreter.call_function(self, target, args, kwargs)


def run(program: Planned, flat: Sequence[Any], *, scattered: bool = False) -> Run:
    """One run; VerificationError where it fails, or a selection breaks an invariant.

    If `scattered`, sites whose counts may differ keep a random share of each image's tokens.
    """
    sites = sites_of(program)
    wanted = {node.name for site in sites for node in site.nodes}
    recorder = _Recorder(program, images_in(flat), wanted, scattered=scattered)
    outputs = unbroken(recorder.run, *flat)
    chosen = choices(program, sites, recorder.values)
    ends = program.anatomy.prefix, program.anatomy.suffix
    for site, images in zip(program.plan.sites, chosen, strict=True):
        invariants.check(site, program.plan, images, ends, by_score=not scattered)
    return Run(outputs, chosen)


def unbroken(call: Callable[..., Any], *flat: Any) -> Any:
    """The outputs of a rewritten graph; VerificationError where it fails."""
    try:
        return call(*flat)
    except (RuntimeError, IndexError) as error:
        raise VerificationError(
            f"the rewritten model fails at its own counts: {str(error).splitlines()[0]}", remedy=REPORT
        ) from error


def runs_on(dense: Recognised, flat: Sequence[Any]) -> bool:
    """Whether the dense graph runs on these inputs: on one image it may not, if its code joins several."""
    try:
        dense.module(*flat)
    except (RuntimeError, IndexError, ZeroDivisionError):
        return False
    return True


def random_call(dense: Recognised) -> fx.Node | None:
    """A call that draws random numbers: an image alone gets others than in a batch."""
    calls = (node for node in dense.graph.nodes if compat.is_random(node.target))
    return next((node for node in calls if graph.op(node) not in _QUIET), None)


def check_pixel_free(dense: Recognised, anatomy: Anatomy, flat: Sequence[Any]) -> None:
    """Check that rows at both ends that do not depend on pixels, such as a class token, are protected."""
    names = [node.name for node in dense.graph.nodes if node.op == "placeholder"]
    place, generator = names.index(anatomy.pixels), torch.Generator().manual_seed(0)
    blank = [torch.zeros_like(leaf) if isinstance(leaf, Tensor) else leaf for leaf in flat]
    noise = torch.rand(flat[place].shape, generator=generator).to(flat[place])
    given = ([*blank[:place], pixels, *blank[place + 1 :]] for pixels in (flat[place], noise))
    before, after = (_first_state(dense, anatomy.states[0], inputs) for inputs in given)
    same = (before == after).movedim(anatomy.token_dim, 0).flatten(1).all(dim=1).tolist()
    if all(same) or len(same) != anatomy.tokens:
        return
    front, back = same.index(False), same[::-1].index(False)
    if front > anatomy.prefix or back > anatomy.suffix:
        raise VerificationError(
            f"no pixel reaches the first {front} and the last {back} rows (class tokens, queries), and "
            f"{anatomy.prefix} and {anatomy.suffix} are protected",
            where=anatomy.states[0],
            remedy=REPORT,
        )


def _first_state(dense: Recognised, name: str, flat: Sequence[Any]) -> Tensor:
    interpreter = fx.Interpreter(dense.module, garbage_collect_values=False)
    interpreter.args_iter = iter(flat)
    for node in dense.graph.nodes:
        interpreter.env[node] = interpreter.run_node(node)
        if node.name == name:
            break
    found: Tensor = interpreter.env[node]
    return found


def check_outputs(found: Any, expected: Any) -> None:
    """Check that outputs at own counts have the original's shapes and dtypes, and are finite."""
    for place, (made, other) in enumerate(zip(found, expected, strict=True)):
        if isinstance(other, Tensor) and (made.shape != other.shape or made.dtype != other.dtype):
            raise VerificationError(
                f"output {place} of the pruned model is {made.dtype}{list(made.shape)}, the original's is "
                f"{other.dtype}{list(other.shape)}",
                remedy=REPORT,
            )
        if isinstance(other, Tensor) and bool(other.isfinite().all()) and not bool(made.isfinite().all()):
            raise VerificationError(
                f"output {place} of the pruned model holds values that are not finite",
                remedy=REPORT,
            )
