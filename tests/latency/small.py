"""Small models of some families, recognised once."""

from __future__ import annotations

from functools import cache

from torch import nn

from prunec.compiler import recognise
from prunec.frontend.sources import from_module
from prunec.ir.program import Recognised
from tests.families import FAMILIES

FAMILY = {family.name: family for family in FAMILIES}


@cache
def model_of(name: str) -> nn.Module:
    return FAMILY[name].model()


@cache
def dense_of(name: str) -> Recognised:
    """A family's recognised program; its example has two images."""
    args, kwargs = FAMILY[name].call(FAMILY[name].images(2))
    return recognise(from_module(model_of(name), kwargs or args))
