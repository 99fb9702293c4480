"""Models of timm: by name, from the hub, from a folder.

    timm:vit_tiny_patch16_224?num_classes=10&img_size=96    with arguments of timm.create_model

The arguments are a closed set, each of one kind of value: whoever names a source chooses sizes and words of a
short list, and nothing else reaches timm.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from prunec.errors import SourceError, UsageError, brief, did_you_mean
from prunec.frontend import folders
from prunec.frontend.source import Asked, Source, made
from prunec.frontend.source_reading import GRAMMAR, folder_of, hub, need, reading, with_weights

POOLINGS = ("avg", "avgmax", "map", "max", "token")


def timm_named(spec: str, name: str, asked: Asked) -> Source:
    """A model by its name, with the tag of its weights and with arguments, or without."""
    timm = need("timm", "timm", spec)
    name, _, query = name.partition("?")
    arguments = _arguments(spec, query)
    arch, _, tag = name.partition(".")
    if not timm.is_model(arch):
        raise SourceError(
            f"timm has no model {arch!r}{did_you_mean(arch, timm.list_models())}",
            where=f"source {spec!r}",
            remedy=f"choose a name of timm.list_models(), or write {GRAMMAR}",
        )
    tags = [full.partition(".")[2] for full in timm.list_pretrained(f"{arch}.*")]
    if tag and tag not in tags:
        raise SourceError(
            f"timm has no weights {tag!r} for {arch}{did_you_mean(tag, tags)}",
            where=f"source {spec!r}",
            remedy=f"leave the tag out, or choose one of {', '.join(tags)}" if tags else "leave the tag out",
        )
    reason = "as asked" if not asked.pretrained else "" if tags else "timm has none for it"
    with reading(spec), contextlib.nullcontext() if reason else hub():
        module, weights, notes = with_weights(
            lambda load: timm.create_model(name, pretrained=load, **arguments), reason
        )
    classes = arguments.get("num_classes")
    trained = _config(module).get("num_classes")
    if weights == "pretrained" and classes and classes != trained:
        notes += (f"the head of {classes} classes is random: the pretrained weights have {trained}",)
    return made(spec, module, weights, notes, asked)


def timm_elsewhere(spec: str, place: str, asked: Asked) -> Source:
    """hf-hub: and local-dir: are schemes of timm itself."""
    timm = need("timm", "timm", spec)
    name = spec
    if is_local := spec.startswith("local-dir:"):
        place = str(folder_of(spec, place, "timm.models.save_for_hf"))
        name = f"local-dir:{place}"
    with reading(spec), hub(local=is_local):
        if is_local:
            folders.check_timm(Path(place))
        else:
            weights_of, _, arguments = timm.models.load_model_config_from_hf(place)
            folders.check_arguments(arguments, weights_of)
        module, weights, notes = with_weights(
            lambda load: timm.create_model(name, pretrained=load), "" if asked.pretrained else "as asked"
        )
    return made(spec, module, weights, notes, asked)


def is_name(name: str) -> bool:
    """Whether timm is installed and has such a model."""
    try:
        import timm
    except ModuleNotFoundError:
        return False
    return bool(timm.is_model(name.partition("?")[0].partition(".")[0]))


# Arguments --------------------------------------------------------------------------------------------------


def _arguments(spec: str, query: str) -> dict[str, Any]:
    """The arguments after a `?`; UsageError where one is unknown or has another kind of value."""
    found: dict[str, Any] = {}
    for part in query.split("&") if query else ():
        name, _, value = part.partition("=")
        if name not in ARGUMENTS or name in found:
            why = (
                "is given twice" if name in found else f"is none that is taken{did_you_mean(name, ARGUMENTS)}"
            )
            raise UsageError(
                f"the argument {brief(name, 40)!r} {why}",
                where=f"source {brief(spec)!r}",
                remedy=f"the arguments are {', '.join(ARGUMENTS)}, as in timm:ID?num_classes=10&img_size=96",
            )
        try:
            found[name] = ARGUMENTS[name](value)
        except ValueError as error:
            raise UsageError(
                f"the argument {name} cannot be {brief(value, 40)!r}: it is {error}",
                where=f"source {brief(spec)!r}",
                remedy="correct it, or leave it out",
            ) from error
    return found


def _number(most: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        if not re.fullmatch(r"\d{1,9}", text, re.ASCII) or int(text) > most:
            raise ValueError(f"a whole number up to {most}")
        return int(text)

    return read


def _side(text: str) -> int | tuple[int, int]:
    sides = [int(part) for part in text.split("x") if re.fullmatch(r"[1-9]\d{0,3}", part, re.ASCII)]
    if len(sides) != text.count("x") + 1 or len(sides) > 2:
        raise ValueError("a number of pixels such as 224, or height and width such as 224x160")
    return sides[0] if len(sides) == 1 else (sides[0], sides[1])


def _pooling(text: str) -> str:
    if text not in POOLINGS:
        raise ValueError(f"one of {', '.join(POOLINGS)}")
    return text


def _choice(text: str) -> bool:
    if text not in ("true", "false"):
        raise ValueError("true or false")
    return text == "true"


#: Arguments of timm.create_model that a source may give, and what reads their values.
ARGUMENTS: Mapping[str, Callable[[str], Any]] = {
    "num_classes": _number(1_000_000),
    "img_size": _side,
    "in_chans": _number(64),
    "patch_size": _side,
    "global_pool": _pooling,
    "dynamic_img_size": _choice,
}


# Checkpoints of other sizes ---------------------------------------------------------------------------------


def named_for(spec: str, module: nn.Module, state: Mapping[str, Tensor]) -> str:
    """The source with the classes, channels and sizes of a checkpoint; as it is where those fit.

    Args:
        spec: a model of timm by its name; arguments that it gives are left alone.
        module: that model.
        state: the checkpoint.
    """
    config, own = _config(module), module.state_dict()
    found: dict[str, object] = {}
    heads = config.get("classifier") or ()
    for head in (heads,) if isinstance(heads, str) else heads:
        name = f"{head}.weight"
        if name in state and (name not in own or own[name].shape != state[name].shape):
            found["num_classes"] = len(state[name])
        elif name in own and name not in state:
            found["num_classes"] = 0
    name = f"{config.get('first_conv')}.weight"
    patch = None
    if name in own and name in state and own[name].dim() == state[name].dim() == 4:
        before, after = own[name].shape, state[name].shape
        patch = tuple(after[2:])
        if after[1] != before[1]:
            found["in_chans"] = after[1]
        if after[2:] != before[2:]:
            found["patch_size"] = "x".join(map(str, patch))
    side = _side_of(module, own, state)
    if side is not None and patch is not None:
        found["img_size"] = f"{side * patch[0]}x{side * patch[1]}"
    name, _, query = spec.partition("?")
    given = dict(part.split("=") for part in query.split("&")) if query else {}
    arguments = {**found, **given}
    return name + ("?" if arguments else "") + "&".join(f"{key}={value}" for key, value in arguments.items())


def _side_of(module: nn.Module, own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> int | None:
    """How many patches lie beside each other, where the position embedding is of another square than here."""
    grid = getattr(getattr(module, "patch_embed", None), "grid_size", None)
    before, after = own.get("pos_embed"), state.get("pos_embed")
    if grid is None or before is None or after is None or before.dim() != 3 or after.dim() != 3:
        return None
    count = after.shape[1] - (before.shape[1] - math.prod(grid))
    side = math.isqrt(max(count, 0))
    return side if before.shape != after.shape and side and side * side == count else None


def _config(module: nn.Module) -> Mapping[str, Any]:
    said = getattr(module, "pretrained_cfg", None)
    return said if isinstance(said, Mapping) else {}
