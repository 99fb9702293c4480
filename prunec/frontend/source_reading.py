"""What all readers of sources share: the network, random weights, paths, and errors of other libraries."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from prunec import compat
from prunec.errors import PruneError, SourceError, brief, did_you_mean, first_sentence
from prunec.frontend import folders
from prunec.frontend.source import Weights

GRAMMAR = (
    "timm:ID, hf:ORG/NAME, ./folder, hf-hub:ORG/NAME, local-dir:PATH, pkg.module:callable, "
    "a .pt2, .pt, .pth or .safetensors file, or shapes"
)
PROBE_SECONDS = 3


def with_weights(
    build: Callable[[bool], nn.Module], reason: str
) -> tuple[nn.Module, Weights, tuple[str, ...]]:
    """Build with pretrained weights, or with random ones when a reason not to load is known or appears."""
    if not reason:
        try:
            return build(True).eval(), "pretrained", ()
        except OSError as error:  # what urllib, huggingface_hub and transformers all raise for no answer
            reason = f"they could not be loaded: {first_sentence(error)}"
    with seeded():
        return build(False).eval(), "random", (random_note(reason),)


def random_note(reason: str) -> str:
    """What a report says of random weights."""
    return f"the weights are random ({reason}); accuracy figures would mean nothing"


@contextlib.contextmanager
def hub(*, local: bool = False) -> Iterator[None]:
    """Ask the hub once whether it is there; if not, use what is cached instead of retrying for a minute.

    A folder on disk is read without it, whatever its configuration names.

    huggingface_hub retries every file five times with growing pauses and offers no argument against it.
    Its offline switch is a module constant that is read at each request: it is set for this block only.
    """
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = local or not hub_answers()
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def hub_answers() -> bool:
    """Whether the hub can be reached."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=PROBE_SECONDS)
    except Exception:  # noqa: BLE001 - requests, httpx and httpx2 have no common base, by version of the hub
        return False
    return True


@contextlib.contextmanager
def reading(spec: str) -> Iterator[None]:
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
            f"the model cannot be read: {first_sentence(error)}",
            where=f"source {spec!r}",
            remedy="check the name, and that there is a network or a cached copy; `shapes` needs neither",
        ) from error


@contextlib.contextmanager
def seeded() -> Iterator[None]:
    """Random weights are the same in every run, and the caller's random state is left alone."""
    with torch.random.fork_rng(devices=[]):
        compat.seed(0)
        yield


def need(package: str, extra: str, spec: str) -> Any:
    """An optional package; SourceError with the pip line where it is not installed."""
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        raise SourceError(
            f"{error.name} is not installed",
            where=f"source {spec!r}",
            remedy=f"pip install 'prunec[{extra}]'",
        ) from error


@contextlib.contextmanager
def working_folder_importable() -> Iterator[None]:
    """A console script does not look in the folder that it is started in; `python -m` does."""
    folder = str(Path.cwd())
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)


def function_of(
    module_name: str, name: str, wrong: type[PruneError], where: str, *, remedies: tuple[str, str]
) -> Callable[..., Any]:
    """A function of the user's own.

    Args:
        module_name: where it is to be imported from.
        name: what it is called there.
        wrong: the error that is raised where there is no such function.
        where: the place that the error names.
        remedies: for a module that cannot be imported, and for one without such a function.
    """
    try:
        namespace = importlib.import_module(module_name)
    except Exception as error:  # a module of the user's may hold any mistake
        raise wrong(
            f"{module_name!r} cannot be imported: {first_sentence(error)}", where=where, remedy=remedies[0]
        ) from error
    function = getattr(namespace, name, None)
    if not callable(function):
        raise wrong(
            f"{module_name} has no function {name!r}{did_you_mean(name, dir(namespace))}",
            where=where,
            remedy=remedies[1],
        )
    return function  # type: ignore[no-any-return]


def path_of(spec: str, place: str) -> Path:
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


def absolute(spec: str) -> str:
    """A source that is a folder or a file, by its whole path: the same wherever it is read again."""
    scheme, colon, rest = spec.partition(":")
    if colon and scheme not in ("hf", "local-dir"):
        return spec
    place = Path(rest if colon else spec).expanduser()
    try:
        there = place.exists() and (bool(colon) or "/" in spec or bool(place.suffix))
    except (OSError, ValueError):
        return spec
    return f"{scheme if colon else ''}{colon}{place.resolve()}" if there else spec


def folder_of(spec: str, place: str, writer: str) -> Path:
    """A folder that is there; SourceError where it is not."""
    folder = path_of(spec, place)
    if not folder.is_dir():
        raise SourceError(
            "there is no such folder",
            where=f"source {spec!r}",
            remedy=f"give a folder that {writer} wrote; a source is {GRAMMAR}",
        )
    return folder
