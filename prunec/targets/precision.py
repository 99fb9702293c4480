"""Programs in half precision, called as they were: inputs and outputs keep the precision that they had.

    images -- to bf16 -- the model's layers, weights in bf16 -- to float32 -- outputs
                           '-- scores: in float32, of what the layers gave

Weights are converted once, where autocast would convert them in each call. Where the model's own code names
float32 (a softmax, a table), that part stays, and what multiplies its result converts it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeVar, get_args

import torch
from torch import Tensor, fx, nn

from prunec import compat, ops
from prunec.errors import TargetError, UsageError, did_you_mean, first_sentence
from prunec.ir import graph
from prunec.ir.interface import name_of
from prunec.ir.program import Planned, Program, with_tensors

Precision = Literal["fp32", "bf16", "fp16", "int8"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
#: In which PyTorch itself runs.
HALVES: Mapping[Precision, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16}
FLOATS: tuple[Precision, ...] = ("fp32", "bf16", "fp16")
#: How far outputs may be from those of the graph itself, relative to the largest.
BOUNDS: Mapping[Precision, float] = {"fp32": 1e-4, "bf16": 5e-2, "fp16": 2e-2, "int8": 1e-1}

AnyProgram = TypeVar("AnyProgram", bound=Program)
#: How conversions are written.
CONVERT = torch.ops.aten._to_copy.default


def read(name: str, where: str = "precision") -> Precision:
    """The precision of that name; UsageError where there is none."""
    for known in PRECISIONS:
        if known == name:
            return known
    raise UsageError(
        f"unknown precision {name!r}{did_you_mean(name, PRECISIONS)}",
        where=where,
        remedy=f"one of {', '.join(PRECISIONS)}",
    )


def check_single(program: Program, precision: Precision) -> None:
    """TargetError where a program that is to be converted is not in float32."""
    others = _kinds(program) - {torch.float32}
    if others:
        found = ", ".join(sorted(map(name_of, others)))
        raise TargetError(
            f"the model's weights are {found} already, and {precision} is made of float32",
            remedy="leave the precision out, or give the model in float32: model.float()",
        )


def _kinds(program: Program) -> set[torch.dtype]:
    return {tensor.dtype for tensor in program.module.parameters() if tensor.is_floating_point()}


def halved(program: AnyProgram, precision: Precision) -> AnyProgram:
    """The program in half precision, on weights of its own; as it is where it is so, and in any other.

    It is run once, on the example, to see where precisions meet.

    Raises:
        TargetError: it is not in float32, or an operator has no kernel in that precision here.
    """
    half = HALVES.get(precision)
    if half is None or half in _kinds(program) <= {half, torch.float32}:
        return program
    check_single(program, precision)
    known: dict[int, Tensor] = {}  # tied weights stay tied

    def converted(tensor: Tensor) -> Tensor:
        if tensor.dtype != torch.float32:
            return tensor
        made = tensor.detach().to(half)
        weight = nn.Parameter(made, requires_grad=False) if isinstance(tensor, nn.Parameter) else made
        return known.setdefault(id(tensor), weight)

    module = with_tensors(program.module, converted)
    for path, tensor in program.module.state_dict(keep_vars=True).items():
        if path.startswith("prunec."):  # thresholds and gates
            owner, _, name = path.rpartition(".")
            part = module.get_submodule(owner)
            (part._parameters if name in part._parameters else part._buffers)[name] = tensor
    single = isinstance(program, Planned) and program.plan.lowering.single
    example = program.interface.with_batch(1) if single else program.interface.example
    device = next((tensor.device for tensor in module.parameters()), torch.device("cpu"))
    meeting = _Meeting(module, half)
    with torch.no_grad():
        meeting.run(*(placed(leaf, device) for leaf in example))
    _write(module, meeting)
    return program.replace(module=module)


def placed(leaf: Any, device: torch.device) -> Any:
    """A leaf of an example on a device; of an artefact's, which has no numbers, zeros."""
    if not isinstance(leaf, Tensor):
        return leaf
    return torch.zeros_like(leaf, device=device) if leaf.is_meta else leaf.to(device)


def is_converted(node: fx.Node) -> bool:
    """Whether a graph takes an input only to convert it, as `halved` writes it."""
    return bool(node.users) and all(user.target is CONVERT for user in node.users)


class _Meeting(fx.Interpreter):
    """Runs a program, and notes which operands each call needs in another precision."""

    def __init__(self, module: fx.GraphModule, half: torch.dtype) -> None:
        super().__init__(module, garbage_collect_values=True)
        self.half = half
        self.kinds: dict[fx.Node, torch.dtype] = {}  # of what is half or single
        self.wanted: dict[fx.Node, torch.dtype] = {}  # of the operands of a call

    def run_node(self, n: fx.Node) -> Any:
        value = self._run(n)
        if n.op == "placeholder" and isinstance(value, Tensor) and value.dtype == torch.float32:
            value = value.to(self.half)
        if isinstance(value, Tensor) and value.dtype in (self.half, torch.float32):
            self.kinds[n] = value.dtype
        return value

    def _run(self, n: fx.Node) -> Any:
        kinds = {self.kinds[each] for each in n.all_input_nodes if each in self.kinds}
        if n.op != "call_function" or self.half not in kinds:
            return super().run_node(n)
        if n.target in ops.SCORES or isinstance(n.target, ops.Learned):
            return self._in(n, torch.float32)
        try:
            return super().run_node(n)
        except RuntimeError as error:
            if len(kinds) < 2:
                raise TargetError(
                    f"operator {compat.op_name(n.target)} does not run in {name_of(self.half)}: "
                    f"{first_sentence(error)}",
                    where=graph.place(n),
                    remedy="choose precision fp32, or another target",
                ) from error
            return self._in(n, self.half)

    def _in(self, n: fx.Node, kind: torch.dtype) -> Any:
        self.wanted[n] = kind
        args, kwargs = self.fetch_args_kwargs_from_env(n)

        def converted(leaf: Any) -> Any:
            ours = isinstance(leaf, Tensor) and leaf.dtype in (self.half, torch.float32)
            return leaf.to(kind) if ours else leaf

        flat, spec = compat.tree_flatten((args, kwargs))
        args, kwargs = compat.tree_unflatten(list(map(converted, flat)), spec)
        return self.call_function(n.target, args, kwargs)


def _write(module: fx.GraphModule, meeting: _Meeting) -> None:
    """Put the conversions into the graph."""
    kinds = meeting.kinds
    for node in list(module.graph.nodes):
        if node.op == "placeholder" and node in kinds:
            with module.graph.inserting_after(node):
                made = module.graph.call_function(CONVERT, (node,), {"dtype": meeting.half})
            node.replace_all_uses_with(made, delete_user_cb=lambda user, own=made: user is not own)
            kinds[made] = meeting.half
    for node in list(module.graph.nodes):
        wanted = torch.float32 if node.op == "output" else meeting.wanted.get(node)
        if wanted is None:
            continue
        for operand in node.all_input_nodes:
            before = operand.meta.get("val")
            as_it_was = node.op == "output" and getattr(before, "dtype", wanted) != wanted
            if kinds.get(operand, wanted) == wanted or as_it_was:
                continue
            with module.graph.inserting_before(node):
                made = module.graph.call_function(CONVERT, (operand,), {"dtype": wanted})
            node.replace_input_with(operand, made)
    module.graph.lint()
    module.recompile()
