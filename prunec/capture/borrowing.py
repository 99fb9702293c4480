"""The user's model is borrowed: it runs, and is given back as it was.

    with unchanged(model):   a counter, running statistics, a cache: what forward changed is put back,
        model(*args)         to the bit, also when it raises

PyTorch's tracing is borrowed too, and belongs to the whole process: while one thread exports a model or types
a graph, others wait. The one lock is re-entrant, so whatever takes it may call whatever takes it.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

Call = TypeVar("Call", bound=Callable[..., Any])

_ALONE = threading.RLock()


def alone(function: Call) -> Call:
    """The function, run by one thread at a time, and by no other that is so marked."""

    @functools.wraps(function)
    def waiting(*args: Any, **kwargs: Any) -> Any:
        with _ALONE:
            return function(*args, **kwargs)

    return waiting  # type: ignore[return-value]


@contextlib.contextmanager
def unchanged(module: nn.Module) -> Iterator[None]:
    """Afterwards the module's buffers, and the attributes of all its parts, are what they were before."""
    parts = [_Part(part) for part in module.modules()]
    try:
        yield
    finally:
        for part in parts:
            part.restore()


class _Part:
    """One module as it was: its attributes, what containers among them held, and the numbers of tensors."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.attributes = dict(vars(module))
        self.contents = [(value, _items(value)) for value in self.attributes.values() if _holds(value)]
        tensors = (*module._buffers.values(), *self.attributes.values())
        self.numbers = [(value, value.clone()) for value in tensors if _has_numbers(value)]

    def restore(self) -> None:
        """Put back what changed, and touch nothing else: others may be reading it."""
        attributes = vars(self.module)
        for name in set(attributes) - set(self.attributes):
            del attributes[name]
        for name, value in self.attributes.items():
            if name not in attributes or attributes[name] is not value:
                attributes[name] = value
        for container, items in self.contents:
            if not _are(_items(container), items):
                _refill(container, items)
        for tensor, numbers in self.numbers:
            if not torch.equal(tensor, numbers):
                with torch.no_grad(), torch.inference_mode(tensor.is_inference()):
                    tensor.copy_(numbers)


def _holds(value: Any) -> bool:
    return isinstance(value, dict | list | deque | set)


def _has_numbers(value: Any) -> bool:
    return isinstance(value, Tensor) and not isinstance(value, nn.Parameter) and not value.is_meta


def _items(container: Any) -> list[Any]:
    return list(container.items()) if isinstance(container, dict) else list(container)


def _are(found: list[Any], expected: list[Any]) -> bool:
    """Whether these are the same objects, in the same order."""

    def same(one: Any, other: Any) -> bool:
        if isinstance(one, tuple) and isinstance(other, tuple) and len(one) == len(other) == 2:
            return one[0] is other[0] and one[1] is other[1]  # an entry of a dict is a new pair each time
        return one is other

    return len(found) == len(expected) and all(map(same, found, expected))


def _refill(container: Any, items: list[Any]) -> None:
    container.clear()
    if isinstance(container, dict | set):
        container.update(items)
    else:
        container.extend(items)
