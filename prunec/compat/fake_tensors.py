"""Fake tensors and symbolic sizes: calls are typed, and what a trial call taught PyTorch is forgotten."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import sympy
import torch
from torch import fx
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, disable_fake_tensor_cache
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv
from torch.nn.attention import SDPBackend, sdpa_kernel

from prunec.compat.operators import op_name
from prunec.compat.trees import tree_leaves

__all__ = [
    "FakeMode",
    "attempts",
    "expression",
    "fake_like",
    "fake_mode_of",
    "hint",
    "new_symbol",
]

FakeMode = FakeTensorMode


def fake_mode_of(graph: fx.Graph) -> FakeTensorMode:
    """The fake-tensor mode that the graph was captured under."""
    for node in graph.nodes:
        for leaf in tree_leaves(node.meta.get("val")):
            if isinstance(leaf, FakeTensor):
                return leaf.fake_mode
    raise ValueError("the graph carries no fake tensors; capture it with torch.export")


def new_symbol(mode: FakeTensorMode, name: str, hint: int) -> torch.SymInt:
    """A fresh symbolic size; `hint` stands in for it where PyTorch must compare."""
    env = mode.shape_env
    assert isinstance(env, ShapeEnv)
    source = torch._dynamo.source.ConstantSource(name)  # imported when it is first used: that takes a second
    symbol = env.create_symbol(hint, source=source, dynamic_dim=DimDynamic.DYNAMIC, constraint_dim=None)
    created = env.create_symintnode(symbol, hint=hint, source=source)
    assert isinstance(created, torch.SymInt)
    symbols_of(mode)[symbol] = created
    return created


def symbols_of(mode: FakeTensorMode) -> dict[sympy.Basic, torch.SymInt]:
    """The sizes that `new_symbol` made in a mode, by their symbols."""
    made: dict[sympy.Basic, torch.SymInt] = vars(mode).setdefault("_prunec_symbols", {})
    return made


def expression(size: int | torch.SymInt) -> sympy.Expr:
    """A size as a SymPy expression."""
    return size.node.expr if isinstance(size, torch.SymInt) else sympy.Integer(size)


def hint(size: int | torch.SymInt) -> int:
    """The number that a size had at capture."""
    return cast("int", size.node.hint) if isinstance(size, torch.SymInt) else size


def evaluate(
    mode: FakeTensorMode, target: Callable[..., Any], args: Any, kwargs: Any
) -> tuple[Any, set[sympy.Symbol]]:
    """What `typed_calls.evaluate` gives, found anew.

    A size that was read off a tensor (its symbol has no value) forces what it is compared with, too: PyTorch
    then notes an assertion for the run instead of deciding.
    """
    env = mode.shape_env
    assert isinstance(env, ShapeEnv)
    before = _Knowledge(env)
    forced: set[sympy.Symbol] = set()
    try:
        # Equal calls are known (typed_calls.py): nothing to cache here. With the Python dispatcher, composite
        # operators (addcmul) are typed by decompositions that know symbols.
        with (
            mode,
            disable_fake_tensor_cache(mode),
            enable_python_dispatcher(),
            attempts(),
            torch.no_grad(),
        ):
            result = target(*args, **kwargs)
            if op_name(target) == "scaled_dot_product_attention" and not _plainly_fit(*args, **kwargs):
                with sdpa_kernel(SDPBackend.MATH):  # fused kernels do not compare keys with values
                    target(*args, **kwargs)
    finally:
        forced = before.forced()
        if forced:
            before.restore()
    return result, forced


def _plainly_fit(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    *_: Any,
    **__: Any,
) -> bool:
    """Whether the sizes of an attention's operands, as these are written, leave nothing to compare."""
    queries, keys, values = (tuple(map(expression, each.shape)) for each in (query, key, value))
    if queries[:-2] != keys[:-2] or queries[-1] != keys[-1] or keys[:-1] != values[:-1]:
        return False
    scores = (*queries[:-1], keys[-2])
    mask = () if attn_mask is None else tuple(map(expression, attn_mask.shape))
    broadcast = zip(reversed(mask), reversed(scores), strict=False)
    return len(mask) <= len(scores) and all(size in (1, score) for size, score in broadcast)


@contextlib.contextmanager
def attempts() -> Iterator[None]:
    """Silence PyTorch's log: a call that has no type is a trial here, not an error."""
    log = logging.getLogger("torch._subclasses.fake_tensor")
    before, log.disabled = log.disabled, True  # a level would clear what all loggers remember
    try:
        yield
    finally:
        log.disabled = before


class _Knowledge:
    """What a ShapeEnv knew about its symbols: PyTorch cannot take back what an attempt made it note."""

    tables = ("replacements", "replacements_slocs", "var_to_range", "axioms", "deferred_runtime_asserts")

    def __init__(self, env: ShapeEnv) -> None:
        self.env = env
        self.known = {name: dict(getattr(env, name)) for name in self.tables}
        self.asserted = {symbol: list(said) for symbol, said in env.deferred_runtime_asserts.items()}
        self.guards = len(env.guards)

    def forced(self) -> set[sympy.Symbol]:
        """Symbols that were given a value since, or are in an assertion that is new."""
        found = set(self.env.replacements) - set(self.known["replacements"])
        for symbol, said in self.env.deferred_runtime_asserts.items():
            for assertion in said[len(self.asserted.get(symbol, ())) :]:
                found |= assertion.expr.free_symbols
        return found

    def restore(self) -> None:
        """Forget what was learned since."""
        self.known["deferred_runtime_asserts"] = self.asserted
        for name, entries in self.known.items():
            table = getattr(self.env, name)
            table.clear()
            table.update(entries)
        del self.env.guards[self.guards :]
        self.env.num_deferred_runtime_asserts = sum(map(len, self.asserted.values()))
        self._clear_caches()

    def _clear_caches(self) -> None:
        """A guard that was answered once is answered from a cache, and so forces nothing the next time."""
        for method in vars(type(self.env)).values():
            if hasattr(method, "cache_clear"):
                method.cache_clear()
        if hasattr(self.env, "_replacements_version_counter"):
            self.env._replacements_version_counter += 1


def fake_like(
    mode: FakeTensorMode, shape: Sequence[Any], dtype: torch.dtype, device: torch.device
) -> torch.Tensor:
    """An empty fake tensor."""
    with mode:
        return torch.empty(tuple(shape), dtype=dtype, device=device)
