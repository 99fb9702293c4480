"""Arguments of the dialect's calls, read and changed by name: their order is known to no one else.

scatter(base, x, index, 1)  ->  bind(node)["valid"] is None, operand(node, "index") is the node of the rows
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import fx

from prunec import ops


def bind(node: fx.Node) -> dict[str, Any]:
    """The arguments of a call of the dialect by name, with the defaults of those that were left out."""
    return bind_call(node.target, node.args, node.kwargs)


def bind_call(target: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The same for a call that an interpreter is about to run."""
    bound = _signature(target).bind(*args, **kwargs)
    bound.apply_defaults()
    return bound.arguments


def operand(node: fx.Node, name: str) -> fx.Node:
    """An argument that is a node."""
    found = bind(node)[name]
    assert isinstance(found, fx.Node), f"{name} of {node.name} is {found}"
    return found


def rebind(node: fx.Node, **changed: Any) -> None:
    """Change arguments of a call of the dialect; one that is changed to its default is left out."""
    signature = _signature(node.target)
    bound = signature.bind(*node.args, **node.kwargs)
    for name, value in changed.items():
        if value is signature.parameters[name].default:
            bound.arguments.pop(name, None)
        else:
            bound.arguments[name] = value
    node.args, node.kwargs = bound.args, bound.kwargs


def retarget(node: fx.Node, function: Callable[..., Any], **added: Any) -> None:
    """Call another operation, with those of the given arguments that it takes too, and with others."""
    given = _signature(node.target).bind(*node.args, **node.kwargs).arguments
    signature = _signature(function)
    shared = {name: value for name, value in given.items() if name in signature.parameters}
    bound = signature.bind(**{**shared, **added})
    node.target, node.args, node.kwargs = function, bound.args, bound.kwargs


def chosen_from(selection: fx.Node) -> fx.Node:
    """What a selection reads: scores, or the mask of the rows that are kept; [B, T]."""
    return operand(selection, "score" if selection.target in ops.FIXED else "kept")


@functools.lru_cache(maxsize=256)
def _signature(target: Callable[..., Any]) -> inspect.Signature:
    return inspect.signature(target)
