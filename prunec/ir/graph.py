"""Small verbs on FX graphs: names, data flow, source lines, copies."""

from __future__ import annotations

import operator
import re
from collections.abc import Collection, Iterable, Iterator
from typing import Any

import torch
from torch import fx, nn

from prunec import compat

#: Operators that read only the shape, dtype or device of an operand (by position), never its values.
METADATA_OPERANDS = {
    "type_as": (1,),
    "expand_as": (1,),
    "reshape_as": (1,),
    "view_as": (1,),
    "zeros_like": (0,),
    "ones_like": (0,),
    "empty_like": (0,),
    "full_like": (0,),
    "new_zeros": (0,),
    "new_ones": (0,),
    "new_empty": (0,),
    "new_full": (0,),
    "sym_size": (0,),
    "_assert_tensor_metadata": (0,),
}

_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+), in (?P<function>\S+)')


def op(node: fx.Node) -> str:
    """The operator's plain name (`linear`, `add`, `getitem`); empty for placeholders and the like."""
    return compat.op_name(node.target) if node.op == "call_function" else ""


def is_size(node: fx.Node) -> bool:
    """Whether the node yields a number (a size, or what is computed of one), not a tensor."""
    return isinstance(node.meta.get("val"), (int, float, torch.SymInt)) or op(node) == "sym_size"


def data_inputs(node: fx.Node) -> list[fx.Node]:
    """The operands whose values flow into the result: no sizes, no metadata-only operands."""
    ignored: set[fx.Node] = set()
    for place in METADATA_OPERANDS.get(op(node), ()):
        if place < len(node.args) and isinstance(node.args[place], fx.Node):
            ignored.add(node.args[place])  # type: ignore[arg-type]
    return [source for source in node.all_input_nodes if source not in ignored and not is_size(source)]


def shape(node: fx.Node) -> tuple[int | torch.SymInt, ...]:
    """The recorded shape of a tensor node."""
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{node.name} is not a tensor")
    return tuple(value.shape)


def is_tensor(node: fx.Node) -> bool:
    """Whether the node is recorded to yield one tensor."""
    return isinstance(node.meta.get("val"), torch.Tensor)


def source_line(node: fx.Node) -> str | None:
    """`file.py:12 code` of the user's model that made this node; the innermost frame outside PyTorch."""
    frames = list(_FRAME.finditer(node.stack_trace or ""))
    if not frames:
        return None
    own = [frame for frame in frames if compat.is_users(frame["file"])] or frames
    file, line = own[-1]["file"], int(own[-1]["line"])
    return f"{file}:{line}  {compat.source_text(file, line)}".rstrip()


def module_path(node: fx.Node) -> str:
    """The path of the module that made this node, such as `blocks.3.attn`; empty when unknown."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = [path for path, _ in stack.values()]
    path = paths[-1] if paths else ""
    return re.sub(r"^L\['self'\]\.?|^self\.?", "", path)


def place(node: fx.Node) -> str:
    """Where a node stands, for error messages: its name, module and source line."""
    parts = [f"node {node.name}"]
    if module_path(node):
        parts.append(f"in {module_path(node)}")
    line = source_line(node)
    return " ".join(parts) + (f", {line}" if line else "")


def output_node(graph: fx.Graph) -> fx.Node:
    """The graph's one output node."""
    output: fx.Node = next(node for node in reversed(graph.nodes) if node.op == "output")
    return output


def by_name(graph: fx.Graph) -> dict[str, fx.Node]:
    """All nodes by name."""
    return {node.name: node for node in graph.nodes}


def text(graph: fx.Graph) -> str:
    """A line for each value: `norm: float32[2, 197, 768] = layer_norm(x, [768], weight, bias)`."""
    return "\n".join(map(_line, graph.nodes))


def _line(node: fx.Node) -> str:
    value = node.meta.get("val")
    type_ = ""
    if isinstance(value, torch.Tensor):
        type_ = f": {str(value.dtype).removeprefix('torch.')}[{', '.join(map(str, value.shape))}]"
    arguments = [*map(str, node.args), *(f"{name}={value}" for name, value in node.kwargs.items())]
    if node.op == "call_function":
        made = f"{op(node)}({', '.join(arguments)})"
    else:
        made = " ".join([node.op, *([] if node.op == "output" else [str(node.target)]), *arguments])
    return f"{node.name}{type_} = {made}"


def copy(module: fx.GraphModule) -> fx.GraphModule:
    """A graph module with a graph of its own that shares parameters and keeps every node name."""
    graph = fx.Graph()
    mapping: dict[fx.Node, fx.Node] = {}
    for node in module.graph.nodes:
        mapping[node] = graph.node_copy(node, lambda source: mapping[source])
    return with_graph(module, graph)


def with_graph(root: nn.Module, graph: fx.Graph) -> fx.GraphModule:
    """A graph module on the parameters of `root`, also on those that the graph does not read."""
    made = fx.GraphModule(root, graph)
    keep_parameters(made, root)
    return made


def keep_parameters(module: nn.Module, root: nn.Module) -> None:
    """Give `module` the parameters and buffers of `root` that it lacks, and all of them in its order."""
    known = {name for name, _ in _tensors(module)}
    for name, tensor in _tensors(root):
        if name in known:
            continue
        parent, _, leaf = name.rpartition(".")
        owner = _submodule(module, parent)
        if isinstance(tensor, nn.Parameter):
            owner.register_parameter(leaf, tensor)
        else:
            kept = leaf not in root.get_submodule(parent)._non_persistent_buffers_set
            owner.register_buffer(leaf, tensor, persistent=kept)
    parts = dict(module.named_modules(remove_duplicate=False))
    for path, like in root.named_modules(remove_duplicate=False):
        if path in parts:
            _reorder(parts[path], like)
            # PyTorch 2.11 copies a buffer into a graph module as one that state_dict() holds.
            parts[path]._non_persistent_buffers_set.update(like._non_persistent_buffers_set)


def _reorder(module: nn.Module, like: nn.Module) -> None:
    """Sort a module's tables as another's; what only it has comes last."""
    for table in ("_parameters", "_buffers", "_modules"):
        mine, order = getattr(module, table), getattr(like, table)
        for name in [
            *(name for name in order if name in mine),
            *(name for name in mine if name not in order),
        ]:
            mine[name] = mine.pop(name)


def _tensors(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)


def _submodule(module: nn.Module, path: str) -> nn.Module:
    """The submodule at a path, with empty containers where there are none."""
    for name in path.split(".") if path else ():
        if name not in module._modules:
            module.add_module(name, nn.Module())
        module = module.get_submodule(name)
    return module


def tidy(module: fx.GraphModule) -> None:
    """Remove dead nodes (inputs stay), check the graph, and make it callable again."""
    # Attention and dropout count as random, and so as impure, in PyTorch; here only inputs and outputs stay.
    module.graph.eliminate_dead_code(is_impure_node=lambda node: node.op in ("placeholder", "output"))
    module.graph.lint()
    module.recompile()


def reachable(start: Iterable[fx.Node], within: Collection[fx.Node] | None = None) -> set[fx.Node]:
    """Every node that the values of `start` flow into, `start` included; only inside `within` if given."""
    found = set(start)
    queue = list(found)
    while queue:
        for user in queue.pop().users:
            inside = within is None or user in within
            if inside and user not in found and any(source in found for source in data_inputs(user)):
                found.add(user)
                queue.append(user)
    return found


def ancestors(node: fx.Node) -> set[fx.Node]:
    """Every node whose value flows into this one, itself included."""
    found, queue = {node}, [node]
    while queue:
        new = [source for source in data_inputs(queue.pop()) if source not in found]
        found.update(new)
        queue.extend(new)
    return found


def operand(node: fx.Node, place: int) -> fx.Node:
    """A positional argument that is a node."""
    found = node.args[place]
    assert isinstance(found, fx.Node)
    return found


def is_getitem(node: fx.Node) -> bool:
    """Whether the node picks one element of a tuple."""
    return node.op == "call_function" and node.target is operator.getitem


class Recorder(fx.Interpreter):
    """Runs a graph and keeps some of its values, by name."""

    def __init__(self, module: fx.GraphModule, wanted: Collection[str]) -> None:
        super().__init__(module, garbage_collect_values=True)
        self.wanted = wanted
        self.values: dict[str, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        """As it is, remembering what is wanted."""
        value = super().run_node(n)
        if n.name in self.wanted:
            self.values[n.name] = value
        return value
