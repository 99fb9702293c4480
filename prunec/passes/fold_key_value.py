"""Never make keys and values for which there are few queries.

    x -- kv[2C] -- k, v [B, h, n, d] --.
    q [B, h, m, d] ---------------- attention -- out
becomes
    x -----------------.            W_k, W_v: rows of the kv layer's own weight
    q ---- attend_states(q, x, (W_k, b_k), (W_v, b_v)) -- out

A key is W_k x_j, so a score q . W_k x_j is (W_k^T q) . x_j; and a mean of values W_v x_j + b_v is what the
layer makes of the mean of the states x_j. For the one query of a class token or of a pooling head this takes
about a tenth of the operations. It is the same sum in another order, so equal up to rounding.

Which rows of the weight make which head is watched: the operators between the layer and the attention are run
on random numbers. Whatever does more than move them (a norm of the keys, a rotary table) shows, and both keys
and values stay. So they do where anything else reads them, such as a score by keys; where their states
differ; where less than half of the operations would be saved; and where attention is spelled out, causal,
grouped, or drops some of its weights. In the modes `packed` and `masked`, which put attention of their own in
its place, nothing is done.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from prunec import compat, ops
from prunec.ir import arguments, graph
from prunec.ir.calls import OPERATOR_ERRORS
from prunec.ir.program import Counts, Planned
from prunec.ir.rewrite import Pass
from prunec.ir.sizes import sizes_of
from prunec.probing.lengths import IMAGES, Lengths, settings
from prunec.probing.numbers import Noise
from prunec.probing.probe import Probe
from prunec.structure import Anatomy, NoMatch

log = logging.getLogger(__name__)

_LOUD = 1000.0  # numbers so large that a bound on them shows

#: Share of the operations that may be left: they take a little longer on wide states than on narrow heads.
_MOST_LEFT = 0.5

#: Modes whose lowering wants attention as it is.
_MODES_WITH_KEYS = ("packed", "masked")

#: Arguments of fused attention that make it another kind.
_OTHER_KINDS = ("dropout_p", "is_causal", "enable_gqa")


@dataclass(frozen=True)
class FoldKeyValue(Pass[Planned, Planned]):
    """Let few queries attend to the states themselves."""

    name: ClassVar[str] = "fold_key_value"

    def run(self, program: Planned) -> tuple[Planned, Counts]:
        """The program in which such keys and values are not made."""
        if program.plan.lowering.mode in _MODES_WITH_KEYS:
            return program, Counts({"folded": 0})
        lengths = settings(program.graph, IMAGES)
        module = graph.copy(program.module)
        cores = [core for node in module.graph.nodes if (core := _core(node, lengths[0]))]
        folded = [core.node for core in cores if _rewrite(core, lengths)]
        notes = [f"keys and values of {_place(node, program.anatomy)} are never made" for node in folded]
        return program.replace(module=module), Counts({"folded": len(folded)}, tuple(notes))

    def ensures(self, program: Planned) -> None:
        """The weights of keys fit the queries and the states."""
        for node in program.graph.nodes:
            if node.target is ops.attend_states:
                query, states = (graph.shape(arguments.operand(node, name)) for name in ("query", "states"))
                weight, _ = arguments.bind(node)["keys"]
                fits = graph.shape(weight) == (query[1] * query[3], states[2])
                self.promise(fits, "has weights that do not fit", node)


@dataclass(frozen=True)
class _Made:
    """Keys or values, and the linear layer of the states that makes them."""

    value: fx.Node  # [B, h, n, d]
    layer: fx.Node  # [B, n, ..]
    moves: tuple[fx.Node, ...]  # from the layer (left out) to the value

    @property
    def states(self) -> fx.Node:
        """What the layer reads, [B, n, C]."""
        states = self.layer.args[0]
        assert isinstance(states, fx.Node)
        return states

    @property
    def channels(self) -> int:
        """How many of the layer's channels these are, h * d."""
        _, heads, _, width = graph.shape(self.value)
        return int(heads) * int(width)

    def start(self, lengths: Lengths) -> int | None:
        """The first of these channels, which follow head by head; None if numbers do more than move."""
        numbers = _LOUD * Noise(0).like(self.layer.meta["val"], lengths)
        given: dict[fx.Node, Any] = {self.layer: numbers}
        for node in self.moves:
            probe = Probe(node, lengths)
            given[node] = probe.answer(functools.partial(probe.run, given))
            if isinstance(given[node], NoMatch):
                return None
        found, heads = given[self.value], graph.shape(self.value)[1]
        start = int((numbers[0, 0] == found[0, 0, 0, 0]).double().argmax())
        part = numbers[..., start : start + self.channels]  # [B, n, h * d], if there are as many
        fits = part.shape[2] == self.channels
        return start if fits and torch.equal(part.unflatten(2, (heads, -1)).transpose(1, 2), found) else None

    def parameter(self, place: int, start: int) -> tuple[fx.Node | None, int]:
        """The layer's weight (at 1) or bias (at 2) as the whole parameter, and where these channels start."""
        value: Any = self.layer.args[place] if place < len(self.layer.args) else None
        while value is not None and value.target is ops.rows:
            rows = arguments.bind(value)
            if rows["dim"] != 0 or rows["start"] < 0:
                break
            value, start = rows["x"], start + rows["start"]
        return value, start


@dataclass(frozen=True)
class _Core:
    """A fused attention that could do without its keys and values."""

    node: fx.Node
    query: fx.Node  # [B, h, m, d]
    keys: _Made
    values: _Made
    mask: fx.Node | None
    scale: float


# --- find -------------------------------------------------------------------------------------


def _core(node: fx.Node, lengths: Lengths) -> _Core | None:
    """The node as such an attention, if it is one."""
    if graph.op(node) != "scaled_dot_product_attention":
        return None
    names = compat.argument_names_of(node.target)
    given: dict[str, Any] = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
    keys, values = _made(given["key"]), _made(given["value"])
    if keys is None or values is None or any(given.get(name) for name in _OTHER_KINDS):
        return None
    scale = given.get("scale") or int(graph.shape(keys.value)[-1]) ** -0.5
    core = _Core(node, given["query"], keys, values, given.get("attn_mask"), scale)
    return core if _fits(core) and _saves(core, lengths) and not _is_read(core) else None


def _made(value: fx.Node) -> _Made | None:
    """Keys or values with the layer behind them, if operators on one tensor are all that stands between."""
    moves = [value]
    while True:
        sources = [source for source in moves[-1].all_input_nodes if not graph.is_size(source)]
        if moves[-1].op != "call_function" or len(sources) != 1:
            return None
        if graph.op(sources[0]) == "linear":
            return _Made(value, sources[0], tuple(reversed(moves)))
        moves.append(sources[0])


def _fits(core: _Core) -> bool:
    """Whether both layers read the same states [B, n, C], and each head of queries has its own keys."""
    states = core.keys.states
    query, key, value = (
        sizes_of(node.meta["val"]) for node in (core.query, core.keys.value, core.values.value)
    )
    alike = len(query) == len(key) == 4 and query[:2] == key[:2] == value[:2]
    return alike and states is core.values.states and len(graph.shape(states)) == 3


def _saves(core: _Core, lengths: Lengths) -> bool:
    """Whether there are far fewer multiplications without the two layers."""
    _, tokens, width = lengths.shape(core.keys.states.meta["val"])
    _, heads, rows, _ = lengths.shape(core.query.meta["val"])
    channels = core.keys.channels + core.values.channels
    before = tokens * width * channels + rows * tokens * channels
    after = rows * width * channels + 2 * rows * heads * tokens * width
    return after <= _MOST_LEFT * before


def _is_read(core: _Core) -> bool:
    """Whether anything but this attention reads its keys or values."""
    made = {core.keys.layer, core.values.layer, *core.keys.moves, *core.values.moves}
    readers = {user for node in made for user in node.users} - made
    return readers != {core.node} or core.query in made or core.mask in made


# --- rewrite ----------------------------------------------------------------------------------


def _rewrite(core: _Core, settings: Sequence[Lengths]) -> bool:
    """Let an attention read the states; it stays as it is where that cannot be."""
    key, value = (_same(made.start(lengths) for lengths in settings) for made in (core.keys, core.values))
    if key is None or value is None:
        return False
    own = core.keys.layer is not core.values.layer  # else what makes values reads the bias as well
    key_bias = _part(core, core.keys, 2, key) if own else None
    keys = (_part(core, core.keys, 1, key), key_bias)
    values = (_part(core, core.values, 1, value), _part(core, core.values, 2, value))
    mask = (core.mask,) if core.mask else ()
    args = (core.query, core.keys.states, keys, values, core.scale, *mask)
    try:
        found, forced = _type(core, ops.attend_states, args)
    except OPERATOR_ERRORS as error:
        log.debug("%s keeps its keys and values: %s", core.node, error)
        return False
    recorded = core.node.meta["val"]
    if forced or sizes_of(found) != sizes_of(recorded) or found.dtype != recorded.dtype:
        return False
    core.node.replace_all_uses_with(_call(core, ops.attend_states, args, {**core.node.meta, "val": found}))
    return True


def _same(starts: Iterable[int | None]) -> int | None:
    first, *rest = starts
    return first if all(start == first for start in rest) else None


def _part(core: _Core, made: _Made, place: int, start: int) -> fx.Node | None:
    """The rows of a layer's weight or bias that make keys or values: a view of the whole parameter."""
    whole, start = made.parameter(place, start)
    if whole is None or graph.shape(whole)[0] == made.channels:
        return whole
    args = (whole, 0, start, start + made.channels)
    value, _ = _type(core, ops.rows, args)
    return _call(core, ops.rows, args, {**made.layer.meta, "val": value}, f"{whole.name}_rows")


def _call(
    core: _Core, function: Callable[..., Any], args: Any, meta: dict[str, Any], name: str | None = None
) -> fx.Node:
    """A new call in front of the attention."""
    with core.node.graph.inserting_before(core.node):
        made = core.node.graph.create_node("call_function", function, args, name=name)
    made.meta = meta
    return made


def _type(core: _Core, function: Callable[..., Any], args: tuple[Any, ...]) -> tuple[Any, Any]:
    """What a call yields, and the symbols that it forced to a value."""
    values = fx.map_arg(args, lambda source: source.meta["val"])
    return compat.evaluate(compat.fake_mode_of(core.node.graph), function, values, {})


def _place(node: fx.Node, anatomy: Anatomy) -> str:
    """`block 11`, or the module's path for an attention outside of the blocks."""
    for block in anatomy.blocks:
        if any(core.node == node.name for branch in block.branches for core in branch.cores):
            return f"block {block.index}"
    return graph.module_path(node) or node.name
