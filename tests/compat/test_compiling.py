from __future__ import annotations

import pytest
import torch

from prunec import compat


def test_what_does_not_hold_is_an_error_with_the_given_words() -> None:
    compat.assume(True, "never said")
    with pytest.raises(RuntimeError, match="too many rows"):
        compat.assume(False, "too many rows")
    with pytest.raises(RuntimeError):
        compat.assume(False)


def test_a_length_that_is_read_off_a_tensor_is_traced_inside_the_context_alone() -> None:
    before = torch._dynamo.config.capture_scalar_outputs
    with compat.scalar_outputs():
        assert torch._dynamo.config.capture_scalar_outputs
    assert torch._dynamo.config.capture_scalar_outputs is before
