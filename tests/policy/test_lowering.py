"""Which mode is chosen, what is refused and why, and that every mode compiles, exports, loads and prints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

import prunec
from prunec import ops, targets
from prunec.compiler import compile_source
from prunec.errors import TargetError, UsageError
from prunec.ir.program import ProgramModule
from prunec.policy.lowering import MODES, choose, from_dict
from prunec.policy.modes import Masked, ModeLike, Packed, Padded
from prunec.policy.policy import Policy
from tests import moding, tiny
from tests.tiny import ViT, pixels, recognised

pytestmark = pytest.mark.usefixtures("recognised_once")

FIXED = tiny.policy()
RAGGED = tiny.policy(selector="threshold", fate="preserve", reactivate=True)
IN_BATCH = Policy.load(
    {**FIXED.model_dump(), "selector": {"kind": "top_k", "keep_per_site": 0.5, "budget": "batch"}}
)


# --- the choice -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "given", "expected"),
    [
        (FIXED, {}, "static"),
        (FIXED, {"batch": 8}, "static"),
        (RAGGED, {}, "padded"),
        (RAGGED, {"batch": 1}, "static, one image at a time"),
        (RAGGED, {"batch": 8}, "padded"),
        (RAGGED, {"mode": "static"}, "static, one image at a time"),
        (RAGGED, {"mode": Padded(buckets=(16, 8))}, "padded to lengths of 8, 16"),
        (RAGGED, {"mode": Packed(max_tokens=90)}, "packed, at most 90 tokens"),
        (RAGGED, {"mode": "masked", "batch": 8}, "masked"),
        (FIXED, {"mode": "packed"}, "packed"),
        (IN_BATCH, {}, "padded"),
        (RAGGED, {"batch": 1, "can": ("padded",)}, "padded"),
    ],
)
def test_the_mode_that_is_chosen(policy: Policy, given: dict[str, Any], expected: str) -> None:
    lowering = choose(policy, **given)
    assert str(lowering) == expected
    assert from_dict(policy, json.loads(json.dumps(lowering.as_dict()))) == lowering


MISTAKES: list[tuple[dict[str, Any], type[Exception], str, str | None]] = [
    ({"mode": "paded"}, UsageError, "unknown mode 'paded'; nearest: padded", f"modes: {', '.join(MODES)}"),
    (
        {"mode": "packed", "can": ("static", "padded")}, TargetError, "this target cannot run mode packed",
        "modes it can: static, padded",
    ),
    (
        {"mode": "packed", "can": ("static", "padded"), "batch": 4}, TargetError,
        "this target cannot run mode packed", "modes it can: padded",
    ),
    (
        {"mode": "static", "batch": 4}, UsageError,
        "mode static keeps as many tokens of every image, and with policy 'mine' images differ: it can run "
        "one image at a time, not 4",
        "modes that can: padded, packed, masked",
    ),
    (
        {"mode": "padded", "attention": "rows"}, UsageError,
        "attention is an option of mode packed, got mode padded", None,
    ),
]  # fmt: skip


@pytest.mark.parametrize(("given", "kind", "said", "remedy"), MISTAKES)
def test_what_is_refused(given: dict[str, Any], kind: type[Exception], said: str, remedy: str | None) -> None:
    with pytest.raises(kind) as caught:
        choose(RAGGED, **given)
    assert said in caught.value.what  # type: ignore[attr-defined]
    assert caught.value.remedy == remedy  # type: ignore[attr-defined]


def test_a_target_that_can_less(monkeypatch: pytest.MonkeyPatch) -> None:
    class Fewer(type(targets.load("eager"))):  # type: ignore[misc]
        modes = ("static", "masked")

    monkeypatch.setattr(targets, "find", lambda name, precision="fp32": Fewer())
    with pytest.raises(TargetError, match="cannot run mode packed") as caught:
        prunec.optimize(
            prunec.frontend.sources.from_module(ViT(), pixels()),
            RAGGED,
            measure=prunec.Measure(target="eager"),
            mode="packed",
        )
    assert caught.value.remedy == "modes it can: masked"


# --- programs in a mode -----------------------------------------------------------------------


def transformed(mode: ModeLike, policy: Policy = RAGGED, **options: Any) -> ProgramModule:
    torch.manual_seed(0)
    model = ViT(depth=2, read=lambda x: x).eval()
    fast = prunec.transform(model, policy, example=pixels(), calibrate=False, mode=mode, **options)
    assert isinstance(fast, ProgramModule)
    if policy is RAGGED:
        fast.get_buffer("prunec.site_0.threshold").fill_(4.2)
    return fast


def loud(batch: int, factor: float = 1.0) -> Tensor:
    return pixels(batch) * torch.linspace(0.3, 2, batch).view(-1, 1, 1, 1) * factor


def test_single_refuses_a_batch() -> None:
    fast = transformed("static")
    assert fast(pixels(1)).shape == (1, 26, 7)
    with pytest.raises(UsageError, match="runs one image at a time, and these are 2") as caught:
        fast(pixels(2))
    assert str(caught.value.remedy).endswith("in a mode that can: padded, packed, masked")


@pytest.mark.parametrize("how", ["eager", "compiled"])
def test_a_batch_above_its_bound(how: str) -> None:
    fast = transformed(Packed(max_tokens=60))
    fast.get_buffer("prunec.site_0.threshold").fill_(5.5)
    x = loud(4)
    call: Any = fast
    if how == "compiled":
        torch._dynamo.reset()
        with torch._dynamo.config.patch(capture_scalar_outputs=True, capture_dynamic_output_shape_ops=True):
            call = targets.LoweredModule(
                fast.__dict__["program"], torch.compile(fast.__dict__["program"].module, backend="aot_eager")
            )
            torch.testing.assert_close(call(x), fast(x))
    fast.get_buffer("prunec.site_0.threshold").fill_(-1.0)
    with pytest.raises(UsageError, match="keep more than 60 tokens together") as caught:
        call(x)
    assert "Packed(max_tokens=...), --max-tokens" in str(caught.value.remedy)


@pytest.mark.parametrize(
    ("mode", "batch"),
    [(Padded(buckets=(8, 16)), 2), (Packed(max_tokens=99), 2), (Masked(), 2), ("static", 1)],
    ids=str,
)
def test_an_artefact_keeps_its_mode(mode: ModeLike, batch: int, tmp_path: Path) -> None:
    model = ViT(depth=2, read=lambda x: x).eval()
    source = prunec.frontend.sources.from_module(model, pixels())
    result = prunec.optimize(
        source,
        RAGGED,
        measure=prunec.Measure(target="eager", calibrate=False, batch=batch, rounds=1),
        mode=mode,
    )
    again = prunec.load(result.save(tmp_path / "out"), model, example=pixels(), target="eager")
    one, other = (each.__dict__["program"].plan.lowering for each in (result.module, again))
    assert one == other == choose(RAGGED, mode, attention=one.attention)
    x = pixels(1)
    torch.testing.assert_close(again(x), result.module(x))
    assert f"mode         {one}" in result.report.text().splitlines()


ATTENTION = "~ scaled_dot_product_attention -> "
SHOWN = {
    "static": ("+ pack_0 = kept_rows(", "reshape [B, 26, 16] -> [B, n, 16]", "scatter("),
    "padded": ("+ pack_0 = pack(", "reshape [B, 26, 16] -> [B, n, 16]", "scatter("),
    "packed": ("reshape [B, 26, 16] -> [1, S, 16]", "put("),
    "masked": (f"{ATTENTION}attend_kept(", "+ pack_0 = all_rows(", "blend("),
}


@pytest.mark.parametrize("mode", MODES)
def test_a_diff_shows_the_mode(mode: str) -> None:
    model = ViT(depth=2, read=lambda x: x).eval()
    fast = prunec.transform(model, RAGGED, example=pixels(), calibrate=False, mode=mode)
    text = prunec.diff(model, fast, example=pixels())
    assert [sign for sign in SHOWN[mode] if sign not in text] == []
    assert "  head           tokens                            26   14 -> 26\n" in text


# --- compiled and exported --------------------------------------------------------------------


def module(mode: ModeLike, policy: Policy = RAGGED, **options: Any) -> nn.Module:
    dense = recognised(ViT(depth=2, read=lambda x: x))
    program = moding.plain(dense, policy, mode, **options)
    if policy is RAGGED:
        program.module.get_buffer("prunec.site_0.threshold").fill_(4.2)
    return moding.lowered(program, mode, **options).module


@pytest.mark.parametrize("mode", ["padded", "packed", "masked"])
def test_one_graph_and_no_recompilation_for_other_batches(mode: str) -> None:
    torch._dynamo.reset()
    made = module(mode)
    compiled = torch.compile(made, fullgraph=True, backend="aot_eager", dynamic=True)
    settings = {"capture_scalar_outputs": True, "capture_dynamic_output_shape_ops": True}
    with torch._dynamo.config.patch(error_on_recompile=True, **settings), torch.no_grad():
        for batch, factor in ((4, 1.0), (2, 0.3), (7, 2.0)):
            x = loud(batch, factor)
            torch.testing.assert_close(compiled(x)[0], made(x)[0], rtol=0, atol=1e-5)


def test_one_image_at_a_time_compiles_once_with_inductor() -> None:
    torch._dynamo.reset()
    made = module("static")
    compiled = torch.compile(made, fullgraph=True)
    settings = {"capture_scalar_outputs": True, "capture_dynamic_output_shape_ops": True}
    with torch._dynamo.config.patch(error_on_recompile=True, **settings), torch.no_grad():
        for factor in (1.0, 0.3, 2.0):
            x = pixels(1) * factor
            torch.testing.assert_close(compiled(x)[0], made(x)[0], rtol=0, atol=1e-5)


def test_buckets_are_the_lengths_that_occur() -> None:
    made, lengths = module(Padded(buckets=(17, 22))), set()
    packs = [node for node in made.graph.nodes if node.target is ops.pack]
    assert len(packs) == 1
    for factor in (0.1, 0.5, 1.0, 1.5, 3.0):
        interpreter = torch.fx.Interpreter(made, garbage_collect_values=False)
        with torch.no_grad():
            interpreter.run(loud(3, factor))
        lengths.add(interpreter.env[packs[0]].shape[1])
    assert lengths == {17, 22, 26}


@pytest.mark.parametrize("mode", MODES)
def test_it_exports(mode: str) -> None:
    made = module(mode)
    x = loud(1 if mode == "static" else 3)
    shapes = None if mode == "static" else ({0: torch.export.Dim("batch", min=2)},)
    with torch.no_grad():
        exported = torch.export.export(made, (x,), dynamic_shapes=shapes).module()
        for batch in (1,) if mode == "static" else (2, 5):
            x = loud(batch)
            torch.testing.assert_close(exported(x)[0], made(x)[0], rtol=0, atol=1e-5)


# --- a budget for the batch -------------------------------------------------------------------


def best_of_all(x: Tensor, keep: int) -> list[list[int]]:
    """Patches of all images by length: the best of each, and the best of the others."""
    norms = x[:, 1:].norm(dim=-1)
    kept = {(image, int(row.argmax())) for image, row in enumerate(norms)}
    order = sorted(
        ((float(-norm), (image, place)) for image, row in enumerate(norms) for place, norm in enumerate(row))
    )
    for _, place in order:
        if len(kept) < keep * len(x):
            kept.add(place)
    return [sorted(place + 1 for image, place in kept if image == number) for number in range(len(x))]


@pytest.mark.parametrize("mode", ["padded", "packed", "masked"])
def test_a_batch_shares_its_budget(mode: str) -> None:
    torch.manual_seed(0)
    model = ViT(depth=2, read=lambda x: x).eval()
    program = moding.plain(recognised(model), IN_BATCH)
    made, images = moding.lowered(program, mode), loud(4)
    found = moding.outcome(made, {}, [images], None)
    with torch.no_grad():
        x = model.blocks[0](model.embed(images))
        rows = best_of_all(x, 13)
        assert [left.nonzero()[:, 0].tolist() for left in found.left[0]] == [[0, *kept] for kept in rows]
        assert found.left[0].sum() == 4 * 14
        assert len({len(kept) for kept in rows}) > 1
        for image, kept in zip(x, rows, strict=True):
            image[[0, *kept]] = model.blocks[1](image[[0, *kept]][None])[0]
        torch.testing.assert_close(found.outputs[0], model.head(model.norm(x)), rtol=0, atol=1e-5)


@pytest.mark.parametrize("blocks", [(1,), (1, 2)])
def test_images_that_share_a_budget_are_certified_apart_from_it(blocks: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    source = prunec.frontend.sources.from_module(ViT(depth=3).eval(), loud(2))
    compiled = compile_source(source, IN_BATCH.override(blocks=blocks), lowering=choose(IN_BATCH, "padded"))
    assert compiled.certificate.padding is not None
    assert compiled.certificate.padding < 1e-5


def test_packed_rows_of_a_budget_are_as_many_for_every_batch_of_a_size() -> None:
    made = module("packed", IN_BATCH)
    batch = torch.export.Dim("batch", min=2)
    exported = torch.export.export(made, (loud(3),), dynamic_shapes=({0: batch},))
    read = [
        torch.ops.aten.nonzero.default,
        torch.ops.aten.item.default,
        torch.ops.aten._local_scalar_dense.default,
    ]
    assert not {node.target for node in exported.graph.nodes} & set(read)
    values = [node.meta.get("val") for node in exported.graph.nodes]
    sizes = [size for value in values if isinstance(value, Tensor) for size in value.shape]
    assert free_unbacked_symbols(sizes) == set()
    x = loud(5)
    torch.testing.assert_close(exported.module()(x)[0], made(x)[0], rtol=0, atol=1e-5)


def test_the_certificate_and_the_agreement_are_in_the_record() -> None:
    source = prunec.frontend.sources.from_module(ViT(depth=2).eval(), pixels())
    compiled = compile_source(source, RAGGED, calibrate=False, lowering=choose(RAGGED, "packed"))
    stages = [stage.name for stage in compiled.pruned.stages]
    assert stages[-2:] == ["pack rows", "agree"]
    assert "the same outputs as before, on token sets of all sizes" in str(compiled.pruned.stages[-1].notes)
