"""Which models the zoo walks, by rule: one of timm for each structure, each vision class of transformers.

timm's factories are run up to the point where they would build: what they hand to the builder (a class and
keyword arguments) is the structure. Sizes do not count, so ViT-S and ViT-L are one structure; a switch, a
layer class, or the presence of registers does. A family has a token stream if its code computes attention.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import inspect
import itertools
import math
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

BLOCKS, HEADS, HEAD_WIDTH = 4, 3, 16
WIDTH = HEADS * HEAD_WIDTH
CLASSES = 10
MOST_PARAMETERS = 60e6  # a model that cannot be built smaller is no row that a laptop can run
FEW_PARAMETERS = 30e6  # one that can be built within this is
LARGE_IMAGE = 256
STRIDE = 32  # of the last stage of a pyramid, or a convolutional stem


@dataclass(frozen=True)
class Case:
    """One structure: how it is called, where it comes from, and the models that share it."""

    library: str
    family: str
    model: str
    shared_by: int = 1

    @property
    def name(self) -> str:
        """`timm:vit_small_patch16_224`, `hf:ViTModel`."""
        return f"{self.library}:{self.model}"


@dataclass(frozen=True, eq=False)
class Built:
    """A small model in eval mode, an example for it, and what its configuration says about its depth."""

    module: nn.Module
    example: Any
    blocks: int | None
    how: str


def cases() -> list[Case]:
    """All, the first of each family first."""
    met: Counter[tuple[str, str]] = Counter()
    ranked = []
    for case in (*timm_cases(), *hugging_face_cases()):
        ranked.append((met[case.library, case.family], case.name, case))
        met[case.library, case.family] += 1
    return [case for *_, case in sorted(ranked, key=lambda entry: entry[:2])]


def build(case: Case) -> Built:
    torch.manual_seed(0)
    return _build_timm(case.model) if case.library == "timm" else _build_hugging_face(case)


def randomise(model: nn.Module) -> None:
    """Fill every parameter so that a term that is dropped, or a row that is swapped, shows in the output.

    LayerScale, biases, norms, tables and tokens start at zero, one or 1e-5 in most families.
    """
    generator = torch.Generator().manual_seed(1)
    weights = {
        id(part.weight) for part in model.modules() if isinstance(part, nn.Linear | nn.modules.conv._ConvNd)
    }
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if id(parameter) in weights:
                parameter.copy_(noise / max(parameter[0].numel(), 1) ** 0.5)
            elif parameter.dim() <= 1:
                parameter.add_(0.4 * noise)  # norms around one, LayerScale and biases around zero
            else:
                parameter.copy_(0.7 * noise / max(1.0, float(parameter.shape[-1]) / 64) ** 0.5)


# --- timm ------------------------------------------------------------------------------


class _Stop(Exception):  # noqa: N818  not an error: the factory has said what it would build
    def __init__(self, cls: Any, options: Mapping[str, Any]) -> None:
        super().__init__()
        self.cls, self.options = cls, options


def timm_cases() -> list[Case]:
    """One case for each class and set of structural arguments, the smallest model of each."""
    import timm

    groups: dict[Any, list[tuple[float, str]]] = defaultdict(list)
    for name in timm.list_models():
        module = timm.model_entrypoint(name).__module__
        if not has_token_stream(module):
            continue
        cls, options = blueprint(name)
        key = (module, getattr(cls, "__qualname__", str(cls)), structure(cls, options))
        groups[key].append((_bulk(options, name), name))
    found = [
        Case("timm", key[0].rpartition(".")[2], min(members)[1], len(members))
        for key, members in groups.items()
    ]
    return sorted(found, key=lambda case: case.name)


def blueprint(name: str) -> tuple[Any, dict[str, Any]]:
    """The class and the keyword arguments that a factory of timm builds from; nothing is built."""
    import timm

    def stop(cls: Any, options: Mapping[str, Any]) -> Mapping[str, Any]:
        raise _Stop(cls, options)

    with _on_the_way(stop):
        try:
            timm.model_entrypoint(name)(pretrained=False)
        except _Stop as stopped:
            return stopped.cls, dict(stopped.options)
    raise RuntimeError(f"the factory of {name} did not call timm's builder")


@contextlib.contextmanager
def _on_the_way(change: Callable[[Any, Mapping[str, Any]], Mapping[str, Any]]) -> Iterator[None]:
    """Let `change(class, options)` say what timm's builder gets instead of what a factory hands to it."""
    import timm.models

    modules = [
        module
        for key, module in list(sys.modules.items())
        if key.startswith("timm.models.") and hasattr(module, "build_model_with_cfg")
    ]
    build_model = timm.models.build_model_with_cfg

    def changed(cls: Any, variant: str, pretrained: bool, *args: Any, **options: Any) -> Any:
        if not options.get("features_only"):  # the stem of a hybrid stays
            options = dict(change(cls, options))
        return build_model(cls, variant, pretrained, *args, **options)

    for module in modules:
        module.build_model_with_cfg = changed  # type: ignore[attr-defined]
    try:
        yield
    finally:
        for module in modules:
            module.build_model_with_cfg = build_model  # type: ignore[attr-defined]


@functools.cache
def has_token_stream(module: str) -> bool:
    """Whether a module of timm defines or borrows a class that computes attention between positions."""
    classes = [value for value in vars(importlib.import_module(module)).values() if inspect.isclass(value)]
    return any(_attends(cls, module) for cls in classes if issubclass(cls, nn.Module))


def _attends(cls: type, module: str) -> bool:
    if "Pool" in cls.__name__ or not cls.__module__.startswith("timm."):
        return False
    if cls.__module__ != module and cls.__module__.startswith("timm.models."):
        # models.resnetv2 is the stem of a hybrid, models._efficientnet_blocks a drawer of parts
        borrowed = cls.__module__.removeprefix("timm.models.")
        return not borrowed.startswith(("_", "resnet")) and has_token_stream(cls.__module__)
    return bool(re.search(r"softmax\(|scaled_dot_product_attention", inspect.getsource(cls))) and not (
        "Squeeze" in cls.__name__ or "Selective" in cls.__name__ or "Split" in cls.__name__
    )


_NOT_STRUCTURE = re.compile(
    r"pretrained|feature_cfg|filter|drop|weight_init|num_classes|ref_feat|temperature|jax"
)


def structure(cls: Any, options: Mapping[str, Any]) -> Any:
    """Keyword arguments without their sizes, hashable; those at the constructor's default left out."""
    try:
        defaults = {key: value.default for key, value in inspect.signature(cls).parameters.items()}
    except (TypeError, ValueError):
        defaults = {}
    kept = {key: value for key, value in options.items() if not _NOT_STRUCTURE.search(key)}
    return tuple(
        (key, shape)
        for key, value in sorted(kept.items())
        if (shape := _shape(value)) != _shape(defaults.get(key)) and (key, shape) != ("img_size", "size")
    )


def _shape(value: Any) -> Any:
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int | float):
        return "size" if value else 0
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _shape({field.name: getattr(value, field.name) for field in dataclasses.fields(value)})
    if isinstance(value, Mapping):
        kept = {key: item for key, item in sorted(value.items()) if not _NOT_STRUCTURE.search(key)}
        return tuple((key, _shape(item)) for key, item in kept.items())
    if isinstance(value, list | tuple):
        return tuple(dict.fromkeys(map(_shape, value)))
    if isinstance(value, functools.partial):
        return (_shape(value.func), _shape(value.keywords))
    return getattr(value, "__qualname__", type(value).__name__)


def _bulk(options: Mapping[str, Any], name: str) -> float:
    """A figure that grows with the model, to choose the smallest; the name breaks ties."""
    total = 1.0
    for key, value in options.items():
        if re.search("dim|depth|layers|width|channels|img_size", key):
            numbers = value if isinstance(value, list | tuple) else [value]
            total *= max([1.0, *(float(item) for item in numbers if isinstance(item, int | float))])
    sizes = [int(part) for part in re.findall(r"_(\d{3})\b", name)]
    return total * max([1, *sizes])


def _build_timm(name: str) -> Built:
    """The smallest that the factory builds and that runs."""
    cls, options = blueprint(name)
    errors = []
    for most, (how, changes) in itertools.product((FEW_PARAMETERS, MOST_PARAMETERS), _smaller(cls, options)):
        try:
            with torch.device("meta"), contextlib.suppress(NotImplementedError):  # counted, not filled
                _check_bulk(_created(name, changes), most)
            module = _created(name, changes).eval()
            _check_bulk(module, most)
            example = _image_of(module)
        except Exception as error:  # noqa: BLE001  a factory refuses sizes in its own words
            errors.append(f"{how}: {error}")
            continue
        depth = changes.get("depth", options.get("depth"))
        return Built(module, example, _blocks(depth, module), how)
    raise ValueError("; ".join(dict.fromkeys(errors))[-600:])


def _created(name: str, changes: Mapping[str, Any]) -> nn.Module:
    import timm

    with _on_the_way(lambda _, given: {**given, **changes}):
        return timm.create_model(name, num_classes=CLASSES)  # type: ignore[no-any-return]


def _check_bulk(module: nn.Module, most: float) -> None:
    if sum(parameter.numel() for parameter in module.parameters()) > most:
        raise ValueError("too large")


def _blocks(depth: Any, module: nn.Module) -> int | None:
    """The number of blocks: what was asked for, or the longest list of equals that hold attention."""
    if isinstance(depth, int):
        return depth
    lists = [
        part for part in module.modules() if isinstance(part, nn.ModuleList | nn.Sequential) and len(part)
    ]
    return max(
        (
            len(part)
            for part in lists
            if len({type(item) for item in part}) == 1 and _holds_attention(part[0])
        ),
        default=None,
    )


def _holds_attention(module: nn.Module) -> bool:
    return any(re.search("att", type(part).__name__.lower()) for part in module.modules())


def _smaller(cls: Any, options: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Ways to make a model of timm small, smallest first: what to change of its options."""
    for key in ("cfg", "model_cfg"):
        config = options.get(key)
        if dataclasses.is_dataclass(config):  # sizes stand in there, by the same names
            fields = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
            for how, changes in _ways(fields, set(fields)):
                yield how, {key: dataclasses.replace(config, **changes)}  # type: ignore[type-var]
            return
    yield from _ways(
        options, set(options) | set(inspect.signature(cls).parameters if inspect.isclass(cls) else ())
    )


def _ways(options: Mapping[str, Any], known: Collection[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    patch = options.get("patch_size", 16)
    depth, width, narrow = _depth(options, known, BLOCKS), _width(options, known), _narrow(options)
    whole = isinstance(patch, int) and patch > 1 and isinstance(depth.get("depth"), int)
    side = patch if whole else STRIDE
    images = {
        "image": {"img_size": (4 * side, 7 * side)},
        "square image": {"img_size": 6 * side},
        "larger image": {"img_size": 16 * side if whole else 7 * side},
    }
    images = images if "img_size" in known else {}
    given = {"depth, width": {**depth, **width}, "depth": depth, "depth, narrow": {**depth, **narrow}}
    if isinstance(depth.get("depth"), int):  # stages keep their pattern
        given["half the depth"] = _depth(options, known, BLOCKS // 2)
    met: list[dict[str, Any]] = []
    for names, sizes in given.items():
        for name, image in {**images, "": {}}.items():
            way = {**sizes, **image}
            if way not in met:
                met.append(way)
                yield ", ".join(filter(None, (names, name))), way
    yield "image", images.get("square image", {})
    yield "as the factory has it", {}


def _depth(options: Mapping[str, Any], known: Collection[str], blocks: int) -> dict[str, Any]:
    depth: dict[str, Any] = {}
    for key in ("depth", "depths", "layers", "serial_depths", "stages", "depth_list"):
        value = options.get(key, 12 if key == "depth" and key in known else None)
        if isinstance(value, int) and not isinstance(value, bool):
            depth[key] = min(blocks, value)
        elif isinstance(value, list | tuple) and all(isinstance(item, int) for item in value):
            groups = options.get("attn_groups")  # how many groups of three blocks hold attention
            depth[key] = type(value)(min(max(blocks // 2, 3 if groups else 1), item) for item in value)
            if groups:
                depth["attn_groups"] = type(groups)(min(1, item) for item in groups)
    return depth


def _width(options: Mapping[str, Any], known: Collection[str]) -> dict[str, Any]:
    """One width for all blocks."""
    heads = next((key for key in ("num_heads", "num_heads_outer") if key in known), None)
    plain = isinstance(options.get("embed_dim", WIDTH), int) and "embed_dim" in known
    if not plain or (heads and isinstance(options.get(heads), list | tuple)):
        return {}
    width: dict[str, Any] = {"embed_dim": WIDTH} | ({heads: HEADS} if heads else {})
    width |= {"num_kv_heads": HEADS} if options.get("num_kv_heads") else {}
    width |= {"attn_head_dim": HEAD_WIDTH} if options.get("attn_head_dim") else {}
    width |= {"head_dim": HEAD_WIDTH} if options.get("head_dim") else {}
    return width | ({"intermediate_size": 2 * WIDTH} if options.get("intermediate_size") else {})


def _narrow(options: Mapping[str, Any]) -> dict[str, Any]:
    """Widths of stages divided by one factor, heads as well: a head stays as wide, and two remain."""
    heads = options.get("num_heads")
    key = next((key for key in ("embed_dims", "embed_dim", "dims", "width_list") if options.get(key)), None)
    widths = options.get(key) if key else None
    several = [value for value in (heads, widths) if isinstance(value, list | tuple)]
    if key is None or not several or not all(isinstance(item, int) for value in several for item in value):
        return {}
    common = math.gcd(*several[0]) // 2 if several[0] is heads else math.gcd(*several[0]) // 32
    factor = math.gcd(common, *(widths if isinstance(widths, list | tuple) else [widths]))
    divided = {"num_heads": heads, key: widths} if several[0] is heads else {key: widths}
    stem = options.get("stem_width")
    if isinstance(stem, list | tuple) and not any(item % factor for item in stem):
        divided["stem_width"] = stem
    return {name: _divided(value, factor) for name, value in divided.items()} if factor > 1 else {}


def _divided(value: Any, factor: int) -> Any:
    if isinstance(value, int):
        return value // factor
    return type(value)(item // factor for item in value)


def _image_of(module: nn.Module) -> Tensor:
    """The smallest image that a model takes: a third or half of a large one, or the whole."""
    from prunec.frontend import sources

    (image,) = sources.from_module(module).args
    sides = image.shape[-2:]
    errors: list[Exception] = []
    for part in (3, 2, 1) if min(sides) > LARGE_IMAGE else (1,):
        smaller = image[..., : sides[0] // part, : sides[1] // part].contiguous()
        try:
            with torch.no_grad():
                module(smaller)
            return smaller
        except Exception as error:  # noqa: BLE001  some models take one size only
            errors.append(error)
    raise errors[-1]


# --- Hugging Face ------------------------------------------------------------------------------

#: Fields of a configuration that are made small, wherever they occur in it.
SMALL: dict[str, Any] = {
    "hidden_size": WIDTH,
    "embed_dim": WIDTH,
    "num_hidden_layers": BLOCKS,
    "depth": BLOCKS,
    "num_attention_heads": HEADS,
    "num_heads": HEADS,
    "num_key_value_heads": HEADS,
    "head_dim": HEAD_WIDTH,
    "intermediate_size": 2 * WIDTH,
    "mlp_dim": 2 * WIDTH,
    "projection_dim": WIDTH,
    "decoder_hidden_size": WIDTH,
    "decoder_intermediate_size": 2 * WIDTH,
    "decoder_num_hidden_layers": 2,
    "decoder_num_attention_heads": HEADS,
    "num_global_layers": 2,
    "num_frames": 4,
    "fusion_hidden_size": 32,
    "reassemble_hidden_size": WIDTH,
    "neck_hidden_sizes": [16, 16, 32, 32],
    "out_indices": [1, 2, 3, 4],
    "backbone_out_indices": [0, 1, 2, 3],
    "global_attn_indexes": [1, 3],
    "num_labels": CLASSES,
    "vocab_size": 64,
    "use_pretrained_backbone": False,
    "num_queries": 16,
    "decoder_layers": 2,
    "encoder_layers": 2,
    "output_channels": WIDTH,  # the neck of SAM, and what reads it
    "num_pos_feats": WIDTH // 2,
    "vit_dim": WIDTH,
    "post_conv_in_channels": WIDTH,
    "image_embedding_size": 8,
    "window_size": 4,
}
#: Fields that follow from others.
DERIVED = {"model_type", "architectures", "transformers_version", "out_features", "stage_names", "dtype"}
GRID = 8  # patches along each side
#: What the rule above gets wrong, by model type: dependent fields that must agree with each other.
EXCEPTIONS: dict[str, dict[str, Any]] = {
    "beit": {"out_indices": [1, 2, 3, 4], "image_size": 96},
    "dpt": {"is_hybrid": False, "neck_ignore_stages": []},
    "llama4_vision_model": {"intermediate_size": 4 * WIDTH},
    "vivit": {"tubelet_size": [2, 16, 16]},
    "zoedepth": {"bottleneck_features": 32, "fusion_hidden_size": 32},
    "vitmatte": {"fusion_hidden_sizes": [32, 16, 16, 16]},
    "lw_detr": {"projector_scale_factors": [1.0]},
    "sapiens2_head": {
        "upsample_out_channels": [32, 16],
        "upsample_kernel_sizes": [4, 4],
        "conv_out_channels": [16],
        "conv_kernel_sizes": [1],
    },
    "eomt": {"num_blocks": 1, "num_upscale_blocks": 1},
    "eomt_dinov3": {"num_blocks": 1, "num_upscale_blocks": 1},
}


def hugging_face_cases() -> list[Case]:
    """Every class of transformers that takes an image alone and has a configuration with blocks."""
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    transformers.logging.set_verbosity_error()
    found: dict[str, Case] = {}
    for kind in CONFIG_MAPPING:
        try:
            config = CONFIG_MAPPING[kind]()
        except Exception:  # noqa: BLE001  a configuration without defaults cannot be made small by rule
            continue
        if not any(map(_sees_images, (config, getattr(config, "backbone_config", None), _part(config)))):
            continue
        for cls in _classes(type(config)):
            family = cls.__module__.rpartition(".")[2].removeprefix("modeling_")
            found[cls.__name__] = Case("hf", family, cls.__name__)
    return sorted(found.values(), key=lambda case: case.name)


def _part(config: Any) -> Any:
    return getattr(config, "vision_config", None)


def _sees_images(config: Any) -> bool:
    fields = ("image_size", "patch_size", "hidden_size", "num_hidden_layers")
    return all(getattr(config, field, None) is not None for field in fields)


def _classes(config: type) -> list[type]:
    """The model classes of a configuration whose forward takes pixel values and needs nothing else.

    One that asks for the sizes of grids (grid_thw) takes the patches of several images in one row instead.
    """
    import transformers

    try:
        module = importlib.import_module(config.__module__.replace("configuration_", "modeling_"))
    except ModuleNotFoundError:
        return []
    return [
        value
        for value in vars(module).values()
        if inspect.isclass(value)
        and issubclass(value, transformers.PreTrainedModel)
        and value.__module__ == module.__name__
        and getattr(value, "config_class", None) is config
        and not value.__name__.endswith("PreTrainedModel")
        and _takes_an_image_alone(value)
    ]


def _takes_an_image_alone(cls: type) -> bool:
    parameters = list(inspect.signature(cls.forward).parameters.values())[1:]  # type: ignore[attr-defined]
    named = [parameter for parameter in parameters if parameter.kind is not parameter.VAR_KEYWORD]
    required = [parameter.name for parameter in named if parameter.default is parameter.empty]
    names = {parameter.name for parameter in named}
    return bool(named) and named[0].name == "pixel_values" and set(required) <= {"pixel_values"} and not (
        names & {"input_ids", "decoder_input_ids", "grid_thw", "target_sizes"}
    )  # fmt: skip


def _build_hugging_face(case: Case) -> Built:
    import transformers

    transformers.logging.set_verbosity_error()
    cls = getattr(transformers, case.model, None)
    if cls is None:
        module = importlib.import_module(f"transformers.models.{case.family}.modeling_{case.family}")
        cls = getattr(module, case.model)
    config = smaller(cls.config_class)
    errors = []
    for attention in ("sdpa", "eager"):
        try:
            model = cls._from_config(config, attn_implementation=attention).eval()
        except Exception as error:  # noqa: BLE001  a class may not know an implementation of attention
            errors.append(f"{attention}: {_line(error)}")
            continue
        _check_bulk(model, MOST_PARAMETERS)
        for example in _examples(model, config):
            try:
                with torch.no_grad():
                    model(**example)
            except Exception as error:  # noqa: BLE001  the next layout may be right
                errors.append(f"{attention}: {_line(error)}")
                continue
            seen = next(part for part in _parts(config) if _sees_images(part))
            return Built(model, example, seen.num_hidden_layers, f"configuration shrunk, {attention}")
    raise ValueError("; ".join(errors)[-600:])


def _parts(config: Any) -> list[Any]:
    return [config, getattr(config, "backbone_config", None), _part(config)]


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip() or '?').splitlines()[0][:160]}"


def smaller(cls: Callable[..., Any]) -> Any:
    """A configuration with every size field made small, in its parts too."""
    return cls(**_changes(cls()))


def _changes(config: Any) -> dict[str, Any]:
    held = {key: getattr(config, key, None) for key in {*config.to_dict(), *config.attribute_map.values()}}
    # depth first: other fields are lists with one entry for each layer or stage
    changes = {key: value for key, value in SMALL.items() if held.get(key) is not None and held[key] != 0}
    if held.get("hidden_size") is None:
        changes = {key: value for key, value in changes.items() if "heads" not in key}
    if isinstance(held.get("depths"), list | tuple) or isinstance(held.get("embed_dim"), list | tuple):
        changes = {key: value for key, value in changes.items() if key == "window_size"}
        changes |= {"depths": [2] * len(held["depths"])} if held.get("depths") else {}
    patch = held.get("patch_size")
    if isinstance(held.get("image_size"), int) and isinstance(patch, int):
        changes["image_size"] = min(4 * GRID * patch, 128) if held.get("depths") else GRID * patch
    elif isinstance(held.get("image_size"), list | tuple) and isinstance(patch, int | list | tuple):
        sides = patch if isinstance(patch, list | tuple) else [patch, patch]
        changes["image_size"] = type(held["image_size"])([GRID * sides[-2], GRID * sides[-1]])
    for key in held:
        if hasattr(held[key], "to_diff_dict"):
            kept = {name: value for name, value in held[key].to_diff_dict().items() if name not in DERIVED}
            changes[key] = type(held[key])(**{**kept, **_changes(held[key])})
    return {**changes, **{k: v for k, v in EXCEPTIONS.get(config.model_type, {}).items() if k in held}}


def _examples(model: nn.Module, config: Any) -> Iterator[dict[str, Any]]:
    """Pixel values as an image, as a video and as flat patches, at the sizes that the configuration names."""
    seen = next((part for part in _parts(config) if getattr(part, "image_size", None) is not None), config)
    size, channels = seen.image_size, getattr(seen, "num_channels", None) or 3
    sides = tuple(size) if isinstance(size, list | tuple) else (size, size)
    generator = torch.Generator().manual_seed(0)
    frames = getattr(config, "num_frames", None) or getattr(config, "frames_per_clip", None)
    shapes = [(2, channels, *sides)]
    if frames:
        shapes = [(2, frames, channels, *sides), (2 * frames, channels, *sides)]
    if isinstance(patch := getattr(seen, "patch_size", None), int):
        shapes.append((2, (sides[0] // patch) * (sides[1] // patch), channels * patch**2))
    for shape in shapes:
        yield {"pixel_values": torch.randn(shape, generator=generator)}
