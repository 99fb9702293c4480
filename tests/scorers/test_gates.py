from __future__ import annotations

import pytest
import torch
from torch import nn

from prunec.errors import PolicyError
from prunec.policy.language import Scorer
from prunec.scorers.gates import Grader, MlpGate, PreNet, QueryGate, Setting, SiteModule, build

SETTING = Setting(dim=12, patches=6, grid=(2, 3), image=(3, 8, 12), classes=5)
X = (2, 6, 12)


def gate(kind: str, **options: object) -> nn.Module:
    return build(Scorer.model_validate({"kind": kind, **options}), SETTING).eval()


@pytest.mark.parametrize("kind", ["mlp", "predictor", "query", "pre_net"])
def test_one_number_for_each_patch_that_learns(kind: str) -> None:
    module = gate(kind)
    score = module(torch.randn(X))
    assert score.shape == (2, 6)
    score.square().sum().backward()
    assert all(parameter.grad is not None for parameter in module.parameters())


@pytest.mark.parametrize("kind", ["mlp", "query", "grader"])
def test_without_context_a_patch_is_scored_by_itself(kind: str) -> None:
    module, x = gate(kind), torch.randn(X)
    assert not module.context
    torch.testing.assert_close(module(x[:, [4, 1]]), module(x)[:, [4, 1]])


@pytest.mark.parametrize("kind", ["predictor", "pre_net"])
def test_with_context_padding_counts_for_nothing(kind: str) -> None:
    module, x = gate(kind), torch.randn(X)
    assert module.context
    assert module.takes_valid
    valid = torch.tensor([[True, True, False, True, True, False]] * 2)
    there = [0, 1, 3, 4]
    torch.testing.assert_close(module(x, valid)[:, there], module(x[:, there]))
    assert not torch.allclose(module(x)[:, there], module(x[:, there]))  # or the test would say nothing


def test_queries_are_summed_before_they_look() -> None:
    module, x = QueryGate(SETTING, queries=3), torch.randn(X)
    torch.testing.assert_close(module(x), (x @ module.queries.T).sum(dim=-1))


def test_the_hidden_width_is_a_share_of_the_stream_and_never_none() -> None:
    assert gate("mlp", hidden=0.5).up.out_features == 6
    assert MlpGate(SETTING).up.out_features == 3
    assert MlpGate(Setting(dim=2, patches=1), hidden=0.1).up.out_features == 1


def test_a_pre_net_may_make_its_own_patches_of_the_image() -> None:
    module = gate("pre_net", embedding="own", depth=1)
    assert module.reads == "pixels"
    assert module(torch.randn(2, 3, 8, 12)).shape == (2, 6)
    assert PreNet(SETTING).reads == "patches"
    with pytest.raises(PolicyError, match="grid") as caught:
        PreNet(Setting(dim=12, patches=6, image=(3, 8, 12)), embedding="own")
    assert caught.value.where == "scorer.embedding"


def test_a_grader_names_classes_and_needs_some() -> None:
    assert gate("grader")(torch.randn(X)).shape == (2, 6, 5)
    with pytest.raises(PolicyError, match="class scores") as caught:
        Grader(Setting(dim=12, patches=6))
    assert caught.value.where == "scorer.kind"


def test_a_site_holds_its_threshold_beside_its_gate() -> None:
    site = SiteModule(gate("query"), 0.25)
    assert dict(site.named_buffers())["threshold"] == 0.25
    assert [name for name, _ in site.named_parameters()] == ["gate.queries"]
    assert not list(SiteModule().parameters())
