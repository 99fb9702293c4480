"""Anatomies without models, for what only counts tokens."""

from __future__ import annotations

from prunec.structure import Anatomy, Block, Branch, Core


def anatomy(
    *, depth: int = 6, prefix: int = 1, suffix: int = 0, grid: int = 25, head: str = "class token"
) -> Anatomy:
    """A stream of `prefix` + `grid` + `suffix` tokens through sequential blocks."""
    states = [f"add_{place}" for place in range(2 * depth + 1)]
    return Anatomy(
        blocks=tuple(_block(index, states) for index in range(depth)),
        tokens=prefix + grid + suffix,
        prefix=prefix,
        suffix=suffix,
        token_dim=1,
        class_token=0 if prefix else None,
        head=(head,),
        taps=(),
        states=tuple(states),
        pixels="x",
    )


def _block(index: int, states: list[str]) -> Block:
    first, middle, last = states[2 * index : 2 * index + 3]
    core = Core("fused", f"attention_{index}", f"q_{index}", f"k_{index}", f"v_{index}")
    attention = Branch("attention", first, middle, "pre", layer_scale=False, cores=(core,))
    mlp = Branch("mlp", middle, last, "pre", layer_scale=False, activation="gelu")
    return Block(index, f"blocks.{index}", (attention, mlp))
