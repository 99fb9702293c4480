"""The program that passes hand on: a graph, what is known of it, and the record of how it came about.

A Program is immutable. A pass takes one and returns a new one; `Program.stages` keeps a readable line
(and the graph as text) for each, so that any two stages can be laid side by side.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import fx, nn

from prunec import compat
from prunec.anatomy import Anatomy
from prunec.errors import UsageError

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

    def flatten(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Any]:
        """The flat graph inputs of one call, however its arguments were spelled."""
        if len(args) > len(self.parameters):
            raise UsageError(f"forward takes {len(self.parameters)} arguments, got {len(args)}")
        given = dict(zip(self.parameters, args, strict=False))
        given.update(kwargs)
        for name in (*self.positional, *self.keyword):
            if name not in given:
                raise UsageError(f"missing input {name!r}", remedy=f"call the model with {self.call()}")
        for name, value in given.items():
            if (
                name not in self.positional
                and name not in self.keyword
                and value is not self.defaults.get(name)
            ):
                raise UsageError(
                    f"input {name!r} was not given at capture, so the graph has no place for it",
                    remedy="transform the model again with an example that holds this input",
                )
        call = (tuple(given[name] for name in self.positional), {name: given[name] for name in self.keyword})
        flat, spec = compat.tree_flatten(call)
        if spec != self.in_spec:
            raise UsageError("the inputs nest differently from the example", remedy=f"expected {self.call()}")
        for name, value, expected in zip(self.leaf_names(), flat, self.example, strict=True):
            self._check_leaf(name, value, expected)
        return flat

    def unflatten(self, outputs: Any) -> Any:
        """The model's own output structure (a tensor, a tuple, a ModelOutput) from the flat tuple."""
        return compat.tree_unflatten(list(outputs), self.out_spec)

    def leaf_names(self) -> tuple[str, ...]:
        """A name for each flat input; nested inputs repeat their parameter's name."""
        names: list[str] = []
        for name, child in zip((*self.positional, *self.keyword), _children(self.in_spec), strict=True):
            names.extend([name] * child.num_leaves)
        return tuple(names)

    def call(self) -> str:
        """The expected call in words, such as `pixel_values=float32[B, 3, 224, 224]`."""
        return ", ".join(
            f"{name}={self.describe(leaf)}"
            for name, leaf in zip(self.leaf_names(), self.example, strict=True)
        )

    def describe(self, leaf: Any) -> str:
        """`float32[B, 3, 224, 224]` for a tensor, its repr for anything else."""
        if not isinstance(leaf, torch.Tensor):
            return repr(leaf)
        sizes = [str(size) for size in leaf.shape]
        if sizes and self.batch is not None and leaf.shape[0] == self.batch:
            sizes[0] = "B"
        return f"{str(leaf.dtype).removeprefix('torch.')}[{', '.join(sizes)}]"

    def _check_leaf(self, name: str, value: Any, expected: Any) -> None:
        if isinstance(expected, torch.Tensor):
            free = self.batch is not None and expected.dim() > 0 and expected.shape[0] == self.batch
            start = 1 if free else 0
            fits = isinstance(value, torch.Tensor) and value.dim() == expected.dim()
            if not fits or value.shape[start:] != expected.shape[start:]:
                raise UsageError(
                    f"input {name!r} is {self.describe(value)}, expected {self.describe(expected)}",
                    remedy="give inputs of that shape, or transform the model again with an example of yours",
                )
        elif value != expected:
            raise UsageError(
                f"input {name!r} is {value!r}, the model was captured with {expected!r}",
                remedy="transform the model again with an example that holds this value",
            )


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

    def __str__(self) -> str:
        name = "before" if self.where == "before_block" else "after attention of"
        return f"{name} block {self.block}: {self.tokens} -> {self.leaves} tokens"


@dataclass(frozen=True)
class Plan:
    """A policy made concrete for one model: pure data, printable, editable, replayable."""

    policy: str
    scorer: str
    fate: str
    sites: tuple[Site, ...]
    notes: tuple[str, ...] = ()


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


class ProgramModule(nn.Module):
    """A program as an ordinary module: the original's signature, outputs and parameter names."""

    def __init__(self, program: Program) -> None:
        super().__init__()
        # The graph module is kept out of the module tree, and its tables are shared, so that state_dict() has
        # the original's names and .to() moves what the graph reads.
        self.__dict__["program"] = program
        self._modules = program.module._modules
        self._parameters = program.module._parameters
        self._buffers = program.module._buffers
        self._non_persistent_buffers_set = program.module._non_persistent_buffers_set

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The original model's forward, with fewer tokens."""
        program: Program = self.__dict__["program"]
        flat = program.interface.flatten(args, kwargs)
        return program.interface.unflatten(program.module(*flat))

    def extra_repr(self) -> str:
        """The plan, in one line."""
        plan = self.__dict__["program"].plan
        return f"policy={plan.policy}, {'; '.join(map(str, plan.sites))}" if plan else "dense"
