"""Modules that cannot be captured as they are, and what to give instead.

DistributedDataParallel(model)   model.module, and wrap the result
torch.compile(model)             the model itself, and compile the result
torch.jit, quantised modules     the float model in Python that they were made from
prunec.transform(model, ...)     the model itself, with one policy that holds all changes
"""

from __future__ import annotations

from torch import Tensor, jit, nn

from prunec import compat
from prunec.errors import UsageError, first_few
from prunec.ir.program import ProgramModule
from prunec.ir.weights import AFTERWARDS, quantised


def check_capturable(module: nn.Module) -> None:
    """UsageError for a module, or a part of it, that is not the model's own code and numbers."""
    if not isinstance(module, nn.Module):
        raise UsageError(
            f"a model is an nn.Module, got a {type(module).__name__}",
            remedy="give the model itself, or the name of a source (prunec.optimize, `prunec explain`)",
        )
    for path, part in module.named_modules():
        if found := _not_a_model(part):
            what, remedy = found
            name = "the model" if isinstance(part, ProgramModule) else type(part).__name__
            raise UsageError(f"{name} {what}", where=f"part {path}" if path else None, remedy=remedy)
    for name, tensor in _tensors(module):
        if kind := quantised(tensor):
            raise UsageError(
                f"the model's weights are quantised ({kind}), and integers cannot be captured",
                where=name,
                remedy=f"give the model as it was before it was quantised, and {AFTERWARDS}",
            )
    if absent := [name for name, tensor in _tensors(module) if tensor.is_meta]:
        raise UsageError(
            f"the model has no numbers: on the meta device are {first_few(absent)}",
            remedy="build it on a device that holds numbers, or load its weights first: "
            "model.to_empty(device='cpu'), model.load_state_dict(...)",
        )


def _not_a_model(part: nn.Module) -> tuple[str, str] | None:
    """What a module is instead of a model, and what to do."""
    if isinstance(part, ProgramModule):
        return (
            "was transformed already",
            "transform the model that it was made from, with one policy for all changes (blocks=, keep=)",
        )
    if isinstance(part, nn.DataParallel | nn.parallel.DistributedDataParallel):
        return (
            "wraps a model to spread it over devices, and only the model can be captured",
            "give what it wraps, model.module, and wrap the result again",
        )
    if compat.is_compiled(part):
        return (
            "is a model compiled by torch.compile, and its own code is what is captured",
            "give the model that was compiled (model._orig_mod), and compile the result",
        )
    if isinstance(part, jit.ScriptModule):
        return (
            "is TorchScript, which torch.export cannot capture",
            "give the Python module that it was scripted or traced from",
        )
    if type(part).__module__.startswith(("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized")):
        return (
            "holds packed integer weights, which torch.export cannot capture",
            "give the model as it was before it was quantised; with less memory it runs in bfloat16",
        )
    return None


def _tensors(module: nn.Module) -> list[tuple[str, Tensor]]:
    return [*module.named_parameters(), *module.named_buffers()]
