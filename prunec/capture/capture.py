"""A module and an example become a Program: one functional graph with a symbolic batch.

    model, example --torch.export--> one ATen graph --unlift--> graph module sharing the model's parameters

The model is never changed. The batch is traced as 2 and must stay a symbol; where the model's own code fixes
it, the program is captured at the example's batch and a warning names the source line.
"""

from __future__ import annotations

import inspect
import time
import warnings
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from prunec import compat
from prunec.capture.autocast import idle_autocast, is_region
from prunec.capture.borrowing import unchanged
from prunec.capture.capturable import check_capturable
from prunec.capture.example_inputs import unregistered
from prunec.errors import CaptureError, UsageError, first_few
from prunec.ir.attributes import settings_of
from prunec.ir.graph import keep_parameters, place, reachable
from prunec.ir.interface import Interface
from prunec.ir.program import Program

#: What to do where PyTorch cannot go on: it knows no values of tensors, and no code but its operators.
BY_VALUES = (
    "make that line independent of tensor values (torch.where in place of `if`); "
    "torch.export.draft_export(model, args) lists every such place"
)
IN_OPERATORS = "write that line in operators of PyTorch on tensors"


def capture(
    module: nn.Module, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
) -> Program:
    """Capture `module` on an example input whose batch is 2."""
    start = time.perf_counter()
    kwargs = dict(kwargs or {})
    check_capturable(module)
    if module.training:
        raise UsageError("the model is in training mode", remedy="call model.eval() before transforming it")
    batch = _batch_size(args, kwargs)
    exported = _export(module, args, kwargs, batch)
    signature = inspect.signature(module.forward)
    program = _program(exported, signature, args, kwargs, batch, start, settings_of(module))
    keep_parameters(program.module, module)  # also those that the graph does not read, such as a mask token
    return program


def adopt(exported: ExportedProgram, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Program:
    """An exported program as it is, on inputs that it accepts."""
    start = time.perf_counter()
    return _program(exported, _signature(exported), args, kwargs, _batch_size(args, kwargs), start)


def _program(
    exported: ExportedProgram,
    signature: inspect.Signature,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    batch: int | None,
    start: float,
    settings: Mapping[str, bool] = MappingProxyType({}),
) -> Program:
    notes: tuple[str, ...] = ()
    if batch is not None and not batch_is_symbolic(exported, batch, args, kwargs):
        line = compat.specialised_by(exported) or "a line that PyTorch did not record"
        notes = (f"the batch is fixed at {batch}: the model's own code made it a constant at {line}",)
        warnings.warn(f"{notes[0]}; the result runs at this batch only", stacklevel=5)
        batch = None
    if idle := idle_autocast(exported, compat.tree_leaves((args, dict(kwargs)))):
        notes += (idle,)
        warnings.warn(f"{idle}; give an example on that device", stacklevel=5)
    exported = functional(exported)
    if changed := list(exported.graph_signature.buffers_to_mutate.values()):
        notes += (f"the model changes {first_few(changed)} whenever it runs",)
        warnings.warn(f"{notes[-1]}; the transformed one leaves its buffers as they are now", stacklevel=5)
    graph_module = graph_of(exported)
    _check_sizes(graph_module)
    program = Program(graph_module, _interface(signature, graph_module, args, kwargs, batch, settings))
    size = sum(node.op == "call_function" for node in program.graph.nodes)
    return program.recorded("capture", time.perf_counter() - start, {"operators": size}, notes)


def _export(
    module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], batch: int | None
) -> ExportedProgram:
    try:
        with torch.no_grad(), unchanged(module):
            return compat.export(module, args, kwargs, batch)
    except Exception as error:  # torch.export raises whatever the model's own code raises
        raise _failure(module, args, kwargs, error) from error


def _failure(
    module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], error: Exception
) -> CaptureError:
    """Why there is no graph: the model does not run on the example, or it does and cannot be exported."""
    name = type(module).__name__
    try:
        with torch.no_grad(), torch.random.fork_rng(), unchanged(module):
            found = module(*args, **kwargs)
    except Exception as own:  # noqa: BLE001  whatever the model's own code raises
        return CaptureError(
            f"{name} does not run on the example: {_first_line(own)}",
            where=_user_frame(own),
            remedy="give an example that the model takes, as it is: of its shape, precision and device; an "
            "input that is a list or a mapping itself is given in a tuple, example=(input,)",
        )
    if advice := unregistered(compat.tree_leaves((args, dict(kwargs), found))):
        return CaptureError(
            f"PyTorch does not look into all that {name} takes and returns: {_first_line(error)}",
            remedy=advice,
        )
    advice = BY_VALUES if compat.is_of_values(error) else IN_OPERATORS
    return CaptureError(
        f"torch.export could not capture {name}: {_first_line(error)}",
        where=_user_frame(error),
        remedy=f"{advice}, or give submodule= a part of the model that does not hold that line",
    )


def graph_of(exported: ExportedProgram) -> fx.GraphModule:
    """The exported program as one functional graph: flat inputs, flat outputs, no guards, no autocast."""
    graph_module = compat.unlifted(functional(exported))
    graph = graph_module.graph
    compat.make_flat(graph)
    for node in list(graph.nodes):
        if node.op == "call_module":  # input guards of the exported program: prunec checks inputs itself
            graph.erase_node(node)
    graph_module._forward_pre_hooks.clear()  # the same, for keywords that a flat call has no longer
    graph_module.recompile()
    return graph_module


def _check_sizes(graph_module: fx.GraphModule) -> None:
    """CaptureError where there are as many rows as an input's values say; those of a constant are known."""
    inputs = [node for node in graph_module.graph.nodes if node.op == "placeholder"]
    behind = reachable(inputs)
    for node in (node for node in graph_module.graph.nodes if node in behind):
        leaves = [leaf for leaf in compat.tree_leaves(node.meta.get("val")) if isinstance(leaf, torch.Tensor)]
        if any(compat.hint(size) is None for leaf in leaves for size in leaf.shape):
            raise CaptureError(
                "how many rows this line gives depends on the values of a tensor",
                where=place(node),
                remedy="make it give a fixed number (torch.topk, a mask with torch.where), or give within= a "
                "part of the model that does not hold that line",
            )


def functional(exported: ExportedProgram) -> ExportedProgram:
    """The program with nothing done in place, and no region of a precision."""
    if any(compat.mutates(node.target) or is_region(node) for node in compat.every_node(exported)):
        return compat.functionalised(exported)
    return exported


def _signature(exported: ExportedProgram) -> inspect.Signature:
    """The parameters of the exported forward: named where the file says how, numbered where not."""
    positional, keywords = _required(exported.call_spec.in_spec).children()
    names = compat.argument_names(exported) or []
    if len(names) < positional.num_children:
        names = [f"input_{place}" for place in range(positional.num_children)]
    named = dict.fromkeys((*names, *keywords.context))
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    return inspect.Signature([inspect.Parameter(name, kind) for name in named])


def _interface(
    signature: inspect.Signature,
    graph_module: fx.GraphModule,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    batch: int | None,
    settings: Mapping[str, bool],
) -> Interface:
    parameters = signature.parameters.values()
    named = tuple(
        p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    )
    if len(args) > len(named):  # forward(*inputs): number the arguments
        named = tuple(f"input_{place}" for place in range(len(args)))
    in_spec, out_spec = compat.structure(graph_module)
    example, _ = compat.tree_flatten((args, dict(kwargs)))
    return Interface(
        parameters=named + tuple(name for name in kwargs if name not in named),
        defaults={p.name: p.default for p in parameters if p.default is not p.empty},
        positional=named[: len(args)],
        keyword=tuple(kwargs),
        in_spec=_required(in_spec),
        out_spec=_required(out_spec),
        example=tuple(example),
        batch=batch,
        signature=signature,
        settings=settings,
    )


def _required(nesting: compat.TreeSpec | None) -> compat.TreeSpec:
    """How inputs or outputs nest, of a program that says so."""
    if nesting is None:
        raise CaptureError(
            "the exported program does not say how its inputs and outputs nest",
            remedy="export it with torch.export.export, and save it with torch.export.save",
        )
    return nesting


def _batch_size(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int | None:
    tensors = [
        leaf for leaf in compat.tree_flatten((args, dict(kwargs)))[0] if isinstance(leaf, torch.Tensor)
    ]
    if not tensors:
        raise UsageError("the example holds no tensor", remedy="give example=(image,) with an image batch")
    batch = next((int(tensor.shape[0]) for tensor in tensors if tensor.dim() == 4), int(tensors[0].shape[0]))
    if batch == 0:
        raise UsageError("the example holds no image: its batch is 0", remedy="give a batch of two images")
    if tensors[0].dim() == 3 and any(map(_is_list_of_images, (*args, *kwargs.values()))):
        warnings.warn(
            "the images are given one by one in a list: the result takes as many as the example holds, of "
            "their sizes",
            stacklevel=5,
        )
        return None
    return batch


def _is_list_of_images(value: Any) -> bool:
    """Whether an input is images without a batch dimension, side by side."""
    return isinstance(value, list | tuple) and all(
        isinstance(each, torch.Tensor) and each.dim() == 3 for each in value
    )


def batch_is_symbolic(
    exported: ExportedProgram, batch: int, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> bool:
    """Whether every input whose first dimension is the batch kept a symbol there."""
    examples, _ = compat.tree_flatten((args, dict(kwargs)))
    user_inputs = {  # constants (flags, None) too: they have placeholders of their own
        spec.arg.name for spec in exported.graph_signature.input_specs if spec.kind == InputKind.USER_INPUT
    }
    placeholders = [
        node for node in exported.graph.nodes if node.op == "placeholder" and node.name in user_inputs
    ]
    return all(
        compat.expression(node.meta["val"].shape[0]).free_symbols  # a SymInt that was fixed has none
        for node, example in zip(placeholders, examples, strict=True)
        if isinstance(example, torch.Tensor) and example.dim() > 0 and example.shape[0] == batch
    )


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"


def _user_frame(error: Exception) -> str | None:
    """The innermost frame of the model's own code in the traceback."""
    frame = None
    trace = error.__traceback__
    while trace is not None:
        filename = trace.tb_frame.f_code.co_filename
        if compat.is_users(filename):
            frame = f"{filename}:{trace.tb_lineno}  {compat.source_text(filename, trace.tb_lineno)}".rstrip()
        trace = trace.tb_next
    return frame
