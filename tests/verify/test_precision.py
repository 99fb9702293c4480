"""Both certificates on models of many families, every parameter randomised, in 16 bits.

In float32: tests/test_families.py.
"""

from __future__ import annotations

import functools

import pytest
import torch

import prunec
from prunec import ops
from prunec.compiler import Compiled, compile_source
from prunec.frontend import sources
from prunec.ir import graph
from prunec.ir.program import ProgramModule
from prunec.policy.policy import Policy
from prunec.verify.certificate import certify
from tests.families import FAMILIES, Family, difference, tensors

pytestmark = pytest.mark.usefixtures("recognised_once")

#: Registers and LayerScale, rotary tables, a relative bias, a map head, a spelled-out softmax in float32.
NAMES = ("timm_dinov2_registers", "timm_dinov3", "timm_beit", "hf_siglip", "hf_vit_eager", "hf_yolos")


def family(name: str) -> Family:
    return next(each for each in FAMILIES if each.name == name)


@functools.cache
def compiled(name: str, dtype: torch.dtype) -> Compiled:
    chosen = family(name)
    args, kwargs = chosen.call(chosen.images(2).to(dtype))
    policy = Policy.load(chosen.policy).override(keep_per_site=0.5, blocks=(1, 2))
    return compile_source(sources.from_module(chosen.model().to(dtype), kwargs or args), policy)


CASES = [(name, torch.bfloat16, 2e-2) for name in NAMES] + [(NAMES[0], torch.float16, 5e-3)]


@pytest.mark.parametrize(("name", "dtype", "tolerance"), CASES)
def test_both_certificates_hold(name: str, dtype: torch.dtype, tolerance: float) -> None:
    certificate = compiled(name, dtype).certificate
    assert (certificate.tolerance, certificate.permutation_tolerance) == (tolerance, 1e-5)
    assert certificate.identity <= tolerance
    assert certificate.permutation <= 1e-5


@pytest.mark.parametrize("name", NAMES)
def test_keeping_everything_equals_the_model_in_sixteen_bits(name: str) -> None:
    chosen = family(name)
    model = chosen.model().bfloat16()
    args, kwargs = chosen.call(chosen.images(2).bfloat16())  # that of `compiled`: captured once
    same = prunec.transform(model, prunec.Policy.load(chosen.policy, keep=1.0), example=kwargs or args)
    half = ProgramModule(compiled(name, torch.bfloat16).pruned)
    args, kwargs = chosen.call(chosen.images(3).bfloat16())
    with torch.no_grad():
        expected = model(*args, **kwargs)
        assert difference(same(*args, **kwargs), expected) <= 2e-2
        assert difference(half(*args, **kwargs), expected) > 2e-2
    assert {value.dtype for value in tensors(expected)} == {torch.bfloat16}


@pytest.mark.parametrize("name", ["timm_eva02", "timm_dinov3", "timm_beit", "hf_dinov3"])
def test_a_table_that_stays_in_its_old_order_is_found(name: str) -> None:
    result = compiled(name, torch.bfloat16)
    pruned = result.pruned.replace(module=graph.copy(result.pruned.module))
    for node in [node for node in pruned.graph.nodes if node.target is ops.take]:
        node.replace_all_uses_with(node.args[0])
    graph.tidy(pruned.module)
    with pytest.raises(prunec.VerificationError, match="under the permutation certificate"):
        certify(result.dense, pruned)
