"""torch.export: programs, their regions and their inputs."""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import fx, nn
from torch.export import Dim, ExportedProgram, ShapesCollection
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode
from torch.fx.graph import CodeGen

from prunec.compat.fake_tensors import fake_mode_of
from prunec.compat.source import is_users, source_text
from prunec.compat.trees import TreeSpec, tree_flatten

__all__ = [
    "AUTOCAST_REGION",
    "INLINABLE_REGIONS",
    "REBUILD_TENSOR",
    "argument_names",
    "decomposed",
    "every_node",
    "export",
    "forget_example",
    "forget_sources",
    "functionalised",
    "is_literal",
    "is_of_values",
    "load_exported",
    "make_flat",
    "quietly",
    "save_exported",
    "specialised_by",
    "structure",
    "to_onnx",
    "unlifted",
]

#: Names of the higher-order operators whose body may be inlined without changing a value.
INLINABLE_REGIONS = ("wrap_with_set_grad_enabled",)
#: The name of the one whose body computes in the precision that a `with torch.autocast(...)` says.
AUTOCAST_REGION = "wrap_with_autocast"
#: What a pickled tensor calls.
REBUILD_TENSOR = "torch._utils._rebuild_tensor_v2"


def export(
    module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], batch: int | None
) -> ExportedProgram:
    """Export `module`; dimension 0 of every tensor of length `batch` becomes symbolic (None: all fixed)."""
    shapes = ShapesCollection()
    leaves, _ = tree_flatten((args, dict(kwargs)))
    for leaf in leaves:
        if isinstance(leaf, torch.Tensor) and leaf.dim() > 0 and batch is not None and leaf.shape[0] == batch:
            shapes[leaf] = {0: Dim.AUTO}
    dynamic: Any = shapes if batch is not None else None  # PyTorch 2.11 takes it and does not say so
    said = io.StringIO()
    # Where it fails, it prints the graph so far before it raises.
    with contextlib.redirect_stderr(said), _no_hook_left(), _keywords_by_name(module, kwargs):
        exported = torch.export.export(module, args, dict(kwargs), dynamic_shapes=dynamic, strict=False)
    sys.stderr.write(said.getvalue())
    return exported


@contextlib.contextmanager
def _no_hook_left() -> Iterator[None]:
    """An export that fails in PyTorch 2.11 leaves a hook that lets the model change no buffer any more."""
    hooks = nn.modules.module._global_buffer_registration_hooks
    before = set(hooks)
    try:
        yield
    finally:
        for name in set(hooks) - before:
            del hooks[name]


@contextlib.contextmanager
def _keywords_by_name(module: nn.Module, kwargs: Mapping[str, Any]) -> Iterator[None]:
    """PyTorch 2.11 gets lost where a keyword is one of forward's **kwargs: each has a name meanwhile."""
    signature = inspect.signature(module.forward)
    unnamed = [name for name in kwargs if name not in signature.parameters]
    if not unnamed:
        yield
        return
    own = [each for each in signature.parameters.values() if each.kind is not each.VAR_KEYWORD]
    named = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in unnamed]
    before, forward = vars(module).get("forward"), module.forward

    def call(*args: Any, **kwargs: Any) -> Any:
        return forward(*args, **kwargs)

    vars(call)["__signature__"] = signature.replace(parameters=[*own, *named])
    vars(module)["forward"] = call
    try:
        yield
    finally:
        del vars(module)["forward"]
        if before is not None:
            vars(module)["forward"] = before


def is_of_values(error: Exception) -> bool:
    """Whether PyTorch could not trace a line because that depends on the values of tensors."""
    return isinstance(error, GuardOnDataDependentSymNode)


def functionalised(exported: ExportedProgram) -> ExportedProgram:
    """The same program with in-place operators made functional and regions opened; nothing is decomposed.

    What autocast converts in its region becomes conversions in the graph.
    """
    parts = [part for part in exported.graph_module.modules() if isinstance(part, fx.GraphModule)]
    bodies = [part for part in parts if part is not exported.graph_module]
    for body in bodies:  # node by node, so that each keeps its source line and its module
        vars(body)["forward"] = fx.Interpreter(body).run
    try:
        return decomposed(exported, {})
    finally:
        for body in bodies:
            del vars(body)["forward"]


def decomposed(exported: ExportedProgram, table: Mapping[Any, Callable[..., Any]]) -> ExportedProgram:
    """The same program with these operators computed by functions of PyTorch's, and no others."""
    with warnings.catch_warnings():
        # PyTorch 2.11 warns of a class of its own that it copies.
        warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)`", FutureWarning)
        return cast("ExportedProgram", exported.run_decompositions(dict(table)))


def forget_sources(exported: ExportedProgram) -> None:
    """Leave out of each node where it comes from: a file would name folders of this machine."""
    for node in every_node(exported):
        for key in ("stack_trace", "nn_module_stack", "source_fn_stack", "torch_fn", "from_node", "custom"):
            node.meta.pop(key, None)


def every_node(exported: ExportedProgram) -> Iterator[fx.Node]:
    """The nodes of an exported program, those of its regions too."""
    for part in exported.graph_module.modules():
        if isinstance(part, fx.GraphModule):
            yield from part.graph.nodes


def unlifted(exported: ExportedProgram) -> fx.GraphModule:
    """The exported program as a graph module that shares the original parameters."""
    module: Callable[..., Any] = exported.module
    options = {"check_guards": False} if "check_guards" in inspect.signature(module).parameters else {}
    graph_module = module(**options)
    assert isinstance(graph_module, fx.GraphModule)
    return graph_module


def load_exported(path: Path) -> ExportedProgram:
    """Read what torch.export.save wrote."""
    with warnings.catch_warnings():  # PyTorch 2.11 warns of the bytes that it reads the weights from
        warnings.filterwarnings("ignore", "The given buffer is not writable", UserWarning)
        return torch.export.load(path)


def forget_example(exported: ExportedProgram) -> None:
    """Leave out the inputs that it was exported on, which a file would hold as a pickle."""
    exported.example_inputs = None


def save_exported(exported: ExportedProgram, path: Path) -> None:
    """Write a program for torch.export.load."""
    with warnings.catch_warnings():  # PyTorch warns of what it does itself
        warnings.filterwarnings("ignore", module=r"torch\b")
        torch.export.save(exported, path)


def to_onnx(exported: ExportedProgram, opset: int, translations: Mapping[Any, Callable[..., Any]]) -> Any:
    """The program in ONNX, some operators by translations of ours; PyTorch's remarks on it are left out."""
    with quietly():
        return torch.onnx.export(
            exported,
            dynamo=True,
            opset_version=opset,
            custom_translation_table=dict(translations),
            verbose=False,
        )


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Without what a library warns of and prints."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def structure(graph_module: fx.GraphModule) -> tuple[TreeSpec | None, TreeSpec | None]:
    """How inputs (args, kwargs) and outputs of an unlifted program nest; None where it does not say."""
    return graph_module._in_spec, graph_module._out_spec


def argument_names(exported: ExportedProgram) -> list[str] | None:
    """The parameters of the exported forward that were given, where the program recorded them."""
    signature = next((entry.signature for entry in exported.module_call_graph if entry.fqn == ""), None)
    return getattr(signature, "forward_arg_names", None)


def make_flat(graph: fx.Graph) -> None:
    """Let the graph take its placeholders as positional arguments and return a flat tuple."""
    graph.set_codegen(CodeGen())


def is_literal(node: fx.Node) -> bool:
    """Whether a node yields a tensor that the traced code wrote down, such as torch.tensor([1, 8, 8])."""
    return node.op == "get_attr" and str(node.target).rpartition(".")[2].startswith("lifted_tensor_")


def specialised_by(exported: ExportedProgram) -> str | None:
    """The user's source line that fixed a symbolic size, as `file.py:12  code`, if PyTorch recorded one."""
    env = fake_mode_of(exported.graph).shape_env
    for place in getattr(env, "replacements_slocs", {}).values():
        for frame in (getattr(place, "maybe_user_loc", None), getattr(place, "framework_loc", None)):
            file, line = getattr(frame, "filename", None), getattr(frame, "lineno", None)
            if file is not None and line is not None and is_users(file):
                return f"{file}:{line}  {source_text(file, line)}".rstrip()
    return None
