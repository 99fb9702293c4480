"""Keep grids flat: a residual stream of [B, H, W, C] becomes one of [B, N, C], with one token axis.

    s [B, H, W, C] --norm--windows--attention--merge--(+)-- s' --norm--fc--gelu--fc--(+)-- s'' [B, H, W, C]
==>
    s --flatten-- [B, N, C] --norm--windows--attention--merge--flatten--(+)-- s' --norm--fc--gelu--fc--(+)--

Token-wise operators do not care in what shape the tokens stand: which ones these are is found by calling each
on flat random numbers and comparing with what it makes of the grid. Between others (a roll, a convolution)
the grid is given back by an unflatten. Streams of [B, C, H, W] stay as they are.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import fx

from prunec import compat
from prunec.dataflow.flow import DataFlow, Link, residual_adds
from prunec.ir import graph
from prunec.ir.calls import CallTypes, signature
from prunec.ir.program import Counts, Program
from prunec.ir.rewrite import Pass
from prunec.probing.lengths import Lengths
from prunec.probing.probe import Probe
from prunec.probing.questions import treats_as_flat

#: What reads the last axis as channels; of a state of four axes the two in the middle are the grid then.
_READS_CHANNELS = {"linear", "layer_norm", "rms_norm"}
_RESHAPES = {"view", "reshape", "_unsafe_view", "flatten", "unflatten"}
_FLATTEN, _UNFLATTEN = torch.ops.aten.flatten.using_ints, torch.ops.aten.unflatten.int


@dataclass(frozen=True)
class FlattenGrid(Pass[Program, Program]):
    """Give residual streams of [B, H, W, C] one token axis."""

    name: ClassVar[str] = "flatten grid"

    def run(self, program: Program) -> tuple[Program, Counts]:
        """The program with flat streams, and how many values are flat now."""
        links = [link for link in residual_adds(DataFlow(program.graph)) if _is_grid(link)]
        if not links:
            return program, Counts({"flat": 0})
        flattener = _Flattener(program.module, links)
        module = flattener.run()
        return program.replace(module=module), Counts({"flat": flattener.count})


def _is_grid(link: Link) -> bool:
    """Whether a residual add works on [B, H, W, C]: its branch reads the last axis as channels."""
    sizes = graph.shape(link.add)
    if len(sizes) != 4 or not all(isinstance(size, int) for size in sizes[1:]):
        return False
    sources = [
        source for node in link.region if graph.op(node) in _READS_CHANNELS for source in node.args[:1]
    ]
    return any(isinstance(source, fx.Node) and graph.shape(source) == sizes for source in sources)


@dataclass
class _Flattener:
    """Rebuilds a graph; every value is held as it was, flat, or (once both were asked for) in both forms."""

    module: fx.GraphModule
    links: list[Link]
    target: fx.Graph = field(default_factory=fx.Graph)
    plain: dict[fx.Node, fx.Node] = field(default_factory=dict)  # old node -> as it was
    flat: dict[fx.Node, fx.Node] = field(
        default_factory=dict
    )  # old node -> [B, N, ...] for its [B, H, W, ...]
    alike: dict[Any, bool] = field(default_factory=dict)  # calls that were watched
    count: int = 0

    def __post_init__(self) -> None:
        self.mode = compat.fake_mode_of(self.module.graph)
        self.calls = CallTypes(self.mode, 0)
        self.grids = {graph.shape(link.add)[1:3] for link in self.links}
        self.states = {node for link in self.links for node in (link.state, link.add)}

    def run(self) -> fx.GraphModule:
        """The whole graph anew."""
        for node in self.module.graph.nodes:
            if not self._made_flat(node):
                self.plain[node] = self.target.node_copy(node, self._as_it_was)
                if node in self.states and self._is_grid(node):
                    self._as_flat(node)
        return graph.with_graph(self.module, self.target)

    # --- the two forms of a value -----------------------------------------------------------

    def _as_it_was(self, node: fx.Node) -> fx.Node:
        if node not in self.plain:
            rows, columns = graph.shape(node)[1:3]
            flat = self.flat[node]
            self.plain[node] = self._call(node, _UNFLATTEN, (flat, 1, [rows, columns]), f"{node.name}_grid")
        return self.plain[node]

    def _as_flat(self, node: fx.Node) -> fx.Node:
        if node not in self.flat:
            self.count += 1
            self.flat[node] = self._call(node, _FLATTEN, (self.plain[node], 1, 2), f"{node.name}_flat")
        return self.flat[node]

    def _is_grid(self, node: fx.Node) -> bool:
        return _is_grid_value(node.meta.get("val"), self.grids)

    # --- one call ---------------------------------------------------------------------------

    def _made_flat(self, node: fx.Node) -> bool:
        """Whether the node could be called on flat operands (and was), or is nothing but a change of form."""
        if node.op != "call_function":
            return False
        if graph.op(node) in _RESHAPES and self._is_the_same_rows(node, node.args[0]):
            return True
        if not any(operand in self.flat for operand in node.all_input_nodes):
            return False
        return self._call_flat(node)

    def _is_the_same_rows(self, node: fx.Node, source: Any) -> bool:
        """Whether a reshape only puts rows into a grid or takes them out; then its source will do."""
        if self._is_grid(node):
            from_rows = not self._is_grid(source) and graph.shape(source) == _flat_shape(node)
            if from_rows or (source in self.flat and graph.shape(source) == graph.shape(node)):
                self.flat[node] = self._as_it_was(source) if from_rows else self.flat[source]
                return True
        elif source in self.flat and graph.shape(node) == _flat_shape(source):
            self.plain[node] = self.flat[source]
            return True
        return False

    def _call_flat(self, node: fx.Node) -> bool:
        wanted = [operand for operand in node.all_input_nodes if self._is_grid(operand)]
        forms = {operand: self.flat.get(operand) for operand in wanted}
        types = {
            operand: form.meta["val"] if form is not None else self._flat_type(operand)
            for operand, form in forms.items()
        }
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda given: types.get(given, given.meta["val"]))
        keeps_order = graph.op(node) in _RESHAPES
        recorded = node.meta.get("val")
        wanted_type = recorded if keeps_order else self._flat_type(node)
        if wanted_type is None or self.calls.type_of(node.target, args, kwargs, wanted_type) is None:
            return False
        if not keeps_order and not self._same_numbers(node, set(wanted)):
            return False
        made = self.target.node_copy(
            node, lambda given: self._as_flat(given) if given in types else self._as_it_was(given)
        )
        made.meta["val"] = wanted_type
        (self.plain if keeps_order else self.flat)[node] = made
        self.count += 1
        return True

    def _same_numbers(self, node: fx.Node, grids: set[fx.Node]) -> bool:
        """Whether the call makes the same numbers of flat operands as of grids."""
        key = (node.target, signature(node.args), signature(node.kwargs))
        if key not in self.alike:
            self.alike[key] = bool(treats_as_flat(Probe(node, Lengths({})), grids))
        return self.alike[key]

    def _flat_type(self, node: fx.Node) -> Any:
        """The type of a value's flat form; None if it is no grid."""
        if not self._is_grid(node):
            return None
        value = node.meta["val"]
        return compat.fake_like(self.mode, _flat_shape(node), value.dtype, value.device)

    def _call(self, node: fx.Node, function: Any, args: tuple[Any, ...], name: str) -> fx.Node:
        """A change of form, with the place in the model of the value that it changes."""
        made = self.target.create_node("call_function", function, args, {}, name=name)
        values = fx.map_arg(args, lambda source: source.meta["val"])
        value, _ = compat.evaluate(self.mode, function, values, {})
        made.meta = {**node.meta, "val": value}
        return made


def _is_grid_value(value: Any, grids: set[tuple[Any, ...]]) -> bool:
    if not isinstance(value, torch.Tensor) or value.dim() != 4:
        return False
    sizes = tuple(value.shape[1:3])
    return all(isinstance(size, int) for size in sizes) and sizes in grids


def _flat_shape(node: fx.Node) -> tuple[Any, ...]:
    batch, rows, columns, channels = graph.shape(node)
    return (batch, rows * columns, channels)
