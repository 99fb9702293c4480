"""The program that passes hand on: a graph, what is known of it, and the record of how it came about.

    Program          a captured graph
    `-- Recognised   with its anatomy: token stream, blocks, protected tokens
        `-- Planned  with the policy made concrete for it: sites and their counts

What a function needs to know of a program is the type that it takes. A program is immutable: a pass takes
one and returns a new one; `Program.stages` keeps a readable line (and the graph as text) for each, so that
any two stages can be laid side by side.
"""

from __future__ import annotations

import copy
import dataclasses
import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

import torch
from torch import Tensor, fx, nn
from typing_extensions import Self

from prunec import compat, ops
from prunec.errors import UsageError
from prunec.ir import graph
from prunec.ir.attributes import Attributes, Forward, signed
from prunec.ir.interface import Interface, name_of
from prunec.ir.weights import named_linear, value_at
from prunec.policy.site_plan import Plan
from prunec.structure import Anatomy

_LOG = logging.getLogger(__name__)


class Counts(dict[str, int]):
    """How often a pass did each thing, and what else there is to say about it."""

    def __init__(self, counts: Mapping[str, int], notes: tuple[str, ...] = ()) -> None:
        super().__init__(counts)
        self.notes = notes


@dataclass(frozen=True)
class Stage:
    """The readable record of one step."""

    name: str
    seconds: float
    counts: Mapping[str, int]
    notes: tuple[str, ...] = ()
    graph: str = field(default="", repr=False)  # as it was then, a line for each value

    def as_dict(self) -> dict[str, Any]:
        """Plain data, without the graph."""
        return {
            "name": self.name,
            "seconds": self.seconds,
            "counts": dict(self.counts),
            "notes": self.notes,
        }

    def __str__(self) -> str:
        counts = ", ".join(f"{key} {value}" for key, value in self.counts.items())
        return f"{self.name:<14} {self.seconds:6.2f} s  {counts}"


@dataclass(frozen=True)
class Program:
    """A captured graph and its history."""

    module: fx.GraphModule  # flat inputs, flat outputs
    interface: Interface
    stages: tuple[Stage, ...] = ()

    @property
    def graph(self) -> fx.Graph:
        """The FX graph."""
        return self.module.graph

    def replace(self, **changes: Any) -> Self:
        """A program with some fields changed."""
        return dataclasses.replace(self, **changes)

    def recorded(
        self,
        name: str,
        seconds: float,
        counts: Mapping[str, int],
        notes: tuple[str, ...] = (),
        *,
        rewritten: bool = False,
    ) -> Self:
        """The same program, with a record of the step that made it; `rewritten`: in its graph."""
        text = graph.text(self.graph) if rewritten or not self.stages else self.stages[-1].graph
        stage = Stage(name, seconds, dict(counts), notes, text)
        _LOG.info("%s", "\n".join([str(stage), *notes]))
        return self.replace(stages=(*self.stages, stage))

    def with_values(self, values: Mapping[str, Tensor]) -> Self:
        """The same program with other values of these parameters and buffers; all others are shared."""
        if not values:
            return self
        module = graph.copy(self.module)
        for path, value in values.items():
            owner, _, name = path.rpartition(".")
            part = module.get_submodule(owner)
            with torch.no_grad():
                if name in part._parameters:
                    old = part.get_parameter(name)
                    part._parameters[name] = nn.Parameter(
                        torch.empty_like(old).copy_(value), old.requires_grad
                    )
                else:
                    part._buffers[name] = torch.empty_like(part.get_buffer(name)).copy_(value)
        return self.replace(module=module)

    def recognised(self, anatomy: Anatomy) -> Recognised:
        """The same program, with its anatomy."""
        return Recognised(self.module, self.interface, self.stages, anatomy=anatomy)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        module = with_tensors(self.module, lambda tensor: copy.deepcopy(tensor, memo))
        memo[id(self.module)] = module
        for table in _TABLES:
            memo[id(getattr(self.module, table))] = getattr(module, table)
        return self.replace(module=module)

    def __reduce__(self) -> NoReturn:
        raise UsageError(
            "a transformed model cannot be pickled: its graph calls PyTorch's operators themselves",
            remedy="save what prunec.optimize returns to a folder and read it with prunec.load, or save the "
            "weights, torch.save(module.state_dict(), file), and transform the model again",
        )


@dataclass(frozen=True, kw_only=True)
class Recognised(Program):
    """A normalised graph with its anatomy."""

    anatomy: Anatomy

    def planned(self, plan: Plan) -> Planned:
        """The same program, with a plan for it."""
        return Planned(self.module, self.interface, self.stages, anatomy=self.anatomy, plan=plan)


@dataclass(frozen=True, kw_only=True)
class Planned(Recognised):
    """A recognised graph with a plan, or what passes have made of it."""

    plan: Plan


def with_tensors(module: fx.GraphModule, change: Callable[[Tensor], Tensor]) -> fx.GraphModule:
    """A copy of a graph module with every parameter and buffer changed (in place in the tables, by name)."""
    made = graph.copy(module)
    for part in made.modules():
        tables: tuple[dict[str, Any], ...] = (part._parameters, part._buffers)
        for table in tables:
            table.update({name: change(tensor) for name, tensor in table.items() if tensor is not None})
    return made


def within_max_tokens(program: Program, call: Callable[[], Any]) -> Any:
    """The call's result; a batch with more packed rows than are allowed is an error that says what to do."""
    most = program.plan.lowering.max_tokens if isinstance(program, Planned) else None
    if most is None:
        return call()
    try:
        return call()
    except RuntimeError as error:
        if ops.TOO_MANY not in str(error) and "Runtime assertion failed" not in str(error):
            raise
        raise UsageError(
            f"the images of this batch keep more than {most} tokens together, the most that is allowed",
            remedy="give fewer images at a time, allow more (Packed(max_tokens=...), --max-tokens), or use "
            "another mode: padded, masked",
        ) from error


def _check_single(program: Program, flat: Sequence[Any]) -> None:
    """One image at a time, where that is what the program was made for."""
    if not isinstance(program, Planned) or not program.plan.lowering.single:
        return
    for leaf, example in zip(flat, program.interface.example, strict=True):
        batched = (
            isinstance(example, Tensor) and example.dim() and example.shape[0] == program.interface.batch
        )
        if batched and leaf.shape[0] != 1:
            raise UsageError(
                f"in mode static, policy {program.plan.policy!r} runs one image at a time, and these are "
                f"{leaf.shape[0]}: each keeps as many tokens as it needs",
                remedy="transform the model again in a mode that can: padded, packed, masked",
            )


#: What makes a module's tree of tensors; shared by a program's graph and the module that it is.
_TABLES = ("_modules", "_parameters", "_buffers", "_non_persistent_buffers_set")


#: What the flag does not do.
TRAINING = (
    "the model was captured in eval mode, and training mode does not change that: it has no dropout and no "
    "stochastic depth, and batch norm keeps its statistics; gradients flow as usual"
)


class ProgramModule(nn.Module):
    """A program as an ordinary module: the original's signature, outputs and parameter names.

    What the original says of itself (its configuration, its device) it says too.

    The parameters are the original model's own, so a change of them (training, `.to(...)`) is a change of
    both; `copy.deepcopy` gives a module with parameters of its own.

    It computes what the model does in eval mode, and starts in it. `.train()` changes nothing but the flag,
    and says so once: gradients flow either way, dropout and stochastic depth stay off, and batch norm keeps
    its statistics.
    """

    program: Program
    forward = Forward()

    def __init__(self, program: Program, original: nn.Module | None = None) -> None:
        super().__init__()
        # The graph module is kept out of the module tree, and its tables are shared, so that state_dict() has
        # the original's names and .to() moves what the graph reads.
        named_linear(program.module)
        self.__dict__["program"] = program
        self.__dict__["_signed"] = signed(program.interface.signature)
        self.__dict__["_attributes"] = None if original is None else Attributes(original)
        for table in _TABLES:
            setattr(self, table, getattr(program.module, table))
        example = program.interface.example
        self.__dict__["_input_weights"] = [_weight_like(leaf, program) for leaf in example]
        self.__dict__["_input_conversions"] = [_conversion_to(leaf, program) for leaf in example]
        self.__dict__["_said"] = False  # what training mode does not do
        self.eval()

    def call(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """The original model's forward, with fewer tokens."""
        program, run, flat = self.program, self._runs(), self.flat(args, kwargs)
        return program.interface.unflatten(within_max_tokens(program, lambda: run(*flat)))

    def _runs(self) -> Callable[..., Any]:
        """What runs the flat inputs."""
        return self.program.module

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            known = self.__dict__.get("_attributes")
            if known is None or name.startswith("_"):
                raise
            return known.read(name, self)

    def train(self, mode: bool = True) -> ProgramModule:
        """Set the flag; the first time for training, say what that does not do."""
        if mode and not self.__dict__["_said"]:
            self.__dict__["_said"] = True
            warnings.warn(TRAINING, stacklevel=2)
        super().train(mode)
        return self

    def flat(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Any]:
        """The flat inputs of one call, checked against what the weights are now."""
        interface = self.program.interface
        weights = [None if path is None else value_at(self, path) for path in self.__dict__["_input_weights"]]
        for example, weight, place in zip(
            interface.example, weights, self.__dict__["_input_conversions"], strict=True
        ):
            if weight is not None and place is not None and weight.dtype != example.dtype:
                raise UsageError(
                    f"the weights are {name_of(weight.dtype)} now, and the graph converts to "
                    f"{name_of(example.dtype)}, in which it was captured",
                    where=place,
                    remedy=f"convert the model first: prunec.transform(model.to({weight.dtype}), ...)",
                )
        flat = interface.flatten(args, kwargs, weights)
        _check_single(self.program, flat)
        return flat

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ProgramModule:
        """What .to(), .cuda(), .half() and the like do; tensors that the graph makes follow the weights."""
        before = _device(self)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        after = _device(self)
        if before != after:
            _retarget(self.program.module, before, after)
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> ProgramModule:
        made: ProgramModule = type(self).__new__(type(self))
        memo[id(self)] = made
        memo[id(self.program)] = copy.deepcopy(self.program, memo)  # before its tables
        made.__dict__.update(copy.deepcopy(self.__dict__, memo))
        named_linear(made.program.module)
        return made

    def extra_repr(self) -> str:
        """The plan, in one line."""
        if not isinstance(self.program, Planned):
            return "dense"
        plan = self.program.plan
        return f"policy={plan.policy}, {'; '.join(map(str, plan.sites))}"


def _weight_like(leaf: Any, program: Program) -> str | None:
    """The first weight that the graph reads and that has the precision of an input."""
    paths = [str(node.target) for node in program.graph.nodes if node.op == "get_attr"]
    dtype = leaf.dtype if isinstance(leaf, Tensor) else None
    return next(
        (path for path in paths if getattr(value_at(program.module, path), "dtype", None) is dtype), None
    )


def _conversion_to(leaf: Any, program: Program) -> str | None:
    """The first place in the graph that names the precision of an input."""
    for node in program.graph.nodes:
        arguments = compat.tree_leaves((node.args, dict(node.kwargs)))
        if isinstance(leaf, Tensor) and any(argument is leaf.dtype for argument in arguments):
            return graph.place(node)
    return None


def _device(module: nn.Module) -> torch.device | None:
    return next((parameter.device for parameter in module.parameters()), None)


def _retarget(module: fx.GraphModule, before: torch.device | None, after: torch.device | None) -> None:
    """Let whatever the graph makes itself (row numbers, zeros) be made on the device that it moved to."""
    if before is None:
        return

    def moved(leaf: Any) -> Any:
        return after if isinstance(leaf, torch.device) and leaf.type == before.type else leaf

    for node in module.graph.nodes:
        node.args = fx.node.map_aggregate(node.args, moved)
        node.kwargs = fx.node.map_aggregate(node.kwargs, moved)
    module.recompile()
