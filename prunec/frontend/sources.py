"""Where a model comes from: a SOURCE string, or a module of your own, becomes a module with example inputs.

    timm:ID               a model of timm, by its name;  timm:ID?num_classes=10&img_size=96 with arguments
    hf-hub:ORG/NAME       a model of timm that lies on the Hugging Face hub;  local-dir:PATH one saved on disk
    hf:ORG/NAME           a model of transformers;  hf:./folder reads one saved on disk
    ./folder              one saved on disk by either library
    pkg.module:callable   a function of yours, called without arguments, that returns an nn.Module
    FILE.safetensors      weights;  `arch`, a SOURCE too, says of what
    FILE.pt, FILE.pth     weights with `arch`, or a whole module of known packages
    FILE.pt2              a program that torch.export.save wrote
    shapes                the tiny ViT that ships with prunec
    ID                    looked up in timm

When pretrained weights cannot be had, the model is built with random ones, and the source says so.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from prunec import compat, documents
from prunec.capture.capturable import check_capturable
from prunec.capture.example_inputs import Example, exported_inputs
from prunec.capture.submodule import part_with_inputs, shared_copy
from prunec.data import tiny_vit
from prunec.errors import SourceError, UsageError
from prunec.files import files
from prunec.frontend import folders, processors
from prunec.frontend.source import Asked as Asked
from prunec.frontend.source import ImageSet as ImageSet
from prunec.frontend.source import Source as Source
from prunec.frontend.source import made
from prunec.frontend.source_hugging_face import hugging_face
from prunec.frontend.source_python import from_callable
from prunec.frontend.source_reading import (
    GRAMMAR,
    path_of,
    random_note,
    reading,
    seeded,
    working_folder_importable,
)
from prunec.frontend.source_timm import is_name, named_for, timm_elsewhere, timm_named

PT2_NOTE = "torch reads a .pt2 file with pickle machinery of its own: use one only if you trust its maker"
WEIGHT_FILES = (".pt", ".pth", ".safetensors")
PICKLED = (".pt", ".pth", ".pt2")


def load(
    spec: str,
    *,
    pretrained: bool = True,
    arch: str | None = None,
    allow_pickle: bool = False,
    example: Example | str | None = None,
    image_size: tuple[int, int] | None = None,
    preprocess: object = None,
) -> Source:
    """Read a SOURCE string.

    Args:
        spec: what to read, in the grammar at the top of this module.
        pretrained: False builds the model with random weights and needs no network. Files are always read.
        arch: a SOURCE that builds the model for a file of weights; its own weights are not loaded.
        allow_pickle: unpickle whatever a .pt, .pth or .pt2 file holds, which may run any code; let
            transformers and timm read pickled weights in a folder.
        example: an input, as for `from_module`, or its shapes as text, such as 2x3x224x224 or
            pixel_values=2x3x224x224. Inferred when left out.
        image_size: height and width of the input that is inferred.
        preprocess: how pictures become that input: a `Preprocess`, a processor of transformers, transforms of
            torchvision, or single values such as {"mean": ..., "std": ..., "crop": 0.9} in place of the
            model's own.

    Raises:
        SourceError: the model is unknown, or cannot be read, trusted or built.
        UsageError: no example input can be inferred for it, or `arch` is missing or of no use.
    """
    return read(spec, Asked(pretrained, example, image_size, preprocess, arch, allow_pickle))


def read(spec: str, asked: Asked) -> Source:
    """Read a SOURCE string, with all else that the caller says as one value; see `load`."""
    whole = _whole(in_full(spec), asked)
    return whole if asked.submodule is None else part_of(whole, asked.submodule)


def part_of(source: Source, path: str) -> Source:
    """A part of a source's model, with the inputs that it sees when the whole runs on its example.

    Raises:
        UsageError: there is no such part, or none that is called with a tensor.
    """
    if source.exported is not None:
        raise UsageError(
            "a program in a .pt2 file has no parts",
            where=f"source {source.spec!r}",
            remedy="leave --submodule out, or export the part",
        )
    part, (args, kwargs) = part_with_inputs(source.module, path, (source.args, source.kwargs))
    return dataclasses.replace(source, module=part, args=args, kwargs=kwargs, submodule=path, labels=())


def _whole(spec: str, asked: Asked) -> Source:
    scheme, colon, rest = spec.partition(":")
    suffix = "" if colon and scheme in _LOADERS else Path(spec).suffix
    if suffix in WEIGHT_FILES:
        return _weight_file(spec, asked)
    if asked.arch is not None:
        raise UsageError(
            "an architecture belongs to a file of weights",
            where=f"source {spec!r}",
            remedy=f"leave --arch out, or give a file ending in {', '.join(WEIGHT_FILES)}",
        )
    if spec == "shapes":
        return _shapes(asked)
    if suffix == ".pt2":
        return _exported(spec, asked)
    if scheme in folders.SAFE and not asked.allow_pickle and (folder := path_of(spec, rest)).is_dir():
        with reading(spec):
            folders.check_weights(folder, scheme)
    if colon:
        return _LOADERS.get(scheme, from_callable)(spec, rest, asked)
    if spec.startswith((".", "/", "~")):
        raise SourceError(
            "there is no such folder or file",
            where=f"source {spec!r}",
            remedy=f"check the path; a source is {GRAMMAR}",
        )
    if "/" in spec:
        raise SourceError(
            f"{spec!r} does not say where to look",
            where=f"source {spec!r}",
            remedy=f"write hf:{spec} for a model of transformers, hf-hub:{spec} for one of timm",
        )
    return timm_named(spec, spec, asked)


def load_named(
    spec: str, file: str | Path, asked: Asked | None = None, *, trust_source: bool = False
) -> Source:
    """Read a SOURCE that a file names: an artefact's manifest, or a plan.

    Whoever wrote the file chose it, so without consent only sources are read that run no code of their own:
    shapes, models of timm and transformers by name, and .safetensors.

    Args:
        spec: what the file names.
        file: that file, for the message.
        asked: what else it names, such as `arch`, and what the caller says.
        trust_source: read whatever it names, as if it had been typed: a function is imported and called.

    Raises:
        SourceError: as for `load`, or it names something else.
    """
    asked = asked or Asked()
    for named in (spec, asked.arch):
        if named and not trust_source and (runs_code(named) or runs_code(in_full(named))):
            raise SourceError(
                f"the file names the source {named!r}, and reading that may run code",
                where=str(file),
                remedy="if you trust whoever made the file, say so with --trust-source (in Python: "
                "trust_source=True)",
            )
    return read(spec, asked)


def in_full(spec: str) -> str:
    """A source with its scheme: a folder without one is that of the library whose configuration lies in it.

    Raises:
        SourceError: a folder that is no model's.
    """
    if ":" in spec or spec == "shapes" or Path(spec).suffix in (*WEIGHT_FILES, ".pt2"):
        return spec
    folder = path_of(spec, spec)
    named = "/" not in spec and not spec.startswith((".", "~")) and is_name(spec)
    return folders.spec_of(folder, spec) if folder.is_dir() and not named else spec


def runs_code(spec: str) -> bool:
    """Whether reading a source may run more than prunec, timm and transformers."""
    scheme, colon, _ = spec.partition(":")
    if colon:
        return scheme not in ("timm", "hf")
    return not spec.endswith(".safetensors") and ("/" in spec or Path(spec).suffix in PICKLED)


def from_module(
    module: nn.Module,
    example: Example | str | None = None,
    *,
    image_size: tuple[int, int] | None = None,
    preprocess: object = None,
) -> Source:
    """A source made of a module in hand, which is not changed.

    Args:
        module: the model. One in training mode is read through a copy that shares its tensors.
        example: an input: a tensor, a tuple of positional or a mapping of keyword inputs, or shapes as text.
            Inferred when left out, for models of timm, Hugging Face and torchvision.
        image_size: as for `load`.
        preprocess: as for `load`.

    Raises:
        UsageError: it is no model that can be captured, the example is no input, or none can be inferred.
    """
    check_capturable(module)
    notes: tuple[str, ...] = ()
    if any(part.training for part in module.modules()):
        module, notes = (
            shared_copy(module).eval(),
            ("the model was given in training mode and is read in eval mode",),
        )
    name = f"{type(module).__module__}.{type(module).__qualname__}"
    return made(name, module, "given", notes, Asked(True, example, image_size, preprocess))


# The built-in model, and files ------------------------------------------------------------------------------


def _shapes(asked: Asked) -> Source:
    with seeded():
        module = tiny_vit.classifier(pretrained=asked.pretrained)
    if asked.pretrained:
        return made("shapes", module, "shipped", (), asked)
    return made("shapes", module, "random", (random_note("as asked"),), asked)


def _weight_file(spec: str, asked: Asked) -> Source:
    arch, allow_pickle = asked.arch, asked.allow_pickle
    path = path_of(spec, spec)
    if path.suffix == ".safetensors":
        content: nn.Module | files.State = files.read_safetensors(path)
    else:
        with working_folder_importable() if allow_pickle else contextlib.nullcontext():
            content = files.read_pickled(path, allow_pickle=allow_pickle)
    if isinstance(content, nn.Module):
        if arch is not None:
            raise UsageError(
                "the file holds a whole model", where=f"source {spec!r}", remedy="leave --arch out"
            )
        with reading(spec):  # its attributes may be anything
            return made(spec, content.eval(), "file", (), asked)
    if arch is None:
        raise UsageError(
            "the file holds weights only",
            where=f"source {spec!r}",
            remedy="say what they are of: --arch timm:ID, or --arch with any other SOURCE",
        )
    build = partial(_whole, asked=dataclasses.replace(asked, pretrained=False, arch=None, allow_pickle=False))
    notes: tuple[str, ...] = ()
    model = build(in_full(arch))
    if model.spec.partition(":")[0] == "timm" or ":" not in model.spec:
        arch = named_for(model.spec, model.module, content)
        if arch != model.spec:
            model, notes = build(in_full(arch)), (f"the weights are of {arch}, by their sizes",)
    files.fill(model.module, content, path)
    said = _beside(spec, path) or model.processor
    return dataclasses.replace(model, spec=spec, weights="file", notes=notes, arch=arch, processor=said)


def _beside(spec: str, path: Path) -> Mapping[str, Any] | None:
    """What a file of weights, or a file beside it, says of pictures."""
    try:
        return processors.beside(path)
    except documents.Unreadable as error:
        raise SourceError(
            f"what stands beside the weights about pictures {error}",
            where=f"source {spec!r}",
            remedy=f"correct {processors.FILE} and the metadata of the weights, or take them away",
        ) from error


def _exported(spec: str, asked: Asked) -> Source:
    exported = files.read_exported(path_of(spec, spec), allow_pickle=asked.allow_pickle)
    if asked.example is not None or asked.image_size is not None:
        raise UsageError(
            "a program in a .pt2 file has inputs of its own",
            where=f"source {spec!r}",
            remedy="leave --example and --image-size out, or export the model anew",
        )
    args, kwargs = exported_inputs(exported)
    module = compat.unlifted(exported)
    return Source(spec, module, args, kwargs, "file", (PT2_NOTE,), exported=exported, chosen=asked.preprocess)


_LOADERS: dict[str, Callable[[str, str, Asked], Source]] = {
    "timm": timm_named,
    "hf": hugging_face,
    "hf-hub": timm_elsewhere,
    "local-dir": timm_elsewhere,
}
