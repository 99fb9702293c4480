"""A program for other runtimes: what torch.export writes, in operators of ATen alone.

    score -- select -- gather           argsort -- slice -- sort -- cat -- gather
    prunec's own, functions of Python   what they are made of

What is made of it runs where prunec is not installed. It is called as the model is, with any number of images
(or with as many as are asked for), and its outputs nest as the model's own do, in containers of Python.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from prunec import compat, ops
from prunec.capture.capture import batch_is_symbolic, functional
from prunec.errors import TargetError, first_sentence
from prunec.ir import graph
from prunec.ir.program import Planned, Program, ProgramModule
from prunec.ops.attention import attend_padded
from prunec.targets import device_of
from prunec.targets.precision import is_converted, placed

ELSEWHERE = "choose another target: inductor and eager run every program"


def exported(program: Program, batch: int | None = None) -> ExportedProgram:
    """The program as one of torch.export, which shares its weights.

    It is made once for all targets: that takes as long as compiling.

    Args:
        program: in any mode.
        batch: how many images it is to take; any number when left out. Where the model itself fixes its
            batch, or the mode runs one image at a time, it takes that many.
    """
    weights = [
        (id(tensor), tensor.dtype, tensor.data_ptr()) for tensor in program.module.state_dict().values()
    ]
    known = _MADE.get(program.module)
    if known is None or known[0] != (batch, weights):
        known = _MADE[program.module] = (batch, weights), _export(program, batch)
    return known[1]


#: What was exported last, for as long as its program lives.
_MADE: WeakKeyDictionary[nn.Module, tuple[Any, ExportedProgram]] = WeakKeyDictionary()


def _export(program: Program, batch: int | None) -> ExportedProgram:
    interface = program.interface
    fixed = 1 if isinstance(program, Planned) and program.plan.lowering.single else batch
    example = interface.example if fixed is None else interface.with_batch(fixed)
    args, kwargs = compat.tree_unflatten(_as_the_weights(program, example), interface.in_spec)
    free = interface.batch if fixed is None else None
    try:
        found = functional(compat.export(_Plain(_in_aten(program)), args, kwargs, free))
    except Exception as error:
        raise TargetError(
            f"torch.export does not take this program: {first_sentence(error)}", remedy=ELSEWHERE
        ) from error
    if free is not None and not batch_is_symbolic(found, free, args, kwargs):
        raise TargetError(
            f"torch.export fixes the batch of this program at {free}",
            where=compat.specialised_by(found),
            remedy=f"give the batch that it is to have; or {ELSEWHERE}",
        )
    _check_operators(found)
    compat.forget_sources(found)
    return found


def same_counts(program: Program, engine: str) -> None:
    """TargetError where images keep different numbers of tokens, which an engine does not run."""
    if isinstance(program, Planned) and program.plan.rules.ragged:
        raise TargetError(
            f"{engine} does not run programs in which images keep different numbers of tokens",
            where=f"policy {program.plan.policy}, mode {program.plan.lowering}",
            remedy="choose target onnx, aoti or inductor, or a policy that keeps as many of every image",
        )


def _as_the_weights(program: Program, example: Sequence[Any]) -> list[Any]:
    """The example on the device of the weights, and in their precision where these were converted.

    What the graph converts itself stays as it is.
    """
    kinds = {weight.dtype for weight in program.module.parameters() if weight.is_floating_point()}
    device = device_of(program)

    def prepared(leaf: Any, node: fx.Node) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        as_weights = leaf.is_floating_point() and len(kinds) == 1 and not is_converted(node)
        return placed(leaf, device).to(next(iter(kinds)) if as_weights else leaf.dtype)

    nodes = [node for node in program.graph.nodes if node.op == "placeholder"]
    return [prepared(leaf, node) for leaf, node in zip(example, nodes, strict=True)]


def _in_aten(program: Program) -> Program:
    """The program without the one operator of prunec's own."""
    module = graph.copy(program.module)
    for node in module.graph.nodes:
        if node.target is ops.attend:
            node.target = attend_padded
    module.recompile()
    return program.replace(module=module)


class _Plain(ProgramModule):
    """A program whose outputs nest in containers of Python."""

    def call(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """The model's forward."""
        flat, _ = compat.tree_flatten((args, dict(kwargs)))
        return _plain(self.program.interface.unflatten(self.program.module(*flat)))


def _plain(value: Any) -> Any:
    """Mappings and sequences of whatever library as Python's own; the leaves in the same order."""
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return tuple(map(_plain, value))
    leaves, _ = compat.tree_flatten(value)
    if len(leaves) == 1 and leaves[0] is value:
        return value
    return tuple(leaves)


def _check_operators(found: ExportedProgram) -> None:
    """TargetError where there is an operator that PyTorch alone does not know."""
    for node in compat.every_node(found):
        library = compat.library_of(node.target)
        if library not in (None, "aten"):
            raise TargetError(
                f"operator {compat.op_name(node.target)} is of {library}, and no part of PyTorch",
                where=graph.place(node),
                remedy=ELSEWHERE,
            )
