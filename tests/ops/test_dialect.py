from __future__ import annotations

from types import FunctionType

from prunec import ops


def test_dialect_names_every_operation_once() -> None:
    helpers = {ops.is_ours, ops.tensors_of}
    functions = {getattr(ops, name) for name in ops.__all__ if isinstance(getattr(ops, name), FunctionType)}
    assert set(ops.DIALECT) == functions - helpers
    assert len(set(ops.DIALECT)) == len(ops.DIALECT)
    assert ops.DIALECT[: len(ops.SCORES)] == ops.SCORES
