"""The program that passes hand on: a graph, what is known of it, and the record of how it came about.

A Program is immutable. A pass takes one and returns a new one; `Program.stages` keeps a readable line
(and the graph as text) for each, so that any two stages can be laid side by side.
"""

from __future__ import annotations

import copy
import dataclasses
import reprlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NoReturn

import torch
from torch import Tensor, fx, nn

from prunec import compat, graph
from prunec.anatomy import Anatomy
from prunec.errors import UsageError
from prunec.lowering import Lowering
from prunec.rules import Rules, Step

Where = Literal["before_block", "after_attention"]


@dataclass(frozen=True)
class Interface:
    """How a call of the user's model maps to the flat inputs and outputs of its graph."""

    parameters: tuple[str, ...]  # forward()'s own parameters, in order
    defaults: Mapping[str, Any]  # those that may be left out
    positional: tuple[str, ...]  # the ones captured as positional arguments
    keyword: tuple[str, ...]  # the ones captured as keywords
    in_spec: compat.TreeSpec
    out_spec: compat.TreeSpec
    example: tuple[Any, ...]  # flat example inputs, batch first
    batch: int | None  # the example's batch, None when the batch is fixed

    def flatten(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], weights: Sequence[Tensor | None] | None = None
    ) -> list[Any]:
        """The flat graph inputs of one call, however its arguments were spelled.

        Args:
            args: positional arguments of the model's forward.
            kwargs: keyword arguments.
            weights: for each flat input a weight that had its precision at capture. Its precision and its
                device now are those that are expected; the example's precision where there is none.
        """
        weights = [None] * len(self.example) if weights is None else weights
        self._check_names(args, kwargs, weights)
        given = {**dict(zip(self.parameters, args, strict=False)), **kwargs}
        call = (tuple(given[name] for name in self.positional), {name: given[name] for name in self.keyword})
        flat, spec = compat.tree_flatten(call)
        if spec != self.in_spec:
            raise UsageError(
                "the inputs nest differently from the example", remedy=f"expected {self.call(weights)}"
            )
        leaves = zip(self.leaf_names(), flat, self.example, weights, strict=True)
        for name, value, example, weight in leaves:
            self._check_leaf(name, value, example, weight)
        return flat

    def _check_names(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], weights: Sequence[Tensor | None]
    ) -> None:
        """No input is missing, given twice, or one that the graph has no place for."""

        def wrong(what: str, more: str = "") -> UsageError:
            return UsageError(what, remedy=f"call the model with {self.call(weights)}{more}")

        if len(args) > len(self.parameters):
            raise wrong(f"forward takes {len(self.parameters)} arguments, got {len(args)}")
        given = dict(zip(self.parameters, args, strict=False))
        captured = (*self.positional, *self.keyword)
        for name, value in (*given.items(), *kwargs.items()):
            if name in given and name in kwargs:
                raise wrong(f"input {name!r} is given twice, by position and by name")
            if name not in captured and value is not self.defaults.get(name):
                raise wrong(
                    f"input {name!r} was not given at capture, so the graph has no place for it",
                    ", or transform the model again with an example that holds this input",
                )
        for name in captured:
            if name not in given and name not in kwargs:
                raise wrong(f"missing input {name!r}")

    def unflatten(self, outputs: Any) -> Any:
        """The model's own output structure (a tensor, a tuple, a ModelOutput) from the flat tuple."""
        return compat.tree_unflatten(list(outputs), self.out_spec)

    def leaf_names(self) -> tuple[str, ...]:
        """A name for each flat input; nested inputs repeat their parameter's name."""
        names: list[str] = []
        for name, child in zip((*self.positional, *self.keyword), _children(self.in_spec), strict=True):
            names.extend([name] * child.num_leaves)
        return tuple(names)

    def call(self, weights: Sequence[Tensor | None] | None = None) -> str:
        """The expected call in words, such as `pixel_values=float32[B, 3, 224, 224]`."""
        weights = [None] * len(self.example) if weights is None else weights
        leaves = zip(self.leaf_names(), self.example, weights, strict=True)
        return ", ".join(
            f"{name}={self.describe(leaf, _precision(leaf, weight))}" for name, leaf, weight in leaves
        )

    def describe(self, leaf: Any, precision: torch.dtype | None = None) -> str:
        """`float32[B, 3, 224, 224]` for a tensor (or the other precision), its repr for anything else."""
        if not isinstance(leaf, Tensor):
            return reprlib.repr(leaf)
        sizes = [str(size) for size in leaf.shape]
        if sizes and self.batch is not None and leaf.shape[0] == self.batch:
            sizes[0] = "B"
        return f"{_name(precision or leaf.dtype)}[{', '.join(sizes)}]"

    def _check_leaf(self, name: str, value: Any, example: Any, weight: Tensor | None) -> None:
        if isinstance(example, Tensor):
            self._check_tensor(name, value, example, weight)
        elif isinstance(value, Tensor) or value != example:
            raise UsageError(
                f"input {name!r} is {self.describe(value)}, the model was captured with {example!r}",
                remedy="transform the model again with an example that holds this value",
            )

    def _check_tensor(self, name: str, value: Any, example: Tensor, weight: Tensor | None) -> None:
        precision = _precision(example, weight)
        free = self.batch is not None and example.dim() > 0 and example.shape[0] == self.batch
        start = 1 if free else 0
        fits = isinstance(value, Tensor) and value.dim() == example.dim()
        if not fits or value.shape[start:] != example.shape[start:]:
            remedy = "give inputs of that shape, or transform the model again with an example of yours"
        elif weight is not None and value.dim() > 0 and value.device != weight.device:
            raise UsageError(
                f"input {name!r} is on {value.device}, expected {self.describe(example, precision)} "
                f"on {weight.device}",
                remedy=f"move it to where the weights are: {name}.to({str(weight.device)!r})",
            )
        elif value.dtype != precision and not _is_cast(value, example):
            remedy = f"prepare it as for the model itself, or convert it: {name}.to({precision})"
        else:
            return
        raise UsageError(
            f"input {name!r} is {self.describe(value)}, expected {self.describe(example, precision)}",
            remedy=remedy,
        )


def _is_cast(value: Tensor, example: Tensor) -> bool:
    """Whether autocast gives an input the precision that each operator wants."""
    kind = value.device.type
    both = value.is_floating_point() and example.is_floating_point()
    return both and torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)


def _precision(leaf: Any, weight: Tensor | None) -> torch.dtype | None:
    """What an input must have: the precision that its weight has now, or the example's own."""
    if not isinstance(leaf, Tensor):
        return None
    return leaf.dtype if weight is None or not leaf.is_floating_point() else weight.dtype


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _children(spec: compat.TreeSpec) -> list[compat.TreeSpec]:
    arguments, keywords = spec.children()
    return [*arguments.children(), *keywords.children()]


@dataclass(frozen=True)
class Site:
    """A place where tokens are scored and selected, with its counts."""

    block: int
    where: Where
    tokens: int  # stream length that enters, protected tokens counted in
    keep: int  # patch tokens that survive
    leaves: int  # stream length that goes on: protected + keep (+ 1 fused token)
    ragged: bool = False  # each image keeps as many as it needs; the counts are the mean
    step: int = 0  # which step of the policy
    known: bool = True  # whether the mean is; else the counts are what it may be at most

    def __str__(self) -> str:
        name = "before" if self.where == "before_block" else "after attention of"
        mean = (" on average" if self.known else " at most") if self.ragged else ""
        return f"{name} block {self.block}: {self.tokens} -> {self.leaves} tokens{mean}"


@dataclass(frozen=True)
class Plan:
    """A policy made concrete for one model: pure data, printable, editable, replayable."""

    rules: Rules
    sites: tuple[Site, ...]
    notes: tuple[str, ...] = ()
    rejoin: int | None = None  # the block before which all tokens come back
    lowering: Lowering = field(default_factory=Lowering)

    @property
    def policy(self) -> str:
        """The policy's name."""
        return self.rules.name

    @property
    def fate(self) -> str:
        """What becomes of tokens that do not stay; the same for all steps."""
        return self.rules.fate

    def step(self, site: Site) -> Step:
        """The policy's step that a site belongs to."""
        return self.rules.steps[site.step]

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for reports."""
        sites = [dataclasses.asdict(site) for site in self.sites]
        rules = self.rules.model_dump(mode="json", exclude_none=True)
        return {
            "policy": rules,
            "sites": sites,
            "notes": list(self.notes),
            "rejoin": self.rejoin,
            "lowering": self.lowering.as_dict(),
        }


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

    def __str__(self) -> str:
        counts = ", ".join(f"{key} {value}" for key, value in self.counts.items())
        return f"{self.name:<14} {self.seconds:6.2f} s  {counts}"


@dataclass(frozen=True)
class Program:
    """A captured graph with its anatomy, its plan and its history."""

    module: fx.GraphModule  # flat inputs, flat outputs
    interface: Interface
    anatomy: Anatomy | None = None
    plan: Plan | None = None
    stages: tuple[Stage, ...] = ()

    @property
    def graph(self) -> fx.Graph:
        """The FX graph."""
        return self.module.graph

    def replace(self, **changes: Any) -> Program:
        """A program with some fields changed."""
        return dataclasses.replace(self, **changes)

    def __deepcopy__(self, memo: dict[int, Any]) -> Program:
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


def with_tensors(module: fx.GraphModule, change: Callable[[Tensor], Tensor]) -> fx.GraphModule:
    """A copy of a graph module with every parameter and buffer changed (in place in the tables, by name)."""
    made = graph.copy(module)
    for part in made.modules():
        tables: tuple[dict[str, Any], ...] = (part._parameters, part._buffers)
        for table in tables:
            table.update({name: change(tensor) for name, tensor in table.items() if tensor is not None})
    return made


#: What makes a module's tree of tensors; shared by a program's graph and the module that it is.
_TABLES = ("_modules", "_parameters", "_buffers", "_non_persistent_buffers_set")


class ProgramModule(nn.Module):
    """A program as an ordinary module: the original's signature, outputs and parameter names.

    The parameters are the original model's own, so a change of them (training, `.to(...)`) is a change of
    both; `copy.deepcopy` gives a module with parameters of its own.

    It computes what the model does in eval mode, and starts in it. `.train()` changes nothing but the flag:
    gradients flow either way, dropout and stochastic depth stay off, and batch norm keeps its statistics.
    """

    def __init__(self, program: Program) -> None:
        super().__init__()
        # The graph module is kept out of the module tree, and its tables are shared, so that state_dict() has
        # the original's names and .to() moves what the graph reads.
        self.__dict__["program"] = program
        for table in _TABLES:
            setattr(self, table, getattr(program.module, table))
        example = program.interface.example
        self.__dict__["_input_weights"] = [_weight_like(leaf, program) for leaf in example]
        self.__dict__["_input_conversions"] = [_conversion_to(leaf, program) for leaf in example]
        self.eval()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The original model's forward, with fewer tokens."""
        program: Program = self.__dict__["program"]
        return program.interface.unflatten(program.module(*self.flat(args, kwargs)))

    def flat(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Any]:
        """The flat inputs of one call, checked against what the weights are now."""
        interface: Interface = self.__dict__["program"].interface
        weights = [None if path is None else _at(self, path) for path in self.__dict__["_input_weights"]]
        for example, weight, place in zip(
            interface.example, weights, self.__dict__["_input_conversions"], strict=True
        ):
            if weight is not None and place is not None and weight.dtype != example.dtype:
                raise UsageError(
                    f"the weights are {_name(weight.dtype)} now, and the graph converts to "
                    f"{_name(example.dtype)}, in which it was captured",
                    where=place,
                    remedy=f"convert the model first: prunec.transform(model.to({weight.dtype}), ...)",
                )
        return interface.flatten(args, kwargs, weights)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ProgramModule:
        """What .to(), .cuda(), .half() and the like do; tensors that the graph makes follow the weights."""
        before = _device(self)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        after = _device(self)
        if before != after:
            _retarget(self.__dict__["program"].module, before, after)
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> ProgramModule:
        made: ProgramModule = type(self).__new__(type(self))
        memo[id(self)] = made
        memo[id(self.__dict__["program"])] = copy.deepcopy(
            self.__dict__["program"], memo
        )  # before its tables
        made.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return made

    def extra_repr(self) -> str:
        """The plan, in one line."""
        plan = self.__dict__["program"].plan
        return f"policy={plan.policy}, {'; '.join(map(str, plan.sites))}" if plan else "dense"


def _weight_like(leaf: Any, program: Program) -> str | None:
    """The first weight that the graph reads and that has the precision of an input."""
    paths = [str(node.target) for node in program.graph.nodes if node.op == "get_attr"]
    dtype = leaf.dtype if isinstance(leaf, Tensor) else None
    return next((path for path in paths if getattr(_at(program.module, path), "dtype", None) is dtype), None)


def _conversion_to(leaf: Any, program: Program) -> str | None:
    """The first place in the graph that names the precision of an input."""
    for node in program.graph.nodes:
        arguments = compat.tree_leaves((node.args, dict(node.kwargs)))
        if isinstance(leaf, Tensor) and any(argument is leaf.dtype for argument in arguments):
            return graph.place(node)
    return None


def _at(module: nn.Module, path: str) -> Any:
    value: Any = module
    for name in path.split("."):
        value = getattr(value, name)
    return value


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
