"""Checkpoints that nobody should trust: one for each way in, and for each flood."""

from __future__ import annotations

import copyreg
import functools
import io
import os
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import GenerationConfig, ViTConfig
from transformers.models.auto.configuration_auto import _LazyConfigMapping

from prunec.data.tiny_vit import TinyViT, classifier
from tests.hostile import Hostile


@dataclass(frozen=True)
class Call:
    """Pickled as a call of a function."""

    function: Any
    args: tuple[Any, ...] = ()
    state: Any = None

    def __reduce__(self) -> tuple[Any, ...]:
        """What unpickling is to do."""
        return (self.function, self.args) if self.state is None else (self.function, self.args, self.state)


class New:
    """Pickled as an instance of a class, made without its constructor, with any state."""

    def __init__(self, cls: Any, state: Any, args: tuple[Any, ...] = ()) -> None:
        self.given = cls, state, args

    @property
    def __class__(self) -> Any:  # pickle asks whether the object is of the class that it writes
        return self.given[0]

    def __reduce__(self) -> tuple[Any, ...]:
        """What unpickling is to do."""
        cls, state, args = self.given
        return copyreg.__newobj__, (cls, *args), state  # type: ignore[attr-defined]


def saved(content: Any, **options: Any) -> Callable[[Path], None]:
    return lambda path: torch.save(content() if callable(content) else content, path, **options)


def linear(**attributes: Any) -> nn.Module:
    """A module with attributes that a module never has."""
    module = nn.Linear(2, 2)
    vars(module).update(attributes)
    return module


def tiny(**attributes: Any) -> nn.Module:
    module = classifier()
    vars(module).update(attributes)
    return module


def lazy(names: dict[str, str], modules: Any) -> New:
    """A mapping that looks its values up when it is read: `key` is attribute names[key] of modules[key].

    Where `modules` has no such key, transformers.models.KEY is imported.
    """
    return New(_LazyConfigMapping, {"_mapping": names, "_extra_content": {}, "_modules": modules})


def gadget() -> Any:
    """A state that is such a mapping: reading it fetches os.abort, as the `eval` that prunec calls next."""
    file = "auto.tokenization_auto"  # a file of transformers.models that imports os
    holder = New(TinyViT, lazy({file: "os"}, {}))  # an object whose attribute of that name is the module os
    modules = Call(OrderedDict, (lazy({"eval": file}, {"eval": holder}),))
    return New(TinyViT, lazy({"eval": "abort"}, modules))


def module_state(**changes: Any) -> dict[str, Any]:
    return {**vars(nn.Linear(2, 2)), **changes}


def raw(*parts: bytes) -> Callable[[Path], None]:
    """A zip as torch.save writes it, around any pickle."""

    def write(path: Path) -> None:
        archive(path, {"x/data.pkl": b"".join(parts), "x/version": b"3\n", "x/byteorder": b"little"})

    return write


def archive(path: Path, entries: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, content in entries.items():
            file.writestr(name, content)


def compressed(path: Path) -> None:
    archive(path, {"x/data.pkl": b"\x80\x02]" + b"N0" * 500_000 + b"."}, zipfile.ZIP_DEFLATED)


def twice(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as file:
        for content in (b"\x80\x02}.", b"\x80\x02cos\nsystem\nX\x04\x00\x00\x00true\x85R."):
            file.writestr("x/data.pkl", content)


def wide(path: Path) -> None:
    """A tensor of 400 GB whose rows are all the same four bytes."""
    torch.save({"a": torch.zeros(1).expand(10**6, 10**5)}, path)


def doubled(levels: int) -> Any:
    """A list of 2 ** levels elements that takes a few bytes."""
    content: Any = [1]
    for _ in range(levels):
        content = [content, content]
    return content


def nested(levels: int) -> bytes:
    return b"\x80\x02" + b"(" * levels + b"t" * levels + b"."


def itself() -> nn.Module:
    module = nn.Sequential(nn.Linear(2, 2))
    module._modules["again"] = module
    return module


def after_a_zip(path: Path) -> None:
    """Begins as an old pickle, and ends as a harmless zip."""
    file = io.BytesIO()
    torch.save({"a": torch.zeros(1)}, file)
    old = io.BytesIO()
    torch.save(Call(os.system, ("touch ran",)), old, _use_new_zipfile_serialization=False)
    path.write_bytes(old.getvalue() + file.getvalue())


def torchscript(path: Path) -> None:
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)), path)


def row(name: str, what: str, write: Callable[[Path], None], refusal: str, suffix: str = ".pt") -> Hostile:
    def into(folder: Path) -> list[str]:
        write(folder / f"x{suffix}")
        return ["explain", f"x{suffix}"]

    return Hostile(name, what, into, refusal)


def _hostile() -> Iterator[Hostile]:
    touch = Call(os.system, ("touch ran",))
    run = Call(exec, ("open('ran', 'w').close()",))
    # Routes to code ---------------------------------------------------------------------------------------
    yield row("alone", "a call of os.system", saved(touch), "wants posix.system")
    yield row("in a state dict", "a call beside weights", saved({"a": torch.zeros(1), "b": touch}), "wants")
    yield row("in a module", "a call as an attribute", saved(lambda: linear(x=touch)), "wants")
    yield row("exec", "a call of exec", saved(run), "wants __builtin__.exec")
    yield row("eval", "a call of eval", saved(Call(eval, ("open('ran', 'w')",))), "wants __builtin__.eval")
    yield row("getattr", "a call of getattr", saved(Call(getattr, (nn.Linear, "forward"))), "getattr")
    yield row("import", "a call of __import__", saved(Call(__import__, ("antigravity",))), "__import__")
    yield row(
        "torch.load",
        "a call of torch.load",
        saved(Call(torch.load, ("other.pt",))),
        "torch.serialization.load",
    )
    yield row(
        "hub", "a call of torch.hub.load", saved(Call(torch.hub.load, ("a/b", "c"))), "wants torch.hub.load"
    )
    yield row(
        "old format",
        "a call before torch 1.6",
        saved(touch, _use_new_zipfile_serialization=False),
        "wants posix.system",
        ".pth",
    )
    yield row("two formats", "an old pickle in front of a harmless zip", after_a_zip, "wants posix.system")
    yield row(
        "plain pickle",
        "a pickle that torch did not write",
        lambda path: _write(path, pickle.dumps(touch)),
        "cannot be read",
    )
    yield row(
        "stack global",
        "a name in the newer spelling",
        raw(b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x09touch ran\x85R."),
        "wants os.system",
    )
    yield row(
        "INST", "the oldest spelling of a call", raw(b"(S'touch ran'\nios\nsystem\n."), "cannot be read"
    )
    yield row("extension", "a name by a number", raw(b"\x80\x02\x82\x01)R."), "cannot be read")
    yield row("TorchScript", "a scripted module", torchscript, "cannot be read")
    # The trusted set ----------------------------------------------------------------------------------------
    yield row(
        "lazy mapping",
        "the gadget: a state that looks names up as it is read",
        saved(gadget),
        "_LazyConfigMapping",
    )
    yield row(
        "state of a mapping", "a state that is no dict", saved(New(nn.Linear, OrderedDict(a=1))), "a state"
    )
    yield row("state of a list", "a state that is a list", saved(New(nn.Linear, [("eval", 1)])), "a state")
    yield row("no state", "a call of a trusted class", saved(Call(TinyViT)), "a state")
    yield row(
        "arguments", "arguments for a trusted class", saved(New(nn.Linear, module_state(), (1,))), "a state"
    )
    for method in ("eval", "forward", "train", "__call__", "named_parameters", "_call_impl"):
        yield row(
            f"shadow {method}",
            "a method that is replaced",
            saved(functools.partial(linear, **{method: nn.ReLU()})),
            method,
        )
    yield row(
        "shadow in a configuration",
        "a method of a configuration that is replaced",
        saved(lambda: _config(to_dict=nn.ReLU())),
        "to_dict",
    )
    yield row(
        "shadow a property",
        "a property that is replaced",
        saved(lambda: _config(use_return_dict=1)),
        "use_return_dict",
    )
    yield row("hook", "a hook", saved(lambda: linear(_forward_hooks=OrderedDict({0: nn.ReLU()}))), "hooks")
    yield row("compiled call", "a call that was compiled", saved(lambda: _compiled()), "_compiled_call_impl")
    yield row(
        "partial of a call",
        "partial with arguments for os.system",
        saved(lambda: linear(x=functools.partial(os.system, "touch ran"))),
        "wants posix.system",
    )
    yield row(
        "partial of a loader",
        "partial of a class that loads",
        saved(lambda: linear(x=functools.partial(TinyViT))),
        "itself, not an instance",
    )
    yield row(
        "partial of a partial",
        "partial of an instance",
        saved(lambda: linear(x=functools.partial(nn.ReLU(), 1))),
        "else than a function",
    )
    yield row(
        "call of a function",
        "a trusted function that is called",
        saved(Call(nn.functional.relu, (torch.ones(1),))),
        "calls torch.nn.functional.relu",
    )
    yield row(
        "class",
        "a trusted class, not an instance",
        saved(lambda: linear(x=TinyViT)),
        "itself, not an instance",
    )
    yield row(
        "loader of timm",
        "a function of timm that loads",
        saved(Call(_timm("create_model"), ("x",))),
        "create_model",
    )
    yield row(
        "converter",
        "a name in a file of transformers that converts",
        raw(b"\x80\x02ctransformers.models.vit.convert_vit_to_pytorch\nmain\n)R."),
        "wants transformers",
    )
    yield row(
        "graph module",
        "a module that carries code",
        saved(lambda: torch.fx.symbolic_trace(nn.Linear(2, 2))),
        "wants torch.fx",
    )
    yield row("attribute of a tensor", "a parameter with a method of its own", saved(_marked), "attribute")
    yield row(
        "module for a parameter",
        "a module where parameters are",
        saved(lambda: linear(_parameters={"weight": nn.ReLU()})),
        "_parameters",
    )
    yield row("no parameters", "a module without its dicts", saved(New(nn.Linear, {})), "_modules")
    yield row(
        "name that is a number",
        "an attribute whose name is no text",
        saved(New(nn.Linear, {1: 2})),
        "attribute 1",
    )
    for name in ("flash_attention_2", "evil/kernel", nn.ReLU()):
        yield row(
            f"attention {name} in a configuration",
            "an attention that is fetched when it is called",
            saved(functools.partial(_config, _attn_implementation_internal=name)),
            "_attn_implementation_internal",
        )
    yield row(
        "attention of no configuration",
        "the same, of a module where a configuration is",
        saved(lambda: linear(config=linear(_attn_implementation="flash_attention_2"))),
        "_attn_implementation",
    )
    yield row(
        "kernels",
        "a model that fetches kernels as eval() is called",
        saved(lambda: linear(_use_kernels=1)),
        "_use",
    )
    yield row("enum", "a member that an enumeration has not", saved(_no_member), "cannot be read")
    yield row("enum of a list", "a member by something else than a value", saved(_no_value), "one value")
    yield row(
        "generation", "a state of a configuration that is no dict", saved(New(GenerationConfig, 1)), "a state"
    )
    yield row("set state of its own", "a class that reads its state itself", saved(_own_setstate), "wants")
    # Floods -------------------------------------------------------------------------------------------------
    yield row("bytearray", "a hundred gigabytes by a number", saved(Call(bytearray, (10**11,))), "bytearray")
    yield row(
        "storage", "memory by a number", raw(b"\x80\x02ctorch\nFloatTensor\nJ\xff\xff\xff\x7f\x85R."), "wants"
    )
    yield row("wide", "a tensor of 400 GB in 4 bytes", wide, "more than the file's own size")
    yield row("meta", "a tensor without numbers", saved({"a": torch.zeros(9, device="meta")}), "wants")
    yield row("sparse", "a sparse tensor", saved({"a": torch.zeros(9).to_sparse()}), "wants")
    yield row(
        "doubled",
        "a list of 2 ** 60 elements",
        saved({"a": torch.zeros(1), "b": doubled(60)}),
        "neither a module",
    )
    yield row("deep", "lists in lists", raw(nested(100_000)), "nests more than")
    yield row("itself", "a module that contains itself", saved(itself), "contains itself")
    yield row("compressed", "a compressed archive", compressed, "compressed archive")
    yield row("twice", "an archive with two pickles of one name", twice, "two entries of one name")
    yield row(
        "many objects",
        "a million calls",
        raw(b"\x80\x02ccollections\nOrderedDict\nq\x01" + b"h\x01)R0" * 400_000 + b"N."),
        "more than",
    )
    yield row("endless", "a pickle of 32 MiB", raw(b"\x80\x02" + b"N0" * (16 << 20) + b"N."), "MiB")
    yield row("cut", "a file cut short", _cut, "cannot be read")
    yield row("empty", "no bytes", lambda path: _write(path, b""), "cannot be read")
    yield row("pipe", "a pipe that nobody writes to", os.mkfifo, "not a file")
    yield row("folder", "a folder", lambda path: path.mkdir(), "not a file")
    yield row(
        "image size",
        "a model for images of 100,000 pixels' side",
        saved(lambda: tiny(image_size=100_000)),
        "the model says",
    )
    yield row(
        "mistyped",
        "a module whose attributes are of other types",
        saved(lambda: tiny(pretrained_cfg={"input_size": "large"}, image_size=None)),
        "no example input",
    )


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def _config(**attributes: Any) -> Any:
    config = ViTConfig()
    vars(config).update(attributes)
    return linear(config=config)


def _compiled() -> Any:
    return New(nn.Linear, module_state(_compiled_call_impl=nn.ReLU()))


def _timm(name: str) -> Any:
    import timm

    return getattr(timm, name)


def _marked() -> Any:
    parameter = nn.Parameter(torch.zeros(2, 2))
    parameter.sum = "mine"  # type: ignore[method-assign, assignment]
    return linear(_parameters={"weight": parameter, "bias": None})


def _no_member() -> Any:
    return linear(x=Call(_enum(), ("nothing",)))


def _no_value() -> Any:
    return linear(x=Call(_enum(), ([1],)))


def _enum() -> Any:
    from timm.layers.format import Format

    return Format


def _own_setstate() -> Any:
    return New(torch.nn.utils.parametrizations._WeightNorm, {})


def _cut(path: Path) -> None:
    torch.save({"a": torch.zeros(1000)}, path)
    path.write_bytes(path.read_bytes()[:-500])


HOSTILE = tuple(_hostile())
BY_NAME = {case.name: case for case in HOSTILE}
