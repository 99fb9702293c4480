"""How a call of the user's model maps to the flat inputs and outputs of its graph."""

from __future__ import annotations

import inspect
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.amp.autocast_mode import is_autocast_available

from prunec import compat
from prunec.errors import UsageError, did_you_mean


@dataclass(frozen=True)
class Interface:
    """How a call of the user's model maps to the flat inputs and outputs of its graph."""

    parameters: tuple[str, ...]  # forward()'s own parameters, in order
    defaults: Mapping[str, Any]  # those that may be left out
    positional: tuple[str, ...]  # the ones captured as positional arguments
    keyword: tuple[str, ...]  # the ones captured as keywords
    in_spec: compat.TreeSpec
    out_spec: compat.TreeSpec
    example: tuple[Any, ...]  # flat example inputs, batch first
    batch: int | None  # the example's batch, None when the batch is fixed
    signature: inspect.Signature | None = None  # of the model's own forward
    settings: Mapping[str, bool] = field(
        default_factory=dict
    )  # what the model's configuration says of inputs

    def flatten(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], weights: Sequence[Tensor | None] | None = None
    ) -> list[Any]:
        """The flat graph inputs of one call, however its arguments were spelled.

        Args:
            args: positional arguments of the model's forward.
            kwargs: keyword arguments.
            weights: for each flat input a weight that had its precision at capture. Its precision and its
                device now are those that are expected; the example's precision where there is none.
        """
        weights = [None] * len(self.example) if weights is None else weights
        self._check_names(args, kwargs, weights)
        given = {**dict(zip(self.parameters, args, strict=False)), **kwargs}
        for name, value in self._captured().items():
            if name in given:
                given[name] = _in_order_of(given[name], value)
            # the same in another spelling, such as None and False
            if self.is_usual(name, value) and (name not in given or self.is_usual(name, given[name])):
                given[name] = value
        call = (tuple(given[name] for name in self.positional), {name: given[name] for name in self.keyword})
        flat, spec = compat.tree_flatten(call)
        if spec != self.in_spec:
            raise UsageError(
                "the inputs nest differently from the example", remedy=f"expected {self.call(weights)}"
            )
        leaves = zip(self.leaf_names(), flat, self.example, weights, strict=True)
        for name, value, example, weight in leaves:
            self._check_leaf(name, value, example, weight)
        return flat

    def _check_names(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], weights: Sequence[Tensor | None]
    ) -> None:
        """No input is missing, given twice, or one that the graph has no place for."""

        def wrong(what: str, more: str = "") -> UsageError:
            return UsageError(what, remedy=f"call the model with {self.call(weights)}{more}")

        if len(args) > len(self.parameters):
            raise wrong(f"forward takes {len(self.parameters)} arguments, got {len(args)}")
        given = dict(zip(self.parameters, args, strict=False))
        captured = (*self.positional, *self.keyword)
        for name, value in (*given.items(), *kwargs.items()):
            if name in given and name in kwargs:
                raise wrong(f"input {name!r} is given twice, by position and by name")
            if name not in captured and not self._takes(name):
                raise wrong(f"forward has no input {name!r}{did_you_mean(name, self.parameters)}")
            if name not in captured and not self.is_usual(name, value):
                example = ", ".join(f"{key!r}: ..." for key in (*captured, name))
                raise wrong(
                    f"input {name!r} was not given at capture, so the graph has no place for it",
                    ", or transform the model again with an example that holds this input: "
                    f"example={{{example}}}",
                )
        for name, value in self._captured().items():
            if name not in given and name not in kwargs and not self.is_usual(name, value):
                raise wrong(f"missing input {name!r}")

    def with_batch(self, batch: int) -> tuple[Any, ...]:
        """The flat example inputs with another batch; as they are where the batch is fixed."""
        if self.batch is None:
            return self.example

        def resized(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor) or leaf.dim() == 0 or leaf.shape[0] != self.batch:
                return leaf
            return leaf[:1].repeat(batch, *[1] * (leaf.dim() - 1))

        return tuple(map(resized, self.example))

    def is_usual(self, name: str, value: Any) -> bool:
        """Whether the model takes an input of this value as it takes one that is left out."""
        if _is_same(value, self.defaults.get(name)):
            return True
        return name in self.settings and _is_same(value, self.settings[name])

    def _captured(self) -> dict[str, Any]:
        """The inputs of the example by name."""
        args, kwargs = compat.tree_unflatten(list(self.example), self.in_spec)
        return {**dict(zip(self.positional, args, strict=True)), **kwargs}

    def _takes(self, name: str) -> bool:
        """Whether the model's forward has a parameter for a keyword."""
        every = () if self.signature is None else self.signature.parameters.values()
        return name in self.parameters or any(one.kind is one.VAR_KEYWORD for one in every)

    def unflatten(self, outputs: Any) -> Any:
        """The model's own output structure (a tensor, a tuple, a ModelOutput) from the flat tuple."""
        return compat.tree_unflatten(list(outputs), self.out_spec)

    def leaf_names(self) -> tuple[str, ...]:
        """A name for each flat input; nested ones say where: `batch['extra'][0]`."""
        args, kwargs = compat.tree_unflatten(list(self.example), self.in_spec)
        return tuple(compat.leaf_names((*zip(self.positional, args, strict=True), *kwargs.items())))

    def call(self, weights: Sequence[Tensor | None] | None = None) -> str:
        """The expected call in words, such as `pixel_values=float32[B, 3, 224, 224]`."""
        weights = [None] * len(self.example) if weights is None else weights
        leaves = zip(self.leaf_names(), self.example, weights, strict=True)
        return ", ".join(
            f"{name}={self.describe(leaf, _precision(leaf, weight))}" for name, leaf, weight in leaves
        )

    def describe(self, leaf: Any, precision: torch.dtype | None = None) -> str:
        """`float32[B, 3, 224, 224]` for a tensor (or the other precision), its repr for anything else."""
        if not isinstance(leaf, Tensor):
            return reprlib.repr(leaf)
        sizes = [str(size) for size in leaf.shape]
        if sizes and self.batch is not None and leaf.shape[0] == self.batch:
            sizes[0] = "B"
        return f"{name_of(precision or leaf.dtype)}[{', '.join(sizes)}]"

    def _check_leaf(self, name: str, value: Any, example: Any, weight: Tensor | None) -> None:
        if isinstance(example, Tensor):
            self._check_tensor(name, value, example, weight)
        elif isinstance(value, Tensor) or value != example:
            raise UsageError(
                f"input {name!r} is {self.describe(value)}, the model was captured with {example!r}",
                remedy="transform the model again with an example that holds this value",
            )

    def _check_tensor(self, name: str, value: Any, example: Tensor, weight: Tensor | None) -> None:
        precision = _precision(example, weight)
        free = self.batch is not None and example.dim() > 0 and example.shape[0] == self.batch
        start = 1 if free else 0
        fits = isinstance(value, Tensor) and value.dim() == example.dim()
        if not fits or value.shape[start:] != example.shape[start:]:
            remedy = "give inputs of that shape, or transform the model again with an example of yours"
        elif weight is not None and value.dim() > 0 and value.device != weight.device:
            raise UsageError(
                f"input {name!r} is on {value.device}, expected {self.describe(example, precision)} "
                f"on {weight.device}",
                remedy=f"move it to where the weights are: {name}.to({str(weight.device)!r})",
            )
        elif value.dtype != precision and not _is_cast(value, example):
            remedy = f"prepare it as for the model itself, or convert it: {name}.to({precision})"
        else:
            return
        raise UsageError(
            f"input {name!r} is {self.describe(value)}, expected {self.describe(example, precision)}",
            remedy=remedy,
        )


def _is_same(value: Any, other: Any) -> bool:
    """Whether two options are the same; tensors, whose numbers a graph may read, never are."""
    return value is other or (isinstance(value, bool | int | float | str) and value == other)


def _in_order_of(value: Any, like: Any) -> Any:
    """The value with the entries of its mappings in the order of another's, where the keys are the same."""
    if type(value) is not type(like):
        return value
    if type(value) is dict and value.keys() == like.keys():
        return {key: _in_order_of(value[key], like[key]) for key in like}
    if type(value) in (list, tuple) and len(value) == len(like):
        return type(value)(_in_order_of(one, other) for one, other in zip(value, like, strict=True))
    return value


def _is_cast(value: Tensor, example: Tensor) -> bool:
    """Whether autocast gives an input the precision that each operator wants."""
    kind = value.device.type
    both = value.is_floating_point() and example.is_floating_point()
    return both and is_autocast_available(kind) and torch.is_autocast_enabled(kind)


def _precision(leaf: Any, weight: Tensor | None) -> torch.dtype | None:
    """What an input must have: the precision that its weight has now, or the example's own."""
    if not isinstance(leaf, Tensor):
        return None
    return leaf.dtype if weight is None or not leaf.is_floating_point() else weight.dtype


def images_in(flat: Sequence[Any]) -> int:
    """How many images flat inputs hold."""
    return next(int(leaf.shape[0]) for leaf in flat if isinstance(leaf, Tensor))


def name_of(dtype: torch.dtype) -> str:
    """`float32` for torch.float32."""
    return str(dtype).removeprefix("torch.")
