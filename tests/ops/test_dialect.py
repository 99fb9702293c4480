"""What holds for every operation of the dialect: listed once, with a docstring, and gradients or none."""

import importlib
import inspect
import pkgutil
from types import FunctionType

import pytest
import torch
from torch import Tensor

from prunec import compat, ops

#: Public functions that no graph calls.
HELPERS = {"attend_padded", "is_ours", "spread_over", "stay", "tensors_of"}

#: A value for each name that a parameter without a default has: 2 images, 6 tokens of which 4 go on, 2 heads.
INDEX = torch.tensor([[0, 1, 3, 5], [0, 2, 4, 5]])
KEPT = torch.zeros(2, 6).scatter(1, INDEX, 1.0).bool()
VALUES = {
    "after": torch.randn(2, 6, 3),
    "among": torch.ones(2, 4, dtype=torch.bool),
    "active": KEPT,
    "attention": torch.rand(2, 2, 6, 6),
    "axis": 2,
    "back": 1,
    "base": torch.randn(2, 6, 3),
    "batch_dim": 0,
    "before": torch.randn(2, 6, 3),
    "canvas": torch.randn(2, 6, 3),
    "count": 2,
    "device": torch.device("cpu"),
    "dim": 1,
    "divisor": 2,
    "dtype": torch.float32,
    "each": 1,
    "ends": (1, 1),
    "front": 1,
    "group": torch.tensor([[0, 1, 1, 2, 2, 3], [0, 1, 1, 2, 2, 3]]),
    "height": 2,
    "index": INDEX,
    "inner": torch.tensor([[0, 2], [1, 3]]),
    "joined": KEPT,
    "keep": 2,
    "kept": KEPT,
    "key": torch.randn(2, 2, 6, 4),
    "like": torch.randn(2, 6),
    "logits": torch.randn(2, 6, 3),
    "mask": torch.rand(2, 6),
    "metric": torch.randn(2, 6, 3),
    "number": torch.tensor([2.0, 3.0]),
    "outer": INDEX,
    "partner": torch.tensor([[0, 1, 1, 3, 3, 5], [0, 2, 2, 4, 4, 5]]),
    "places": torch.tensor([[0, 1, 3, 5, 6, 8, 10, 11]]),
    "prefix": 1,
    "query": torch.randn(2, 2, 6, 4),
    "rank": 3,
    "row": 0,
    "rows": torch.tensor([[0, 1, 2, 3, 4, 5, 6, 7]]),
    "scale": 0.5,
    "score": torch.rand(2, 6),
    "scores": torch.randn(2, 4, 3),
    "similar": torch.randn(2, 6, 6),
    "size": torch.rand(2, 6) + 1,
    "sizes": (2, 3),
    "slots": torch.tensor([[0, 1, 2, 3], [4, 5, 6, 7]]),
    "start": 1,
    "states": torch.randn(2, 6, 3),
    "suffix": 1,
    "table": torch.randn(2, 6, 3),
    "threshold": torch.zeros(()),
    "tokens": 6,
    "valid": torch.ones(2, 6, dtype=torch.bool),
    "value": torch.randn(2, 2, 6, 4),
    "width": 2,
    "x": torch.randn(2, 6, 3),
}
PACKED = {name: torch.randn(1, 2, 8, 4) for name in ("query", "key", "value")}
#: Where an operation wants another value by that name.
OTHERS = {
    ops.attend: {**PACKED, "valid": torch.ones(2, 4, dtype=torch.bool)},
    ops.bias_keys: {"logits": torch.randn(2, 2, 6, 6)},
    ops.mask_keys: {"logits": torch.randn(2, 2, 6, 6)},
    ops.softmax_kept: {"logits": torch.randn(2, 2, 6, 6)},
    ops.kept_rows: {"kept": KEPT[:1]},
    ops.fill: {"value": 0.0},
    ops.for_images: {"axis": 0},
    ops.keep: {"x": torch.randn(1, 8, 3), "places": torch.tensor([[0, 2, 4]])},
    ops.log: {"number": torch.rand(2) + 1},
    ops.pool: {"group": torch.tensor([[0, 1, 1, 2, 2, 3], [0, 1, 1, 2, 2, 3]])},
    ops.pad: {"x": torch.randn(1, 8, 3)},
    ops.paint: {"axis": 2},
    ops.put: {"x": torch.randn(1, 8, 3)},
    ops.put_among: {"base": torch.randn(1, 12, 3), "x": torch.randn(1, 8, 3)},
    ops.put_first: {"x": torch.randn(2, 4, 3)},
    ops.attend_states: {name: (torch.randn(8, 3), torch.randn(8)) for name in ("keys", "values")},
    ops.remaining: {"before": KEPT, "kept": torch.ones(2, 4, dtype=torch.bool), "rows": INDEX},
    ops.rescale: {"y": torch.randn(2, 3)},
    ops.scatter: {"x": torch.randn(2, 4, 3)},
    ops.places_among: {"index": torch.tensor([[0, 2], [1, 3]]), "rows": torch.tensor([[0, 1, 2, 3]])},
    ops.share: {"x": torch.randn(2, 4, 3)},
    ops.sizes: {"size": torch.rand(2, 6) + 1},
    ops.straight_through: {"bound": None},
    ops.throughout: {"number": 2.0},
}


def modules():
    return [importlib.import_module(f"prunec.ops.{info.name}") for info in pkgutil.iter_modules(ops.__path__)]


def named(function):
    return function.__name__


def test_every_public_function_is_an_operation_or_a_known_helper() -> None:
    functions = {
        value
        for module in (ops, *modules())
        for name, value in vars(module).items()
        if isinstance(value, FunctionType)
        and value.__module__ == module.__name__
        and not name.startswith("_")
    }
    assert {named(function) for function in functions - set(ops.DIALECT)} == HELPERS
    assert set(ops.DIALECT) <= functions


def test_every_operation_is_listed_once_and_found_by_its_name() -> None:
    assert len({named(operation) for operation in ops.DIALECT}) == len(ops.DIALECT)
    assert all(getattr(ops, named(operation)) is operation for operation in ops.DIALECT)
    assert {*ops.SCORES, *ops.SELECTIONS, *ops.MASKS} <= set(ops.DIALECT)


def test_operations_of_a_kind_have_the_parameters_that_passes_read_by_name() -> None:
    for kind, names in (
        (ops.FIXED, {"score", "keep", "prefix", "suffix"}),
        (ops.RAGGED, {"kept"}),
        (ops.MASKS, {"score", "prefix", "suffix", "least", "valid"}),
        ((ops.with_best_dropped, ops.context_mask), {"kept", "prefix", "suffix", "valid"}),
        ((ops.gather, ops.fuse, ops.pool), {"x", "index", "dim"}),
        ((ops.scatter,), {"base", "x", "index", "dim", "valid"}),
        ((ops.share,), {"x", "group", "base", "at", "dim"}),
        ((ops.assign,), {"partner", "index", "kept"}),
    ):
        for operation in kind:
            assert names <= set(inspect.signature(operation).parameters), operation


def run(operation) -> tuple[list[Tensor], list[Tensor]]:
    """An operation on the values that its parameters are named for: float operands, and results."""
    torch.manual_seed(0)
    parameters = inspect.signature(operation).parameters.values()
    needed = [each.name for each in parameters if each.default is each.empty]
    given = {**{name: VALUES.get(name) for name in needed}, **OTHERS.get(operation, {})}
    floats = [value for value in given.values() if isinstance(value, Tensor) and value.is_floating_point()]
    operands = {id(value): value.clone().requires_grad_() for value in floats}
    given = {name: operands.get(id(value), value) for name, value in given.items()}
    return list(operands.values()), compat.tree_leaves(operation(**given))


@pytest.mark.parametrize("operation", ops.DIALECT, ids=named)
def test_an_operation_says_what_it_does_and_has_gradients_or_says_that_it_has_none(operation) -> None:
    said = inspect.getdoc(operation)
    assert said
    assert said.splitlines()[0].endswith((".", ":"))
    operands, results = run(operation)
    numbers = [result for result in results if isinstance(result, Tensor) and result.is_floating_point()]
    if not numbers:  # places and masks
        return
    total = sum(result.masked_fill(~result.isfinite(), 0.0).square().sum() for result in numbers)
    found = torch.autograd.grad(total, operands, allow_unused=True) if total.requires_grad else ()
    reached = any(gradient is not None and bool(gradient.ne(0).any()) for gradient in found)
    assert reached != ("No gradient" in said)
