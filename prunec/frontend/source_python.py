"""Models that a function of the user's returns."""

from __future__ import annotations

import dataclasses

from torch import nn

from prunec.errors import SourceError
from prunec.frontend.source import Asked, Source, made
from prunec.frontend.source_reading import GRAMMAR, function_of, working_folder_importable


def from_callable(spec: str, name: str, asked: Asked) -> Source:
    """A function, called without arguments; it may return an example with its model."""
    module_name, where = spec.partition(":")[0], f"source {spec!r}"
    with working_folder_importable():
        remedies = (
            f"run where it can be imported, or install it; a source is {GRAMMAR}",
            "name a function that takes no arguments and returns an nn.Module, or one with an example",
        )
        factory = function_of(module_name, name, SourceError, where, remedies=remedies)
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
    if example is None or asked.example is not None or asked.size is not None:
        return made(spec, module.eval(), "given", (), asked)
    own = made(spec, module.eval(), "given", (), dataclasses.replace(asked, example=example))
    return dataclasses.replace(own, example="")  # the function gives it again
