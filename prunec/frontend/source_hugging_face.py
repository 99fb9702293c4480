"""Models of transformers: from the hub, from a folder."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from prunec import documents
from prunec.capture.example_inputs import config_size, infer
from prunec.errors import first_sentence
from prunec.frontend import folders, processors
from prunec.frontend.source import Asked, Source, made
from prunec.frontend.source_reading import folder_of, hub, need, path_of, reading, with_weights


def hugging_face(spec: str, name: str, asked: Asked) -> Source:
    """A model of the hub or of a folder, with what its processor says of pictures."""
    transformers = need("transformers", "hf", spec)
    local = path_of(spec, name)
    if name.startswith((".", "/", "~")):
        local = folder_of(spec, name, "save_pretrained")
    where = str(local) if local.is_dir() else name
    options = {"trust_remote_code": False, "local_files_only": local.is_dir()}
    found: list[str] = []

    def build(load: bool) -> nn.Module:
        if not load:
            module: nn.Module = cls._from_config(config, dtype=torch.float32)
            return module
        # The dtype is given because a checkpoint saved in half precision would compute in it.
        module, info = cls.from_pretrained(
            where, config=config, dtype=torch.float32, output_loading_info=True, **options
        )
        found.extend(sorted(info["missing_keys"]))
        return module

    with reading(spec), hub(local=local.is_dir()):
        config = transformers.AutoConfig.from_pretrained(where, **options)
        folders.check_config(config)
        folders.check_adapter(where, local=local.is_dir())
        cls = _model_class(transformers, config)
        module, weights, notes = with_weights(build, "" if asked.pretrained else "as asked")
        processor = _processor(transformers, where, local)
    if found:
        shown = ", ".join(found[:3]) + (", ..." if len(found) > 3 else "")
        notes += (f"{len(found)} parameters are not in the checkpoint and are random: {shown}",)
    asked, more = _at_its_size(asked, module, processor)
    return made(spec, module, weights, (*notes, *more), asked, processor=processor)


def _processor(transformers: ModuleType, where: str, local: Path) -> Mapping[str, Any] | None:
    """What the processor's configuration says, in the folder, on the hub or in its cache."""
    try:
        said = processors.read_folder(local if local.is_dir() else _downloaded(where))
    except documents.Unreadable as error:
        raise folders.Refused(f"{processors.FILE} {error}") from error
    return None if said is None else processors.with_defaults(said, transformers)


def _downloaded(name: str) -> Path:
    """The folder of the cache that holds the processor's configuration, if there is one to be had."""
    from huggingface_hub import hf_hub_download

    for file in processors.FILES:
        try:
            return Path(hf_hub_download(name, file)).parent
        except Exception:  # noqa: BLE001, PERF203 - most models have one of the two; a model with neither is refused later
            continue
    return Path(name)


def _at_its_size(
    asked: Asked, module: nn.Module, processor: Mapping[str, Any] | None
) -> tuple[Asked, tuple[str, ...]]:
    """The input at the size that the processor gives pictures, where the model takes that; else a note."""
    size = processors.input_size(processor)
    if size is None or asked.example is not None or asked.size is not None:
        return asked, ()
    own = config_size(module.config)
    if own is not None and own[1:] == size:
        return asked, ()
    at_size = dataclasses.replace(asked, image_size=size)
    try:
        args, kwargs = infer(module, size)
        with torch.no_grad():
            module(*(leaf[:1] for leaf in args), **{name: leaf[:1] for name, leaf in kwargs.items()})
    except Exception as error:  # noqa: BLE001 - a model may say in any way that it does not take a size
        also = "" if own is None else f", and is read at {own[1]} x {own[2]}"
        return asked, (
            f"its processor makes pictures of {size[0]} x {size[1]}, which the model does not take{also}: "
            f"{first_sentence(error)}",
        )
    return at_size, ()


def _model_class(transformers: ModuleType, config: Any) -> Any:
    """The class that the checkpoint was saved from, when transformers has it."""
    name = str((config.architectures or [""])[0])
    found = getattr(transformers, name, None)
    if found is None:
        return transformers.MODEL_MAPPING[type(config)]
    if not (isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)):
        raise ValueError(f"its configuration names {name!r} as the model, which is none")
    return found
