"""A program at its own counts beside the dense graph with the same choices, one image at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from prunec import compat, graph, heads
from prunec.anatomy import Anatomy
from prunec.errors import VerificationError
from prunec.interface import images_in
from prunec.program import Program
from prunec.verify import invariants
from prunec.verify.choices import Choice, choices, sites_of
from prunec.verify.reference import Reference, UnprovenError

#: What a dense graph may hold that counts as random and, in eval mode, is not.
_QUIET = ("scaled_dot_product_attention", "dropout", "dropout_", "feature_dropout", "rrelu")


@dataclass(frozen=True)
class Run:
    """A program's outputs at its own counts, and for each site and image what it chose."""

    outputs: Sequence[Any]
    chosen: list[list[Choice]]


def run(program: Program, flat: Sequence[Any]) -> Run:
    """One run; VerificationError where it breaks off, or a selection is not what it must be."""
    assert program.plan is not None and program.anatomy is not None
    sites = sites_of(program)
    recorder = graph.Recorder(program.module, {node.name for site in sites for node in site.nodes})
    try:
        outputs = recorder.run(*flat)
    except (RuntimeError, IndexError) as error:
        raise VerificationError(
            f"the rewritten model fails at its own counts: {str(error).splitlines()[0]}",
            remedy="the model was not changed and nothing was returned; please report the model's name",
        ) from error
    chosen = choices(program, sites, recorder.values)
    ends = program.anatomy.prefix, program.anatomy.suffix
    for site, images in zip(program.plan.sites, chosen, strict=True):
        invariants.check(site, program.plan, images, ends)
    return Run(outputs, chosen)


def references(dense: Program, program: Program, chosen: list[list[Choice]], flat: Sequence[Any]) -> list[Reference]:
    """The dense graph's run with these choices, for each image; UnprovenError where there is none."""
    assert program.plan is not None and program.anatomy is not None
    batch = images_in(flat)
    if batch > 1 and dense.interface.batch != batch:
        raise UnprovenError("the model's own code fixes the batch, so no image runs by itself")
    random = next((node for node in dense.graph.nodes if _is_random(node)), None)
    if random is not None:
        raise UnprovenError(f"the model draws random numbers: {graph.place(random)}")
    scores = heads.class_scores(dense) if program.plan.fate == "exit" else None
    scores = scores if isinstance(scores, heads.ClassScores) else None
    made = []
    for image in range(batch):
        those = [images[image] for images in chosen]
        reference = Reference(dense, program.anatomy, program.plan, those, scores)
        reference.outputs = reference.run(*(one(leaf, image, batch) for leaf in flat))
        made.append(reference)
    return made


def check_pixel_free(dense: Program, anatomy: Anatomy, chosen: list[list[Choice]], flat: Sequence[Any]) -> None:
    """Rows at either end that no pixel reaches, such as a class token, must stay at every site."""
    names = [node.name for node in dense.graph.nodes if node.op == "placeholder"]
    place, generator = names.index(anatomy.pixels), torch.Generator().manual_seed(0)
    noise = torch.rand(flat[place].shape, generator=generator).to(flat[place])
    others = [*flat[:place], noise, *flat[place + 1 :]]
    before, after = (_first_state(dense, anatomy.states[0], given) for given in (flat, others))
    same = (before == after).movedim(anatomy.token_dim, 0).flatten(1).all(dim=1).tolist()
    if all(same):
        return
    first, last = same.index(False), len(same) - same[::-1].index(False)
    for number, images in enumerate(chosen):
        for image, choice in enumerate(images):
            gone = [row for row in (*range(first), *range(last, len(same))) if not choice.kept[row]]
            if gone and len(choice.kept) == len(same):
                raise VerificationError(
                    f"rows that do not come from pixels (class tokens, registers, queries) are left out: {gone}",
                    where=f"site {number}, image {image}",
                    remedy="the model was not changed and nothing was returned; please report the model's name",
                )


def _first_state(dense: Program, name: str, flat: Sequence[Any]) -> Tensor:
    interpreter = fx.Interpreter(dense.module, garbage_collect_values=False)
    interpreter.args_iter = iter(flat)
    for node in dense.graph.nodes:
        interpreter.env[node] = interpreter.run_node(node)
        if node.name == name:
            break
    found: Tensor = interpreter.env[node]
    return found


def together(references: Sequence[Reference], like: Sequence[Any]) -> list[Any]:
    """The outputs of single images as one batch."""
    made = []
    for place, whole in enumerate(like):
        parts = [reference.outputs[place] for reference in references]
        if isinstance(whole, Tensor) and len(parts) > 1:
            axes = [
                axis
                for axis, (one, all_) in enumerate(zip(parts[0].shape, whole.shape, strict=True))
                if one != all_
            ]
            made.append(torch.cat(parts, dim=axes[0]) if axes else parts[0])
        else:
            made.append(parts[0])
    return made


def first_difference(
    program: Program,
    made: Sequence[Reference],
    chosen: list[list[Choice]],
    flat: Sequence[Any],
    differ: Callable[[Tensor, Tensor], bool],
) -> str | None:
    """The first state of the stream in which a row that goes on is not what the dense graph has there."""
    assert program.anatomy is not None
    dim, names = program.anatomy.token_dim, graph.by_name(program.graph)
    recorder = graph.Recorder(program.module, set(program.anatomy.states))
    recorder.run(*flat)
    for name in program.anatomy.states:
        for image, reference in enumerate(made):
            value, expected = recorder.values.get(name), reference.found.get(name)
            if not isinstance(value, Tensor) or expected is None or value.shape[1 - dim] != len(made):
                continue
            x, behind = expected
            rows = torch.arange(x.shape[dim], device=x.device)
            rows = chosen[behind - 1][image].rows if behind else rows
            found, wanted = value.select(1 - dim, image), x.select(1 - dim, 0)
            wanted = wanted.index_select(0, rows)
            if len(found) == len(rows) and differ(found, wanted):  # longer: some of it is padding
                return graph.place(names[name])
    return None


def one(leaf: Any, image: int, batch: int) -> Any:
    """What belongs to one image of a flat input."""
    is_batch = isinstance(leaf, Tensor) and leaf.dim() > 0 and leaf.shape[0] == batch
    return leaf[image : image + 1] if is_batch else leaf


def _is_random(node: fx.Node) -> bool:
    return compat.is_random(node.target) and compat.op_name(node.target) not in _QUIET
