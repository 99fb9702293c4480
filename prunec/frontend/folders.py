"""What a folder or repository of a model says of itself, looked at before its library reads it.

transformers and timm take from a configuration what to build, and much else that a model to be pruned has no
need of: files elsewhere, code of other libraries, kernels to fetch. Each of these is an error that names it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from prunec import documents
from prunec.errors import SourceError, brief
from prunec.files.trust import ATTENTIONS

#: Arguments of timm.create_model that say where weights come from.
PLACES = frozenset(
    {
        "cache_dir",
        "checkpoint_path",
        "pretrained",
        "pretrained_cfg",
        "pretrained_cfg_overlay",
        "pretrained_strict",
    }
)
#: Keys of timm's pretrained_cfg that do the same.
PLACES_OF_WEIGHTS = ("custom_load", "hf_hub_filename", "state_dict")
#: Files of weights that no pickle is in, which transformers reads before others, and timm.
SAFE = {
    "hf": ("model.safetensors", "model.safetensors.index.json"),
    "local-dir": ("model.safetensors",),
}
PICKLES = (".bin", ".pt", ".pth", ".tar")
MOST_PARTS = 1000


class Refused(ValueError):  # noqa: N818 - the reader makes an error of it
    """A folder or repository asks for what is not done without consent; the message says what."""


def check_weights(folder: Path, scheme: str) -> None:
    """Refused where the weights in a folder are a pickle, which its library would read.

    Args:
        folder: where they are.
        scheme: whose folder it is, one of SAFE.
    """
    for index in folder.rglob("*.index.json"):
        names = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        if wrong := sorted(
            {name for name in names if Path(name).name != name or not name.endswith(".safetensors")}
        ):
            raise Refused(f"{index.name} lists {wrong[0]!r}, which is no .safetensors file beside it")
    if any((folder / name).is_file() for name in SAFE[scheme]):
        return
    if pickles := sorted(path.name for path in folder.iterdir() if path.suffix in PICKLES):
        raise Refused(
            f"{pickles[0]} is a pickle: write the weights as model.safetensors, or give --allow-pickle if "
            "you trust whoever made the folder"
        )


def check_config(config: Any) -> None:
    """Refused where a configuration of transformers asks for more than a model of the installed libraries."""
    for count, part in enumerate(_parts(config)):
        if count > MOST_PARTS:
            raise Refused(f"its configuration has more than {MOST_PARTS} parts")
        attention = getattr(part, "_attn_implementation", None)
        if attention not in ATTENTIONS:
            raise Refused(
                f"its configuration asks for the attention kernel {attention!r}, which may be fetched"
            )
        if getattr(part, "quantization_config", None):
            raise Refused("its weights are quantized, and other libraries would decode them")
        for name in ("architecture", "backbone"):  # models of timm inside those of transformers
            if ":" in str(getattr(part, name, "")):
                raise Refused(f"its configuration names a model elsewhere, {getattr(part, name)!r}")
        if str(getattr(part, "transformers_weights", None)).endswith(".bin"):
            raise Refused("its configuration names a pickle as its weights")
        check_arguments(getattr(part, "model_args", None) or {}, {})


def check_arguments(arguments: Any, weights: Any) -> None:
    """Refused where the configuration of a timm model says where its weights are.

    Args:
        arguments: its saved arguments of timm.create_model.
        weights: its pretrained_cfg.
    """
    if not isinstance(arguments, Mapping) or not isinstance(weights, Mapping):
        raise Refused("its configuration has no mapping where one belongs")
    if places := sorted(PLACES & arguments.keys()) or [key for key in PLACES_OF_WEIGHTS if weights.get(key)]:
        raise Refused(f"its configuration says where weights are: {', '.join(places)}")


def check_timm(folder: Path) -> None:
    """`check_arguments` of a folder that timm.models.save_for_hf wrote."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if not isinstance(config, dict):
        raise Refused("its configuration has no mapping where one belongs")
    check_arguments(config.get("model_args") or {}, config.get("pretrained_cfg") or config)


def spec_of(folder: Path, spec: str) -> str:
    """The SOURCE, with its scheme, of a folder that is given without one.

    Raises:
        SourceError: it is no folder of a model, with what such a folder holds.
    """
    if (folder / "prunec.json").is_file():
        raise SourceError(
            "the folder is an artefact of prunec, not a model to start from",
            where=f"source {brief(spec)!r}",
            remedy="give the source that its prunec.json names; prunec.load(folder) gives its module",
        )
    try:
        config = documents.load(folder / "config.json", "json")
    except documents.Unreadable as error:
        raise SourceError(
            f"the folder is that of no model: its config.json {error}",
            where=f"source {brief(spec)!r}",
            remedy="a folder holds config.json and model.safetensors, as save_pretrained of transformers or "
            "timm.models.save_for_hf writes them",
        ) from error
    if isinstance(config, dict) and "architecture" in config and "model_type" not in config:
        return f"local-dir:{spec}"
    return f"hf:{spec}" if spec.startswith((".", "/", "~")) else f"hf:./{spec}"


def check_adapter(where: str, *, local: bool) -> None:
    """Refused where the weights are an adapter: peft would read it, and import what it names."""
    from transformers.utils import find_adapter_config_file, is_peft_available

    if is_peft_available() and find_adapter_config_file(where, local_files_only=local):
        raise Refused("it has an adapter: merge it into the model with peft, and save that")


def _parts(config: Any) -> Iterator[Any]:
    """A configuration and those inside it."""
    left = [config]
    while left:
        part = left.pop()
        if isinstance(part, Mapping):
            left.extend(part.values())
        elif isinstance(part, list | tuple):
            left.extend(part)
        elif hasattr(part, "model_type"):
            yield part
            left.extend(vars(part).values())
