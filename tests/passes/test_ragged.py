from __future__ import annotations

import pytest
import torch

from prunec.verify.certificate import certify
from tests.passes.padding import MODELS, dense_of, loops, model_of, program_of, score_of
from tests.tiny import ViT, pixels, recognised, run
from tests.windows import windowed


@pytest.mark.parametrize("scorer", ["norm", "mlp"])
@pytest.mark.parametrize("reactivate", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_each_image_of_a_batch_gets_what_plain_loops_give_it(
    name: str, reactivate: bool, scorer: str
) -> None:
    _, prefix, suffix = MODELS[name]
    model = model_of(name)
    program = program_of(model, scorer=scorer, reactivate=reactivate)
    images = pixels(6) * torch.linspace(0.2, 3, 6).view(6, 1, 1, 1)  # some quiet, some loud
    with torch.no_grad():
        expected = [
            loops(
                model,
                image,
                score_of(program),
                (1, 2, 3),
                reactivate=reactivate,
                prefix=prefix,
                suffix=suffix,
            )
            for image in images
        ]
    assert len({tuple(counts) for _, counts in expected}) > 1, "the images keep different numbers of tokens"
    torch.testing.assert_close(
        run(program, images)[0], torch.stack([out for out, _ in expected]), rtol=0, atol=1e-5
    )
    certificate = certify(dense_of(model), program)
    assert certificate.padding is not None
    assert max(certificate.identity, certificate.permutation, certificate.padding) < 1e-5


@pytest.mark.parametrize("threshold", [1e9, -1e9])
def test_empty_and_full_sets(threshold: float) -> None:
    torch.manual_seed(0)
    model = ViT(depth=4, read=lambda x: x.mean(dim=1)).eval()
    program = program_of(model)
    for number in range(3):
        program.module.get_buffer(f"prunec.site_{number}.threshold").fill_(threshold)
    found, dense = run(program, pixels(3))[0], None
    assert bool(found.isfinite().all())
    if threshold < 0:
        torch.manual_seed(5)
        x = pixels(3)
        with torch.no_grad():
            dense = model(x)
        torch.testing.assert_close(run(program, x)[0], dense, rtol=0, atol=1e-5)


def test_a_token_that_was_skipped_keeps_its_value_and_can_return() -> None:
    torch.manual_seed(0)
    model = ViT(depth=3, read=lambda x: x).eval()
    program = program_of(model, blocks=[1, 2])
    first, second = (program.module.get_buffer(f"prunec.site_{number}.threshold") for number in (0, 1))
    first.fill_(1e9)  # only the best goes through block 1
    second.fill_(-1e9)  # all go through block 2
    x = pixels(1)
    with torch.no_grad():
        state = model.blocks[0](model.embed(x))[0]
        kept = torch.zeros(26, dtype=torch.bool)
        kept[[0, int(state[1:].norm(dim=-1).argmax()) + 1]] = True
        state[kept] = model.blocks[1](state[kept][None])[0]
        expected = model.head(model.norm(model.blocks[2](state[None])))
    torch.testing.assert_close(run(program, x)[0], expected, rtol=0, atol=1e-5)


def test_windows_see_every_token_and_their_mlps_only_those_kept() -> None:
    model = windowed()
    program = program_of(model, side=6, blocks=[0, 1, 2, 3])
    images = pixels(4, side=6) * torch.linspace(0.5, 2, 4).view(4, 1, 1, 1)
    together = run(program, images)[0]
    torch.testing.assert_close(
        together, torch.cat([run(program, image[None])[0] for image in images]), rtol=0, atol=1e-5
    )
    certify(recognised(model, pixels(side=6)), program)


def test_it_compiles_as_one_graph_without_recompiling_for_other_counts() -> None:
    torch.manual_seed(0)
    torch._dynamo.reset()
    program = program_of(ViT(depth=4).eval())
    compiled = torch.compile(program.module, fullgraph=True, backend="aot_eager", dynamic=None)
    with torch._dynamo.config.patch(capture_scalar_outputs=True, error_on_recompile=True), torch.no_grad():
        for factor in (1.0, 0.3, 3.0):
            images = pixels(4) * factor
            torch.testing.assert_close(compiled(images)[0], run(program, images)[0], rtol=0, atol=1e-5)
