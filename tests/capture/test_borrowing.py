"""The user's model is given back as it was, and threads wait for each other."""

from __future__ import annotations

import threading
from collections import deque
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import prunec
from prunec.capture.borrowing import alone, unchanged
from tests.tiny import ViT, pixels


def transformed(model: nn.Module, **options: Any) -> nn.Module:
    return prunec.transform(
        model, prunec.Policy.load("norm", keep=0.5, blocks=(1,)), **{"example": pixels(), **options}
    )


class Counting(ViT):
    """Everything that a forward may change."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros((), dtype=torch.long))
        self.register_buffer("mean", torch.full((3,), float("nan")))
        self.calls, self.seen, self.shapes, self.recent = 0, [1], {"first": None}, deque([0], maxlen=2)
        self.plain = torch.ones(2)
        self.fails = False

    def forward(self, pixels: Tensor) -> Tensor:
        self.count += 1
        self.mean = pixels.detach().mean(dim=(0, 2, 3))
        self.calls += 1
        self.seen.append(self.calls)
        self.shapes["last"] = tuple(pixels.shape)
        self.recent.append(self.calls)
        self.plain.mul_(2)
        self.late = pixels
        if self.fails:
            raise ZeroDivisionError("an unlucky one")
        return super().forward(pixels)


def state(model: nn.Module) -> list[Any]:
    kept = {name: value for name, value in vars(model).items() if name[0] != "_"}
    numbers = [(name, id(tensor), tensor.numpy().tobytes()) for name, tensor in model.named_buffers()]
    return [list(kept), repr(kept), numbers]


@pytest.mark.parametrize("fails", [False, True])
def test_what_forward_changes_is_put_back_to_the_bit(fails: bool) -> None:
    model = Counting().eval()
    model.fails = fails
    before = state(model)
    if fails:
        with pytest.raises(ZeroDivisionError), unchanged(model):
            model(pixels())
    else:
        with unchanged(model):
            model(pixels())
            assert (int(model.count), model.calls, model.seen) == (1, 1, [1, 1])
    assert state(model) == before


class Counter(ViT):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros((), dtype=torch.long))
        self.calls = 0

    def forward(self, pixels: Tensor) -> Tensor:
        self.count += 1
        self.calls += 1
        return super().forward(pixels)


def test_a_transform_changes_no_counter_and_says_that_the_result_has_none() -> None:
    model = Counter().eval()
    with pytest.warns(UserWarning, match="changes count whenever it runs"):
        fast = transformed(model)
    assert (int(model.count), model.calls) == (0, 0)
    fast(pixels(3))
    assert (int(model.count), int(fast.count), model.calls) == (0, 0, 0)


def test_a_transform_that_fails_changes_none_either() -> None:
    class Branches(Counter):
        def forward(self, pixels: Tensor) -> Tensor:
            y = super().forward(pixels)
            return y if y.sum() > 0 else -y

    model = Branches().eval()
    with pytest.raises(prunec.CaptureError):
        transformed(model)
    assert (int(model.count), model.calls) == (0, 0)
    model(pixels())
    assert (int(model.count), model.calls) == (1, 1)


class Running(ViT):
    """Statistics that it uses and moves, as no batch norm in eval mode would."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(3))

    def forward(self, pixels: Tensor) -> Tensor:
        self.mean.mul_(0.5).add_(pixels.detach().mean(dim=(0, 2, 3)))
        return super().forward(pixels - self.mean[:, None, None])


def test_running_statistics_are_those_of_before_for_every_run_that_is_compared() -> None:
    model = Running().eval()
    with pytest.warns(UserWarning, match="the model changes mean whenever it runs"):
        fast = transformed(model)
    assert torch.equal(model.mean, torch.zeros(3))
    assert "not proven at its own counts: the images of a batch change each other" in str(
        fast.program.stages[-1].notes
    )


def test_a_part_within_leaves_the_rest_alone() -> None:
    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.vit, self.calls = Counter(), 0

        def forward(self, pixels: Tensor) -> Tensor:
            self.calls += 1
            return self.vit(pixels)

    model = Whole().eval()
    with pytest.warns(UserWarning, match="changes count"):
        fast = transformed(model, submodule="vit")
    assert (int(model.vit.count), model.calls, model.vit.calls, fast.calls) == (0, 0, 0, 0)


# --- threads ------------------------------------------------------------------------------------


def test_three_threads_give_what_one_after_another_gives() -> None:
    models = [ViT().eval() for _ in range(3)]
    x, found = pixels(3), {}

    def work(place: int) -> None:
        found[place] = transformed(models[place])(x)

    threads = [threading.Thread(target=work, args=(place,)) for place in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for place, model in enumerate(models):
        # the linear algebra library does not promise the same last bit in every thread
        torch.testing.assert_close(found[place], transformed(model)(x))


def test_one_at_a_time_and_again_inside() -> None:
    inside, most = [], []

    @alone
    def outer() -> None:
        inside.append(1)
        most.append(len(inside))
        inner()
        inside.pop()

    @alone
    def inner() -> None:
        most.append(len(inside))

    threads = [threading.Thread(target=outer) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(most) == {1}
