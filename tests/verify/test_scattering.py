from __future__ import annotations

import pytest
import torch
from torch import Tensor

from prunec import ops
from prunec.ir.program import Planned
from prunec.verify.scattering import Scattering
from tests.tiny import ViT, pixels, pruned, recognised


@pytest.fixture(scope="module")
def ragged() -> Planned:
    torch.manual_seed(1)
    dense = recognised(ViT(depth=3), pixels(4))
    return pruned(dense, blocks=[1, 2], selector="threshold", fate="preserve", reactivate=True)


def masks(program: Planned, images: list[int]) -> list[Tensor]:
    """What each site keeps of these images."""
    found = []

    class Watched(Scattering):
        def call_function(self, target, args, kwargs):  # type: ignore[no-untyped-def]
            result = super().call_function(target, args, kwargs)
            if target in ops.MASKS:
                found.append(result)
            return result

    with torch.no_grad():
        Watched(program, images).run(pixels(len(images)))
    return found


def test_images_keep_different_tokens_at_every_site_and_protected_ones_always(ragged: Planned) -> None:
    first, second = masks(ragged, [0, 1, 2, 3])
    for kept in (first, second):
        assert kept[:, 0].all()
        counts = kept.sum(dim=1)
        assert len(set(counts.tolist())) > 1
        assert int(counts.min()) > 1
        assert int(counts.max()) < kept.shape[1]
    assert not torch.equal(first, second)


def test_an_image_keeps_the_same_by_itself_and_among_others(ragged: Planned) -> None:
    together = masks(ragged, [0, 1, 2, 3])
    for image in (1, 3):
        alone = masks(ragged, [image, image])
        for whole, one in zip(together, alone, strict=True):
            assert torch.equal(one[0], one[1])
            assert torch.equal(one[0], whole[image])
