"""A program run region by region, where each region's code is made once for all that are alike."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from prunec import compat
from prunec.ir import graph
from prunec.ir.program import Program
from prunec.ir.regions import Region, Shape, regions_of, shared_shapes
from prunec.targets import Flat

Compile = Callable[[Flat], Flat]


@dataclass(frozen=True, eq=False)
class _Step:
    """One region as it runs."""

    region: Region
    run: Flat
    free: tuple[tuple[int, int], ...]  # the input and the dimension of it that may have any length
    weights: tuple[tuple[Mapping[str, Any], str], ...]  # tables that have them, and their names there
    done: tuple[str, ...]  # values that nothing reads after it

    def __call__(self, values: dict[str, Any]) -> None:
        given = [values[name] for name in self.region.inputs]
        for place, axis in self.free:
            if given[place].shape[axis] > 1:  # PyTorch takes a size of one for a constant
                compat.mark_dynamic(given[place], axis)
        weights = [table[name] for table, name in self.weights]
        values.update(zip(self.region.outputs, self.run(*given, *weights), strict=True))
        for name in self.done:
            del values[name]


class Regional:
    """A program on flat inputs; a copy of it compiles the copy of the program.

    Args:
        program: what to run; its weights are looked up in each call.
        compiled: what makes code of the function that a region is. Regions that choose tokens run as they
            are: many small operators, which take longer to compile than all else and hardly any time.
        dynamic: whether lengths that differ from region to region, or that the program has no number for, are
            compiled as symbols.

    `codes` is how many graphs are compiled for one batch.
    """

    def __init__(self, program: Program, compiled: Compile, *, dynamic: bool) -> None:
        self.program, self.compiled, self.dynamic = program, compiled, dynamic
        self.inputs = [node.name for node in program.graph.nodes if node.op == "placeholder"]
        self.returned = graph.output_node(program.graph).args[0]
        regions = regions_of(program)
        kept = {node.name for node in graph.output_node(program.graph).all_input_nodes}
        code: dict[str, Flat] = {}
        for region in regions:
            if region.signature not in code:
                forward: Flat = region.module.forward  # nothing is hooked to the module itself
                code[region.signature] = forward if region.as_is else compiled(forward)
        self.codes = sum(not region.as_is for region in {each.signature: each for each in regions}.values())
        shapes = shared_shapes(regions)
        done = _read_last(regions, kept)
        self.steps = [
            _Step(
                region,
                code[region.signature],
                _any_length(shapes[region.signature]) if dynamic and not region.as_is else (),
                tuple(_table(program.module, path) for path in region.weights),
                names,
            )
            for region, names in zip(regions, done, strict=True)
        ]

    def __call__(self, *flat: Any) -> Any:
        """The flat outputs."""
        values: dict[str, Any] = dict(zip(self.inputs, flat, strict=True))
        with compat.scalar_outputs():
            for step in self.steps:
                step(values)
        return fx.node.map_arg(self.returned, lambda node: self._value(node, values))

    def _value(self, node: fx.Node, values: Mapping[str, Any]) -> Any:
        if node.op != "get_attr":
            return values[node.name]
        table, name = _table(self.program.module, str(node.target))
        return table[name]

    def __deepcopy__(self, memo: dict[int, Any]) -> Regional:
        return Regional(copy.deepcopy(self.program, memo), self.compiled, dynamic=self.dynamic)


def _any_length(shapes: Sequence[Shape]) -> tuple[tuple[int, int], ...]:
    return tuple(
        (place, axis) for place, shape in enumerate(shapes) for axis, size in enumerate(shape) if size is None
    )


def _read_last(regions: Sequence[Region], kept: set[str]) -> list[tuple[str, ...]]:
    """For each region the values that it is the last to read, or that nothing reads; never those `kept`."""
    last = {name: place for place, region in enumerate(regions) for name in (*region.outputs, *region.inputs)}
    return [
        tuple(name for name, its in last.items() if its == place and name not in kept)
        for place in range(len(regions))
    ]


def _table(module: nn.Module, path: str) -> tuple[Mapping[str, Any], str]:
    """Where a weight stands now, whatever tensor it will be."""
    place, _, name = path.rpartition(".")
    owner = module.get_submodule(place)
    return owner._parameters if name in owner._parameters else owner._buffers, name
