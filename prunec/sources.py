"""Where a model comes from: a SOURCE string, or a module of your own, becomes a module with example inputs.

    timm:ID               a model of timm, by its name
    hf-hub:ORG/NAME       a model of timm that lies on the Hugging Face hub;  local-dir:PATH one saved on disk
    hf:ORG/NAME           a model of transformers;  hf:./folder reads one saved on disk
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
import importlib
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from prunec import compat, files, folders
from prunec.capturable import check_capturable
from prunec.data import shapes, tiny_vit
from prunec.errors import PruneError, SourceError, UsageError, brief, did_you_mean, shown
from prunec.example_inputs import Example, exported_inputs, infer, inputs
from prunec.within import shared_copy

Weights = Literal["pretrained", "random", "given", "shipped", "file"]

GRAMMAR = (
    "timm:ID, hf:ORG/NAME, hf:./folder, hf-hub:ORG/NAME, local-dir:PATH, pkg.module:callable, "
    "a .pt2, .pt, .pth or .safetensors file, or shapes"
)
PT2_NOTE = "torch reads a .pt2 file with pickle machinery of its own: use one only if you trust its maker"
WEIGHT_FILES = (".pt", ".pth", ".safetensors")
PICKLED = (".pt", ".pth", ".pt2")
PROBE_SECONDS = 3


@dataclass(frozen=True, eq=False)
class Pictures:
    """Images to measure on, normalised for the model, and how to call them in a report."""

    images: Tensor  # [n, 3, H, W]
    labels: Tensor | None  # [n]
    name: str
    classes: int | None = None  # how many the labels number, where folders name them by words


@dataclass(frozen=True, eq=False)
class Source:
    """A model in eval mode, inputs that it accepts, and where its weights come from."""

    spec: str
    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    weights: Weights
    notes: tuple[str, ...] = ()
    arch: str = ""  # the SOURCE that weights from a file were put into
    exported: ExportedProgram | None = None  # captured already, by whoever wrote the .pt2 file

    def test_images(self, count: int) -> Pictures | None:
        """Held-out images for this model, if the source knows any."""
        if self.spec != "shapes":
            return None
        seed = shapes.HELD_OUT_SEEDS[0]
        images, labels = shapes.images(shapes.CLASSIFICATION, seed, 0, count)
        return Pictures(shapes.normalize(images), labels, "held-out Shapes images")

    def calibration_images(self, count: int) -> Pictures | None:
        """Images that a policy may be fitted to, other than the test images, if the source knows any."""
        if self.spec != "shapes":
            return None
        images, labels = shapes.images(shapes.CLASSIFICATION, shapes.HELD_OUT_SEEDS[-1], 0, count)
        return Pictures(shapes.normalize(images), labels, "other held-out Shapes images")

    def normalisation(self) -> tuple[tuple[float, ...], tuple[float, ...], float]:
        """Mean, standard deviation and centre crop that the model was trained with, as far as it says so.

        Raises:
            SourceError: what it says are no such numbers.
        """
        said = getattr(self.module, "pretrained_cfg", None)
        config = said if isinstance(said, Mapping) else {}
        mean, std = config.get("mean", (0.5, 0.5, 0.5)), config.get("std", (0.5, 0.5, 0.5))
        crop = config.get("crop_pct") or 1.0
        if not (_are_numbers(mean) and _are_numbers(std) and _are_numbers([crop])) or 0 in std:
            raise SourceError(
                f"the model's images have the mean {shown(mean)}, the deviation {shown(std)} and the crop "
                f"{shown(crop)}, it says",
                where=f"source {self.spec!r}",
                remedy="correct its pretrained_cfg",
            )
        return tuple(mean), tuple(std), float(crop)


def _are_numbers(values: object) -> bool:
    return isinstance(values, tuple | list) and all(
        isinstance(value, int | float) and math.isfinite(value) for value in values
    )


def load(
    spec: str, *, pretrained: bool = True, arch: str | None = None, allow_pickle: bool = False
) -> Source:
    """Read a SOURCE string.

    Args:
        spec: what to read, in the grammar at the top of this module.
        pretrained: False builds the model with random weights and needs no network. Files are always read.
        arch: a SOURCE that builds the model for a file of weights; its own weights are not loaded.
        allow_pickle: unpickle whatever a .pt, .pth or .pt2 file holds, which may run any code; let
            transformers and timm read pickled weights in a folder.

    Raises:
        SourceError: the model is unknown, or cannot be read, trusted or built.
        UsageError: no example input can be inferred for it, or `arch` is missing or of no use.
    """
    scheme, colon, rest = spec.partition(":")
    suffix = "" if colon and scheme in _LOADERS else Path(spec).suffix
    if suffix in WEIGHT_FILES:
        return _weight_file(spec, arch, allow_pickle)
    if arch is not None:
        raise UsageError(
            "an architecture belongs to a file of weights",
            where=f"source {spec!r}",
            remedy=f"leave --arch out, or give a file ending in {', '.join(WEIGHT_FILES)}",
        )
    if spec == "shapes":
        return _shapes(pretrained)
    if suffix == ".pt2":
        return _exported(spec, allow_pickle)
    if scheme in folders.SAFE and not allow_pickle and (folder := _path(spec, rest)).is_dir():
        with _reading(spec):
            folders.check_weights(folder, scheme)
    if colon:
        return _LOADERS.get(scheme, _from_callable)(spec, rest, pretrained)
    if "/" in spec:
        raise SourceError(
            f"{spec!r} does not say where to look",
            where=f"source {spec!r}",
            remedy=f"write hf:{spec} for a model of transformers, hf-hub:{spec} for one of timm",
        )
    return _timm(spec, spec, pretrained)


def load_named(
    spec: str,
    file: str | Path,
    *,
    pretrained: bool = True,
    arch: str | None = None,
    trust_source: bool = False,
    allow_pickle: bool = False,
) -> Source:
    """Read a SOURCE that a file names: an artefact's manifest, or a plan.

    Whoever wrote the file chose it, so without consent only sources are read that run no code of their own:
    shapes, models of timm and transformers by name, and .safetensors.

    Args:
        spec: what the file names.
        file: that file, for the message.
        pretrained: as for `load`.
        arch: as for `load`; the file names it too.
        trust_source: read whatever it names, as if it had been typed: a function is imported and called.
        allow_pickle: as for `load`.

    Raises:
        SourceError: as for `load`, or it names something else.
    """
    for named in (spec, arch):
        if named and not trust_source and runs_code(named):
            raise SourceError(
                f"the file names the source {named!r}, and reading that may run code",
                where=str(file),
                remedy="if you trust whoever made the file, say so with --trust-source (in Python: "
                "trust_source=True)",
            )
    return load(spec, pretrained=pretrained, arch=arch, allow_pickle=allow_pickle)


def runs_code(spec: str) -> bool:
    """Whether reading a source may run more than prunec, timm and transformers."""
    scheme, colon, _ = spec.partition(":")
    if colon:
        return scheme not in ("timm", "hf")
    return not spec.endswith(".safetensors") and ("/" in spec or Path(spec).suffix in PICKLED)


def from_module(module: nn.Module, example: Example | None = None) -> Source:
    """A source made of a module in hand, which is not changed.

    Args:
        module: the model. One in training mode is read through a copy that shares its tensors.
        example: an input: a tensor, a tuple of positional or a mapping of keyword inputs. Inferred when
            left out, for models of timm, Hugging Face and torchvision.

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
    return _source(_name(module), module, "given", notes, example)


# One function per scheme ------------------------------------------------------------------------------------


def _shapes(pretrained: bool) -> Source:
    with _seeded():
        module = tiny_vit.classifier(pretrained=pretrained)
    if pretrained:
        return _source("shapes", module, "shipped")
    return _source("shapes", module, "random", (_random_note("as asked"),))


def _timm(spec: str, name: str, pretrained: bool) -> Source:
    timm = _need("timm", "timm", spec)
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
    reason = "as asked" if not pretrained else "" if tags else "timm has none for it"
    with _reading(spec), contextlib.nullcontext() if reason else _hub():
        module, weights, notes = _with_weights(lambda load: timm.create_model(name, pretrained=load), reason)
    return _source(spec, module, weights, notes)


def _timm_elsewhere(spec: str, place: str, pretrained: bool) -> Source:
    """hf-hub: and local-dir: are schemes of timm itself."""
    timm = _need("timm", "timm", spec)
    name = spec
    if is_local := spec.startswith("local-dir:"):
        place = str(_folder(spec, place, "timm.models.save_for_hf"))
        name = f"local-dir:{place}"
    with _reading(spec), _hub(local=is_local):
        if is_local:
            folders.check_timm(Path(place))
        else:
            weights_of, _, arguments = timm.models.load_model_config_from_hf(place)
            folders.check_arguments(arguments, weights_of)
        module, weights, notes = _with_weights(
            lambda load: timm.create_model(name, pretrained=load), "" if pretrained else "as asked"
        )
    return _source(spec, module, weights, notes)


def _hugging_face(spec: str, name: str, pretrained: bool) -> Source:
    transformers = _need("transformers", "hf", spec)
    local = _path(spec, name)
    if name.startswith((".", "/", "~")):
        local = _folder(spec, name, "save_pretrained")
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

    with _reading(spec), _hub(local=local.is_dir()):
        config = transformers.AutoConfig.from_pretrained(where, **options)
        folders.check_config(config)
        folders.check_adapter(where, local=local.is_dir())
        cls = _model_class(transformers, config)
        module, weights, notes = _with_weights(build, "" if pretrained else "as asked")
    if found:
        shown = ", ".join(found[:3]) + (", ..." if len(found) > 3 else "")
        notes += (f"{len(found)} parameters are not in the checkpoint and are random: {shown}",)
    return _source(spec, module, weights, notes)


def _path(spec: str, place: str) -> Path:
    """A path that the system can be asked about; whether something is there is another matter."""
    try:
        path = Path(place).expanduser()
        path.exists()
    except (OSError, RuntimeError, ValueError) as error:  # too long, a NUL, or the home of nobody
        raise SourceError(
            f"{brief(place)} can be no path: {brief(str(error))}",
            where=f"source {brief(spec)!r}",
            remedy="check the path",
        ) from error
    return path


def _folder(spec: str, place: str, writer: str) -> Path:
    folder = _path(spec, place)
    if not folder.is_dir():
        raise SourceError(
            "there is no such folder",
            where=f"source {spec!r}",
            remedy=f"give a folder that {writer} wrote; a source is {GRAMMAR}",
        )
    return folder


def _model_class(transformers: ModuleType, config: Any) -> Any:
    """The class that the checkpoint was saved from, when transformers has it."""
    name = str((config.architectures or [""])[0])
    found = getattr(transformers, name, None)
    if found is None:
        return transformers.MODEL_MAPPING[type(config)]
    if not (isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)):
        raise ValueError(f"its configuration names {name!r} as the model, which is none")
    return found


def _from_callable(spec: str, name: str, pretrained: bool) -> Source:
    module_name, where = spec.partition(":")[0], f"source {spec!r}"
    with _working_folder_importable():
        try:
            namespace = importlib.import_module(module_name)
        except Exception as error:  # a module of the user's may hold any mistake
            raise SourceError(
                f"{module_name!r} cannot be imported: {_first_sentence(error)}",
                where=where,
                remedy=f"run where it can be imported, or install it; a source is {GRAMMAR}",
            ) from error
        factory = getattr(namespace, name, None)
        if not callable(factory):
            raise SourceError(
                f"{module_name} has no function {name!r}{did_you_mean(name, dir(namespace))}",
                where=where,
                remedy="name a function that takes no arguments and returns an nn.Module, or one with an "
                "example",
            )
        try:
            module = factory()
        except Exception as error:  # the user's code may raise anything
            raise SourceError(
                f"{spec} raised {type(error).__name__}: {error}",
                where=where,
                remedy="make the function work when it is called without arguments",
            ) from error
    module, example = module if isinstance(module, tuple) and len(module) == 2 else (module, None)
    if not isinstance(module, nn.Module):
        raise SourceError(
            f"{spec} returned a {type(module).__name__}, not an nn.Module",
            where=where,
            remedy="return the model itself, or the model and an example input",
        )
    return _source(spec, module.eval(), "given", (), example)


def _weight_file(spec: str, arch: str | None, allow_pickle: bool) -> Source:
    path = _path(spec, spec)
    if path.suffix == ".safetensors":
        content: nn.Module | files.State = files.read_safetensors(path)
    else:
        with _working_folder_importable() if allow_pickle else contextlib.nullcontext():
            content = files.read_pickled(path, allow_pickle=allow_pickle)
    if isinstance(content, nn.Module):
        if arch is not None:
            raise UsageError(
                "the file holds a whole model", where=f"source {spec!r}", remedy="leave --arch out"
            )
        with _reading(spec):  # its attributes may be anything
            return _source(spec, content.eval(), "file")
    if arch is None:
        raise UsageError(
            "the file holds weights only",
            where=f"source {spec!r}",
            remedy="say what they are of: --arch timm:ID, or --arch with any other SOURCE",
        )
    model = load(arch, pretrained=False)
    files.fill(model.module, content, path)
    return dataclasses.replace(model, spec=spec, weights="file", notes=(), arch=arch)


def _exported(spec: str, allow_pickle: bool) -> Source:
    exported = files.read_exported(_path(spec, spec), allow_pickle=allow_pickle)
    args, kwargs = exported_inputs(exported)
    module = compat.unlifted(exported)
    return Source(spec, module, args, kwargs, "file", (PT2_NOTE,), exported=exported)


_LOADERS: dict[str, Callable[[str, str, bool], Source]] = {
    "timm": _timm,
    "hf": _hugging_face,
    "hf-hub": _timm_elsewhere,
    "local-dir": _timm_elsewhere,
}


# Weights and the network ------------------------------------------------------------------------------------


def _with_weights(
    build: Callable[[bool], nn.Module], reason: str
) -> tuple[nn.Module, Weights, tuple[str, ...]]:
    """Build with pretrained weights, or with random ones when a reason not to load is known or appears."""
    if not reason:
        try:
            return build(True).eval(), "pretrained", ()
        except OSError as error:  # what urllib, huggingface_hub and transformers all raise for no answer
            reason = f"they could not be loaded: {_first_sentence(error)}"
    with _seeded():
        return build(False).eval(), "random", (_random_note(reason),)


def _random_note(reason: str) -> str:
    return f"the weights are random ({reason}); accuracy figures would mean nothing"


@contextlib.contextmanager
def _hub(*, local: bool = False) -> Iterator[None]:
    """Ask the hub once whether it is there; if not, use what is cached instead of retrying for a minute.

    A folder on disk is read without it, whatever its configuration names.

    huggingface_hub retries every file five times with growing pauses and offers no argument against it.
    Its offline switch is a module constant that is read at each request: it is set for this block only.
    """
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = local or not _hub_answers()
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _hub_answers() -> bool:
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=PROBE_SECONDS)
    except Exception:  # noqa: BLE001 - requests, httpx and httpx2 have no common base, by version of the hub
        return False
    return True


@contextlib.contextmanager
def _reading(spec: str) -> Iterator[None]:
    """Whatever a library raises while it builds a model becomes one error of ours."""
    try:
        yield
    except PruneError:
        raise
    except folders.Refused as error:
        raise SourceError(
            f"the model cannot be read: {error}",
            where=f"source {spec!r}",
            remedy="correct its config.json or its weights, or give another model",
        ) from error
    except Exception as error:
        raise SourceError(
            f"the model cannot be read: {_first_sentence(error)}",
            where=f"source {spec!r}",
            remedy="check the name, and that there is a network or a cached copy; `shapes` needs neither",
        ) from error


def _first_sentence(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].split(". ")[0]


@contextlib.contextmanager
def _seeded() -> Iterator[None]:
    """Random weights are the same in every run, and the caller's random state is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def _need(package: str, extra: str, spec: str) -> Any:
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        raise SourceError(
            f"{error.name} is not installed",
            where=f"source {spec!r}",
            remedy=f"pip install 'prunec[{extra}]'",
        ) from error


@contextlib.contextmanager
def _working_folder_importable() -> Iterator[None]:
    """A console script does not look in the folder that it is started in; `python -m` does."""
    folder = str(Path.cwd())
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)


def _name(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"


def _source(
    spec: str,
    module: nn.Module,
    weights: Weights,
    notes: tuple[str, ...] = (),
    example: Example | None = None,
) -> Source:
    args, kwargs = infer(module) if example is None else inputs(example)
    return Source(spec, module, args, kwargs, weights, notes)
