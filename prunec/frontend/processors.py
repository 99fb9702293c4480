"""What stands beside a model's weights about its pictures, read as data: no code of its maker's runs.

    preprocessor_config.json        of transformers: image_mean, size, crop_size, resample, ...
    pretrained_cfg                  of timm: mean, std, crop_pct, crop_mode, interpolation
    weights.transforms()            of torchvision: an object with crop_size, resize_size, mean, std

Each becomes a `Preprocess` for the size that the model's input has.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open

from prunec import documents
from prunec.data.preprocess import HALF, INTERPOLATIONS, Preprocess, are_numbers, scaled_for
from prunec.errors import PruneError, SourceError, UsageError, shown

FILE = "preprocessor_config.json"
FILES = (FILE, "processor_config.json")
#: The keys of a processor of transformers that are read.
KEYS = ("size", "crop_size", "resample", "image_mean", "image_std", "rescale_factor", "default_to_square",
        "do_resize", "do_center_crop", "do_rescale", "do_normalize")  # fmt: skip
#: Keys that distinguish it from a configuration of timm, and from single values.
MARKS = (
    "image_mean",
    "image_std",
    "image_processor_type",
    "feature_extractor_type",
    "do_normalize",
    "do_resize",
)
#: What it may do besides and changes nothing here: pictures are RGB, and there are no label maps.
HARMLESS = ("do_convert_rgb", "do_reduce_labels", "do_pad")


def read_folder(folder: Path) -> Mapping[str, Any] | None:
    """The processor's configuration in a folder; None where there is none.

    Raises:
        documents.Unreadable: a file of that name is none.
    """
    for name in FILES:
        if (folder / name).is_file() and (said := read_file(folder / name)) is not None:
            return said
    return None


def read_file(path: Path) -> Mapping[str, Any] | None:
    """A processor's configuration; None where the file describes other processors only."""
    said = documents.load(path, "json")
    if not isinstance(said, dict):
        raise documents.Unreadable("holds no mapping", "write it again with save_pretrained")
    said = said.get("image_processor", said if path.name == FILE else None)
    return said if isinstance(said, dict) else None


def beside(weights: Path) -> Mapping[str, Any] | None:
    """What a file of weights says of pictures: in its own metadata, or in a processor's file beside it."""
    if weights.suffix == ".safetensors":
        with safe_open(weights, "pt") as file:
            metadata = file.metadata() or {}
        for key in ("preprocessor_config", "pretrained_cfg"):
            if key in metadata:
                said = documents.parse(metadata[key].encode(), "json")
                return said if isinstance(said, dict) else None
    return read_folder(weights.parent)


def with_defaults(said: Mapping[str, Any], transformers: Any) -> Mapping[str, Any]:
    """With what the class that it names does where it says nothing, when transformers has that class."""
    old = str(said.get("feature_extractor_type", "")).replace("FeatureExtractor", "ImageProcessor")
    name = str(said.get("image_processor_type") or old)
    found = getattr(transformers, name, None) or getattr(transformers, name.removesuffix("Fast"), None)
    if not (isinstance(found, type) and issubclass(found, transformers.ImageProcessingMixin)):
        return said
    own = {key: getattr(found, key) for key in KEYS if getattr(found, key, None) is not None}
    return {**own, **said}


def input_size(said: Mapping[str, Any] | None) -> tuple[int, int] | None:
    """The size that a processor of transformers gives pictures; None where they keep their proportions."""
    if said is None or not said.get("do_resize", True):
        return None
    crop = said.get("crop_size") if said.get("do_center_crop") else None
    return _sides(crop) or _sides(_size(said))


def preprocess_of(said: object, size: tuple[int, int], where: str) -> Preprocess:
    """What is said, for an input of this size.

    Raises:
        SourceError: it has values that cannot be meant.
    """
    try:
        if isinstance(said, Preprocess):
            return said.at(size)
        if callable(getattr(said, "to_dict", None)):  # a processor in hand
            said = said.to_dict()  # type: ignore[attr-defined]
        if isinstance(said, Mapping):
            is_processor = any(mark in said for mark in MARKS)
            return _of_transformers(said, size) if is_processor else _of_timm(said, size)
        if hasattr(said, "resize_size") and hasattr(said, "crop_size"):
            return _of_torchvision(said, size)
    except (PruneError, AttributeError, ArithmeticError, LookupError, TypeError, ValueError) as error:
        reason = error.what if isinstance(error, PruneError) else str(error)
        raise SourceError(
            f"what the model says of its pictures cannot be meant: {reason}",
            where=where,
            remedy="correct its pretrained_cfg or preprocessor_config.json, or give --mean, --std and --crop "
            "(in Python: preprocess=)",
        ) from error
    raise UsageError(
        f"a {type(said).__name__} says nothing of pictures",
        where="preprocess",
        remedy="give a prunec.Preprocess, a mapping such as {'mean': ..., 'std': ...}, a processor of "
        "transformers, or weights.transforms() of torchvision",
    )


def describes_processing(said: object) -> bool:
    """Whether a configuration of timm says how pictures are normalised."""
    return isinstance(said, Mapping) and bool(said.get("mean") or said.get("std") or said.get("crop_pct"))


def _of_transformers(said: Mapping[str, Any], size: tuple[int, int]) -> Preprocess:
    own = _sides(_size(said))
    edge = _size(said).get("shortest_edge")
    scaled = own or ((edge, edge) if isinstance(edge, int) else None)
    if not said.get("do_resize", True):
        scaled = None
    undone = [key for key in said if key.startswith("do_") and said[key] is True]
    undone = [key for key in undone if key not in (*KEYS, *HARMLESS)]
    if scaled is None:
        undone.append(f"the size {shown(said.get('size'))}")
    crop = _sides(said.get("crop_size")) if said.get("do_center_crop") else None
    if crop is None and "crop_pct" in said and isinstance(edge, int) and edge < 384:  # ConvNext's way
        crop, scaled = (edge, edge), scaled_for((edge, edge), said["crop_pct"])
    rescale = said.get("rescale_factor", 1 / 255) if said.get("do_rescale", True) else 1.0
    normalised = said.get("do_normalize", True)
    whole = crop or own or (scaled if edge is not None and said.get("size", {}) else None) or size
    found = Preprocess(
        size=whole,
        mean=_numbers(said.get("image_mean", HALF)) if normalised else (0.0,) * 3,
        std=_numbers(said.get("image_std", HALF)) if normalised else (1.0,) * 3,
        scaled=scaled or whole,
        fit="stretch" if own else "cover",
        interpolation=INTERPOLATIONS[int(said.get("resample", 2))],  # type: ignore[arg-type]
        rescale=float(rescale),
        round_down=True,
        origin="the model's processor",
        undone=tuple(undone),
    )
    return found.at(size)


def _size(said: Mapping[str, Any]) -> Mapping[str, Any]:
    """The size as a mapping: a number is that of both sides, or of the shorter one, as the class has it."""
    size = said.get("size")
    if isinstance(size, int):
        cropped = said.get("do_center_crop", False) and "default_to_square" not in said
        square = said.get("default_to_square", not cropped)
        return {"height": size, "width": size} if square else {"shortest_edge": size}
    if isinstance(size, list | tuple) and len(size) == 2:
        return {"height": size[0], "width": size[1]}
    return size if isinstance(size, Mapping) else {}


def _sides(size: object) -> tuple[int, int] | None:
    if isinstance(size, int):
        return size, size
    if (
        isinstance(size, Mapping)
        and isinstance(size.get("height"), int)
        and isinstance(size.get("width"), int)
    ):
        return size["height"], size["width"]
    return None


def _of_timm(said: Mapping[str, Any], size: tuple[int, int]) -> Preprocess:
    mode = said.get("crop_mode") or "center"
    return Preprocess(
        size=size,
        mean=_numbers(said.get("mean") or HALF),
        std=_numbers(said.get("std") or HALF),
        scaled=scaled_for(size, said.get("crop_pct") or 1.0),
        fit="stretch" if mode == "squash" else "cover",
        interpolation=said.get("interpolation") or "bicubic",
        origin="the model's pretrained_cfg",
        undone=("the crop mode border",) if mode == "border" else (),
    )


def _of_torchvision(said: Any, size: tuple[int, int]) -> Preprocess:
    edge, crop = said.resize_size, said.crop_size
    edges = [value[0] if isinstance(value, list | tuple) else int(value) for value in (edge, crop)]
    found = Preprocess(
        size=(edges[1], edges[1]),
        mean=_numbers(said.mean),
        std=_numbers(said.std),
        scaled=(edges[0], edges[0]),
        interpolation=said.interpolation.value,
        origin="transforms of torchvision",
    )
    return found.at(size)


def _numbers(values: object) -> tuple[float, ...]:
    values = (values,) if isinstance(values, int | float) else values
    if not isinstance(values, list | tuple) or not are_numbers(values):
        raise ValueError(f"{shown(values)} are no numbers")
    return tuple(float(value) for value in values)


def values_of(said: object) -> Mapping[str, Any] | None:
    """The single values that a caller changes, where it is these and no configuration."""
    if isinstance(said, Mapping) and not any(key in said for key in (*MARKS, "input_size")):
        return said
    return None
