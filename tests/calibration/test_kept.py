from __future__ import annotations

import pytest
import torch
from torch import Tensor

from prunec.calibration.kept import KeptCounter, count_kept
from prunec.ir.program import Planned
from prunec.verify import runs
from tests.tiny import ViT, pixels, pruned, recognised

RAGGED = {"selector": "threshold", "fate": "preserve", "reactivate": True}


def chosen(program: Planned, images: Tensor) -> list[list[int]]:
    """The same, read off the choices that the certificate looks at."""
    with torch.no_grad():
        found = runs.run(program, (images,)).chosen
    return [[int(choice.kept.sum()) - 1 for choice in site] for site in found]


@pytest.fixture(scope="module")
def images() -> Tensor:
    torch.manual_seed(1)
    return pixels(6) * torch.linspace(0.3, 2, 6).view(-1, 1, 1, 1)


def test_where_images_keep_as_many_the_plan_says_how_many(images: Tensor) -> None:
    program = pruned(recognised(ViT(depth=3)), blocks=[1, 2])
    assert count_kept(program, images) == tuple(site.keep for site in program.plan.sites) == (13, 7)


def test_a_fused_token_is_none_that_was_kept(images: Tensor) -> None:
    program = pruned(recognised(ViT(depth=3)), blocks=[1], fate="fuse")
    (site,) = program.plan.sites
    assert site.leaves == 1 + site.keep + 1
    assert count_kept(program, images) == (site.keep,)


def test_where_images_differ_each_is_counted_at_each_site(images: Tensor) -> None:
    program = pruned(recognised(ViT(depth=3)), blocks=[1, 2], **RAGGED)
    for name, buffer in program.module.named_buffers():
        if name.endswith("threshold"):
            buffer.fill_(4.5)
    counter = KeptCounter(program)
    with torch.no_grad():
        counter.run(images)
    found = [site.int().tolist() for site in counter.by_site()]
    assert found == chosen(program, images)
    assert len(set(found[0])) > 1  # or the test would say nothing
    assert count_kept(program, images) == pytest.approx([sum(site) / 6 for site in found])


def test_batches_follow_one_another(images: Tensor) -> None:
    counter = KeptCounter(pruned(recognised(ViT(depth=3)), blocks=[1], **RAGGED))
    with torch.no_grad():
        for batch in images.split(2):
            counter.run(batch)
    (site,) = counter.by_site()
    assert site.shape == (6,)
