from __future__ import annotations

import torch
from torch import Tensor, fx

from prunec.dataflow.flow import find_pixels
from prunec.ir import graph
from prunec.probing.replay import Replay, example_inputs
from tests.tiny import ViT, normalised, pixels, run


def program() -> tuple[fx.GraphModule, list[fx.Node]]:
    module = normalised(ViT(depth=2)).module
    return module, [node for node in module.graph.nodes if graph.op(node) == "layer_norm"]


def test_a_value_is_what_a_whole_run_makes_it() -> None:
    made = normalised(ViT(depth=2))
    x = pixels()
    output = graph.output_node(made.graph).all_input_nodes[0]
    with torch.no_grad():
        found = Replay(made.module).value(output, [x])
    assert torch.equal(found, run(made, x)[0])


def test_only_what_a_value_needs_is_run() -> None:
    module, norms = program()
    met: list[fx.Node] = []

    class Watched(Replay):
        def run_node(self, n: fx.Node) -> object:
            met.append(n)
            return super().run_node(n)

    with torch.no_grad():
        Watched(module).value(norms[0], [pixels()])
    assert norms[0] in met
    assert not set(norms[1:]) & set(met)


def test_what_is_changed_where_it_is_made_changes_what_comes_after_alone() -> None:
    module, norms = program()
    replay, x = Replay(module), pixels()

    def louder(value: Tensor) -> Tensor:
        return value + 1

    with torch.no_grad():
        before = [replay.value(node, [x]) for node in norms]
        after = [replay.value(node, [x], {norms[1]: louder}) for node in norms]
    assert torch.equal(after[0], before[0])
    assert torch.equal(after[1], before[1] + 1)
    assert not torch.equal(after[2], before[2])


def test_the_image_is_noise_and_the_same_for_a_seed() -> None:
    module, _ = program()
    image = find_pixels(module.graph)
    (one,), (same,), (other,) = (example_inputs(module, image, seed) for seed in (0, 0, 1))
    assert isinstance(one, Tensor)
    assert one.shape[1:] == (3, 20, 20)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    (zeros,) = example_inputs(module, graph.output_node(module.graph))
    assert not zeros.any()
