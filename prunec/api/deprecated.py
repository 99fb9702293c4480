"""Old spellings of what people call: for one release they work, with a warning that names the new one."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import warnings
from collections.abc import Callable
from typing import Any, TypeVar, cast

from prunec.measure.measure import Measure
from prunec.policy.modes import with_options
from prunec.policy.policy import Policy

Function = TypeVar("Function", bound=Callable[..., Any])

MEASURED = ("target", "batch", "rounds", "preprocess")

#: Old keyword, and how `Policy.load` calls it.
OVERRIDES = {"keep": "keep_per_site", "blocks": "blocks", "restore": "restore"}

#: Old keyword, the parameter that holds it now, and how that is written.
SPELLINGS = (
    ("keep", "policy", "Policy.load(..., keep_per_site=...)"),
    ("blocks", "policy", "Policy.load(..., blocks=...)"),
    ("restore", "policy", "Policy.load(..., restore=...)"),
    ("within", "submodule", "submodule=..."),
    ("untrained", "calibrate", "calibrate=False"),
    ("untrained", "measure", "measure=Measure(calibrate=False)"),
    ("buckets", "mode", "mode=Padded(buckets=...)"),
    ("bound", "mode", "mode=Packed(max_tokens=...)"),
    *((name, "measure", f"measure=Measure({name}=...)") for name in MEASURED),
)


def old_spellings(function: Function) -> Function:
    """The function, which also takes the old keywords that it had in the last release."""
    signature = inspect.signature(function)
    spelled = {old: text for old, parameter, text in SPELLINGS if parameter in signature.parameters}

    @functools.wraps(function)
    def call(*args: Any, **keywords: Any) -> Any:
        old = {name: keywords.pop(name) for name in spelled if name in keywords}
        if not old:
            return function(*args, **keywords)
        for name in old:
            warnings.warn(
                f"{function.__name__}({name}=...) is now {spelled[name]}", DeprecationWarning, stacklevel=2
            )
        new = signature.bind_partial(*args, **keywords).arguments
        given = {name: value for name, value in old.items() if value is not None}
        return function(**_translated(new, given, measured="measure" in signature.parameters))

    return cast("Function", call)


def _translated(new: dict[str, Any], given: dict[str, Any], *, measured: bool) -> dict[str, Any]:
    """The arguments in the new spelling; what is measured has a `Measure` in the place of single keywords."""
    overrides = {new: given[old] for old, new in OVERRIDES.items() if old in given}
    if overrides:
        new["policy"] = Policy.load(new["policy"], **overrides)
    if "within" in given:
        new["submodule"] = given["within"]
    if "buckets" in given or "bound" in given:
        new["mode"] = with_options(new.get("mode"), given.get("buckets", ()), given.get("bound"))
    settings: dict[str, Any] = {name: given[name] for name in MEASURED if name in given}
    if "untrained" in given:
        (settings if measured else new)["calibrate"] = not given["untrained"]
    if settings:
        new["measure"] = dataclasses.replace(new.get("measure") or Measure(), **settings)
    return new
