"""Old spellings of what people call: for one release they work, with a warning that names the new one."""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable
from typing import Any, TypeVar, cast

from prunec.modes import with_options
from prunec.policy import Policy

Function = TypeVar("Function", bound=Callable[..., Any])

#: Old keyword -> what to write instead.
NEW = {
    "keep": "Policy.load(..., keep=...)",
    "blocks": "Policy.load(..., blocks=...)",
    "restore": "Policy.load(..., restore=...)",
    "within": "submodule=...",
    "untrained": "calibrate=False",
    "buckets": "mode=Padded(buckets=...)",
    "bound": "mode=Packed(max_tokens=...)",
}


def old_spellings(function: Function) -> Function:
    """The function, which also takes the old keywords that it had in the last release."""
    signature = inspect.signature(function)
    names = [name for name in NEW if name not in signature.parameters]

    @functools.wraps(function)
    def call(*args: Any, **keywords: Any) -> Any:
        old = {name: keywords.pop(name) for name in names if name in keywords}
        if not old:
            return function(*args, **keywords)
        for name in old:
            warnings.warn(
                f"{function.__name__}({name}=...) is now {NEW[name]}", DeprecationWarning, stacklevel=2
            )
        return function(**_translated(signature.bind_partial(*args, **keywords).arguments, old))

    return cast("Function", call)


def _translated(new: dict[str, Any], old: dict[str, Any]) -> dict[str, Any]:
    """The arguments in the new spelling."""
    given = {name: value for name, value in old.items() if value is not None}
    overrides = {name: given[name] for name in ("keep", "blocks", "restore") if name in given}
    if overrides:
        new["policy"] = Policy.load(new["policy"], **overrides)
    if "within" in given:
        new["submodule"] = given["within"]
    if "untrained" in given:
        new["calibrate"] = not given["untrained"]
    if given.keys() & {"buckets", "bound"}:
        new["mode"] = with_options(new.get("mode"), given.get("buckets", ()), given.get("bound"))
    return new
