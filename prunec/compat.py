"""The only file that touches private or version-dependent PyTorch interfaces (2.11 and later).

Everything else in the project uses the names below, so a change in PyTorch is mended here.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import inspect
import io
import linecache
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import sympy
import torch
import torch.utils._pytree as pytree
from torch import fx, nn
from torch._dispatch.python import enable_python_dispatcher
from torch._dynamo.eval_frame import OptimizedModule as OptimizedModule
from torch._dynamo.source import ConstantSource
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, disable_fake_tensor_cache
from torch.export import Dim, ExportedProgram, ShapesCollection
from torch.fx.experimental.symbolic_shapes import DimDynamic, GuardOnDataDependentSymNode, ShapeEnv
from torch.fx.graph import CodeGen
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

TreeSpec = pytree.TreeSpec
FakeMode = FakeTensorMode
DispatchMode = TorchDispatchMode
tree_leaves = pytree.tree_leaves
tree_map = pytree.tree_map
tree_flatten = pytree.tree_flatten
tree_unflatten = pytree.tree_unflatten

#: Where code lives that no message should point at.
_NOT_THE_USERS = tuple(f"{Path(file).parent}{os.sep}" for file in (torch.__file__, __file__) if file)

#: Names of the higher-order operators whose body may be inlined without changing a value.
INLINABLE_REGIONS = ("wrap_with_set_grad_enabled",)
#: The name of the one whose body computes in the precision that a `with torch.autocast(...)` says.
AUTOCAST_REGION = "wrap_with_autocast"
#: What a pickled tensor calls.
REBUILD_TENSOR = "torch._utils._rebuild_tensor_v2"


# --- export -----------------------------------------------------------------------------------


def export(
    module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], batch: int | None
) -> ExportedProgram:
    """Export `module`; dimension 0 of every tensor of length `batch` becomes symbolic (None: all fixed)."""
    shapes = ShapesCollection()
    leaves, _ = tree_flatten((args, dict(kwargs)))
    for leaf in leaves:
        if isinstance(leaf, torch.Tensor) and leaf.dim() > 0 and batch is not None and leaf.shape[0] == batch:
            shapes[leaf] = {0: Dim.AUTO}
    dynamic: Any = shapes if batch is not None else None  # PyTorch 2.11 takes it and does not say so
    said = io.StringIO()
    # Where it fails, it prints the graph so far before it raises.
    with contextlib.redirect_stderr(said), _no_hook_left(), _keywords_by_name(module, kwargs):
        exported = torch.export.export(module, args, dict(kwargs), dynamic_shapes=dynamic, strict=False)
    sys.stderr.write(said.getvalue())
    return exported


@contextlib.contextmanager
def _no_hook_left() -> Iterator[None]:
    """An export that fails in PyTorch 2.11 leaves a hook that lets the model change no buffer any more."""
    hooks = nn.modules.module._global_buffer_registration_hooks
    before = set(hooks)
    try:
        yield
    finally:
        for name in set(hooks) - before:
            del hooks[name]


@contextlib.contextmanager
def _keywords_by_name(module: nn.Module, kwargs: Mapping[str, Any]) -> Iterator[None]:
    """PyTorch 2.11 gets lost where a keyword is one of forward's **kwargs: each has a name meanwhile."""
    signature = inspect.signature(module.forward)
    unnamed = [name for name in kwargs if name not in signature.parameters]
    if not unnamed:
        yield
        return
    own = [each for each in signature.parameters.values() if each.kind is not each.VAR_KEYWORD]
    named = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in unnamed]
    before, forward = vars(module).get("forward"), module.forward

    def call(*args: Any, **kwargs: Any) -> Any:
        return forward(*args, **kwargs)

    vars(call)["__signature__"] = signature.replace(parameters=[*own, *named])
    vars(module)["forward"] = call
    try:
        yield
    finally:
        del vars(module)["forward"]
        if before is not None:
            vars(module)["forward"] = before


def is_of_values(error: Exception) -> bool:
    """Whether PyTorch could not trace a line because that depends on the values of tensors."""
    return isinstance(error, GuardOnDataDependentSymNode)


def functionalised(exported: ExportedProgram) -> ExportedProgram:
    """The same program with in-place operators made functional and regions opened; nothing is decomposed.

    What autocast converts in its region becomes conversions in the graph.
    """
    parts = [part for part in exported.graph_module.modules() if isinstance(part, fx.GraphModule)]
    bodies = [part for part in parts if part is not exported.graph_module]
    for body in bodies:  # node by node, so that each keeps its source line and its module
        vars(body)["forward"] = fx.Interpreter(body).run
    try:
        with warnings.catch_warnings():
            # PyTorch 2.11 warns of a class of its own that it copies.
            warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)`", FutureWarning)
            return cast("ExportedProgram", exported.run_decompositions({}))
    finally:
        for body in bodies:
            del vars(body)["forward"]


def every_node(exported: ExportedProgram) -> Iterator[fx.Node]:
    """The nodes of an exported program, those of its regions too."""
    for part in exported.graph_module.modules():
        if isinstance(part, fx.GraphModule):
            yield from part.graph.nodes


def unlifted(exported: ExportedProgram) -> fx.GraphModule:
    """The exported program as a graph module that shares the original parameters."""
    module: Callable[..., Any] = exported.module
    options = {"check_guards": False} if "check_guards" in inspect.signature(module).parameters else {}
    graph_module = module(**options)
    assert isinstance(graph_module, fx.GraphModule)
    return graph_module


def load_exported(path: Path) -> ExportedProgram:
    """Read what torch.export.save wrote."""
    with warnings.catch_warnings():  # PyTorch 2.11 warns of the bytes that it reads the weights from
        warnings.filterwarnings("ignore", "The given buffer is not writable", UserWarning)
        return torch.export.load(path)


def structure(graph_module: fx.GraphModule) -> tuple[TreeSpec | None, TreeSpec | None]:
    """How inputs (args, kwargs) and outputs of an unlifted program nest; None where it does not say."""
    return graph_module._in_spec, graph_module._out_spec


def leaf_names(inputs: Iterable[tuple[str, Any]]) -> Iterator[str]:
    """For each leaf of named inputs where it is: `x`, `batch['extra'][0]`."""
    for name, value in inputs:
        paths, _ = pytree.tree_flatten_with_path(value)
        yield from (name + pytree.keystr(path) for path, _ in paths)


def argument_names(exported: ExportedProgram) -> list[str] | None:
    """The parameters of the exported forward that were given, where the program recorded them."""
    signature = next((entry.signature for entry in exported.module_call_graph if entry.fqn == ""), None)
    return getattr(signature, "forward_arg_names", None)


def make_flat(graph: fx.Graph) -> None:
    """Let the graph take its placeholders as positional arguments and return a flat tuple."""
    graph.set_codegen(CodeGen())


# --- operators --------------------------------------------------------------------------------


def is_aten(target: object) -> bool:
    """Whether an FX target is one overload of an ATen (or custom) operator."""
    return isinstance(target, torch._ops.OpOverload)


def op_name(target: object) -> str:
    """`reshape` for aten.reshape.default, `gather` for a Python function of that name."""
    if isinstance(target, torch._ops.OpOverload):
        return target._schema.name.split("::")[-1]
    if isinstance(target, torch._ops.HigherOrderOperator):
        return str(target.name())
    return getattr(target, "__name__", str(target))


def qualified_name(target: object) -> str:
    """`aten::mm` for each overload of it; the name alone for operators that take functions."""
    return target._schema.name if isinstance(target, torch._ops.OpOverload) else op_name(target)


def positional(target: object, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
    """The arguments in the order of the schema, up to the last one given; None for those left out."""
    names = argument_names_of(target)[len(args) :]
    last = max((place for place, name in enumerate(names, 1) if name in kwargs), default=0)
    return [*args, *(kwargs.get(name) for name in names[:last])]


def run_composed(target: Any, mode: TorchDispatchMode, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Call an operator inside `mode`, which sees the operators that it is composed of, if it is of others."""
    if isinstance(target, torch._ops.HigherOrderOperator):
        return NotImplemented  # PyTorch then says that the mode cannot handle it
    if target is not torch.ops.prim.device.default:
        with mode:
            result = target.decompose(*args, **kwargs)
        if result is not NotImplemented:
            return result
    return target(*args, **kwargs)


def argument_names_of(target: object) -> list[str]:
    """The names of an ATen operator's arguments, in order."""
    return [argument.name for argument in target._schema.arguments] if is_aten(target) else []  # type: ignore[attr-defined]


def overload_with_tensors(target: object, places: Sequence[tuple[int | str, ...]]) -> object | None:
    """The overload of an operator that takes tensors at these arguments, and all others as `target` does."""
    if not isinstance(target, torch._ops.OpOverload):
        return None
    names = argument_names_of(target)
    wanted = {name if isinstance(name, str) else names[name] for name, *rest in places if not rest}
    overloads = [getattr(target.overloadpacket, name) for name in target.overloadpacket.overloads()]
    for overload in (target, *overloads):
        kinds = {
            argument.name: _without_option(argument.real_type) for argument in overload._schema.arguments
        }
        if list(kinds) == names and all(isinstance(kinds[name], torch.TensorType) for name in wanted):
            return overload if len(wanted) == len(places) else None
    return None


def is_literal(node: fx.Node) -> bool:
    """Whether a node yields a tensor that the traced code wrote down, such as torch.tensor([1, 8, 8])."""
    return node.op == "get_attr" and str(node.target).rpartition(".")[2].startswith("lifted_tensor_")


def mutates(target: object) -> bool:
    """Whether calling the operator changes one of its arguments."""
    return isinstance(target, torch._ops.OpOverload) and target._schema.is_mutable


def is_random(target: object) -> bool:
    """Whether two calls with equal arguments may differ."""
    return is_aten(target) and torch.Tag.nondeterministic_seeded in target.tags  # type: ignore[attr-defined]


def is_unset(target: object) -> bool:
    """Whether an operator yields memory that nobody has written to."""
    return is_aten(target) and "empty" in op_name(target)


def symbolic_positions(target: object, args: Sequence[Any]) -> Iterator[tuple[int, ...]]:
    """Where `args` may hold a size: (argument,) or (argument, element), by the operator's schema."""
    return _positions(target, args, (torch.SymIntType,))


def whole_numbers(target: object, args: Sequence[Any]) -> Iterator[tuple[int, ...]]:
    """Where `args` hold sizes, numbers of dimensions and other integers that are no operand."""
    return _positions(target, args, (torch.SymIntType, torch.IntType))


def _positions(target: object, args: Sequence[Any], kinds: tuple[type, ...]) -> Iterator[tuple[int, ...]]:
    if not isinstance(target, torch._ops.OpOverload):
        return
    for place, (argument, value) in enumerate(zip(target._schema.arguments, args, strict=False)):
        kind = _without_option(argument.real_type)
        while isinstance(kind, torch.ListType):
            kind = _without_option(kind.getElementType())
        if not isinstance(kind, kinds) or value is None:
            continue
        if isinstance(value, (list, tuple)):
            yield from ((place, element) for element in range(len(value)))
        else:
            yield (place,)


def _without_option(kind: Any) -> Any:
    """The type that an argument has unless it is None."""
    return kind.getElementType() if isinstance(kind, torch.OptionalType) else kind


# --- fake tensors and symbols -----------------------------------------------------------------


def fake_mode_of(graph: fx.Graph) -> FakeTensorMode:
    """The fake-tensor mode that the graph was captured under."""
    for node in graph.nodes:
        for leaf in pytree.tree_leaves(node.meta.get("val")):
            if isinstance(leaf, FakeTensor):
                return leaf.fake_mode
    raise ValueError("the graph carries no fake tensors; capture it with torch.export")


def new_symbol(mode: FakeTensorMode, name: str, hint: int) -> torch.SymInt:
    """A fresh symbolic size; `hint` stands in for it where PyTorch must compare."""
    env = mode.shape_env
    assert isinstance(env, ShapeEnv)
    source = ConstantSource(name)
    symbol = env.create_symbol(hint, source=source, dynamic_dim=DimDynamic.DYNAMIC, constraint_dim=None)
    created = env.create_symintnode(symbol, hint=hint, source=source)
    assert isinstance(created, torch.SymInt)
    return created


def expression(size: int | torch.SymInt) -> sympy.Expr:
    """A size as a SymPy expression."""
    return size.node.expr if isinstance(size, torch.SymInt) else sympy.Integer(size)


def hint(size: int | torch.SymInt) -> int:
    """The number that a size had at capture."""
    return cast("int", size.node.hint) if isinstance(size, torch.SymInt) else size


def specialised_by(exported: ExportedProgram) -> str | None:
    """The user's source line that fixed a symbolic size, as `file.py:12  code`, if PyTorch recorded one."""
    env = fake_mode_of(exported.graph).shape_env
    for place in getattr(env, "replacements_slocs", {}).values():
        for frame in (getattr(place, "maybe_user_loc", None), getattr(place, "framework_loc", None)):
            file, line = getattr(frame, "filename", None), getattr(frame, "lineno", None)
            if file is not None and line is not None and is_users(file):
                return f"{file}:{line}  {source_text(file, line)}".rstrip()
    return None


def is_users(filename: str) -> bool:
    """Whether a source file is the user's (or a model library's), not PyTorch's and not prunec's."""
    return not filename.startswith(("<", *_NOT_THE_USERS))


def source_text(filename: str, line: int) -> str:
    """One line of a source file, stripped."""
    return linecache.getline(filename, line).strip()


def evaluate(
    mode: FakeTensorMode, target: Callable[..., Any], args: Any, kwargs: Any
) -> tuple[Any, set[sympy.Symbol]]:
    """Run a function on fake tensors; also the symbols that it forced to a value (undone afterwards).

    A size that was read off a tensor (its symbol has no value) forces what it is compared with, too: PyTorch
    then notes an assertion for the run instead of deciding.
    """
    env = mode.shape_env
    assert isinstance(env, ShapeEnv)
    before = _Knowledge(env)
    forced: set[sympy.Symbol] = set()
    try:
        # Each call is typed once: nothing to cache. With the Python dispatcher, composite operators (addcmul)
        # are typed by decompositions that know symbols.
        with (
            mode,
            disable_fake_tensor_cache(mode),
            enable_python_dispatcher(),
            attempts(),
            torch.no_grad(),
        ):
            result = target(*args, **kwargs)
            if op_name(target) == "scaled_dot_product_attention" and not _plainly_fit(*args, **kwargs):
                with sdpa_kernel(SDPBackend.MATH):  # fused kernels do not compare keys with values
                    target(*args, **kwargs)
    finally:
        forced = before.forced()
        if forced:
            before.restore()
    return result, forced


def _plainly_fit(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    *_: Any,
    **__: Any,
) -> bool:
    """Whether the sizes of an attention's operands, as these are written, leave nothing to compare."""
    queries, keys, values = (tuple(map(expression, each.shape)) for each in (query, key, value))
    if queries[:-2] != keys[:-2] or queries[-1] != keys[-1] or keys[:-1] != values[:-1]:
        return False
    scores = (*queries[:-1], keys[-2])
    mask = () if attn_mask is None else tuple(map(expression, attn_mask.shape))
    broadcast = zip(reversed(mask), reversed(scores), strict=False)
    return len(mask) <= len(scores) and all(size in (1, score) for size, score in broadcast)


@contextlib.contextmanager
def attempts() -> Iterator[None]:
    """Calls that do not type are attempts here, and no errors to write about."""
    log = logging.getLogger("torch._subclasses.fake_tensor")
    before, log.disabled = log.disabled, True  # a level would clear what all loggers remember
    try:
        yield
    finally:
        log.disabled = before


class _Knowledge:
    """What a ShapeEnv knew about its symbols: PyTorch cannot take back what an attempt made it note."""

    tables = ("replacements", "replacements_slocs", "var_to_range", "axioms", "deferred_runtime_asserts")

    def __init__(self, env: ShapeEnv) -> None:
        self.env = env
        self.known = {name: dict(getattr(env, name)) for name in self.tables}
        self.asserted = {symbol: list(said) for symbol, said in env.deferred_runtime_asserts.items()}
        self.guards = len(env.guards)

    def forced(self) -> set[sympy.Symbol]:
        """Symbols that were given a value since, or are in an assertion that is new."""
        found = set(self.env.replacements) - set(self.known["replacements"])
        for symbol, said in self.env.deferred_runtime_asserts.items():
            for assertion in said[len(self.asserted.get(symbol, ())) :]:
                found |= assertion.expr.free_symbols
        return found

    def restore(self) -> None:
        """Forget what was learned since."""
        self.known["deferred_runtime_asserts"] = self.asserted
        for name, entries in self.known.items():
            table = getattr(self.env, name)
            table.clear()
            table.update(entries)
        del self.env.guards[self.guards :]
        self.env.num_deferred_runtime_asserts = sum(map(len, self.asserted.values()))
        self._clear_caches()

    def _clear_caches(self) -> None:
        """A guard that was answered once is answered from a cache, and so forces nothing the next time."""
        for method in vars(type(self.env)).values():
            if hasattr(method, "cache_clear"):
                method.cache_clear()
        if hasattr(self.env, "_replacements_version_counter"):
            self.env._replacements_version_counter += 1


def fake_like(
    mode: FakeTensorMode, shape: Sequence[Any], dtype: torch.dtype, device: torch.device
) -> torch.Tensor:
    """An empty fake tensor."""
    with mode:
        return torch.empty(tuple(shape), dtype=dtype, device=device)


def assume(condition: Any, otherwise: str | None = None) -> None:
    """Tell PyTorch what holds of a size that it does not know while it traces; checked when the code runs."""
    if otherwise is None or torch.compiler.is_dynamo_compiling():
        torch._check(condition)  # compiled code of PyTorch 2.11 takes no message from outside
    else:
        torch._check(condition, lambda: otherwise)


def has_varlen_attention(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether PyTorch has a kernel for sequences of different lengths side by side."""
    fits = device.type == "cuda" and dtype in (torch.float16, torch.bfloat16)
    return fits and importlib.util.find_spec("torch.nn.attention.varlen") is not None


def varlen_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    counts: tuple[torch.Tensor, torch.Tensor],
    scale: float,
    longest: tuple[int, int],
) -> torch.Tensor:
    """Attention of packed rows [1, h, S, d]: for each image so many queries and keys, at most `longest`."""
    from torch.nn.attention.varlen import (
        varlen_attn,
    )  # CUDA only; its signature grows from release to release

    offsets = [torch.nn.functional.pad(count.cumsum(0), (1, 0)).int() for count in counts]
    options = {"scale": scale}
    if "scale" not in inspect.signature(varlen_attn).parameters:
        query, options = query * (scale * query.shape[-1] ** 0.5), {}
    rows = [tensor[0].transpose(0, 1) for tensor in (query, key, value)]  # [S, h, d]
    attention: Callable[..., Any] = varlen_attn
    found: torch.Tensor = attention(*rows, *offsets, *longest, **options)
    return found.transpose(0, 1).unsqueeze(0)


def scalar_outputs() -> contextlib.AbstractContextManager[None]:
    """Let torch.compile trace a length that is read off a tensor (of a padded selection)."""
    return torch._dynamo.config.patch(capture_scalar_outputs=True)  # type: ignore[no-any-return]


def mark_dynamic(tensor: torch.Tensor, axis: int = 0) -> None:
    """Let torch.compile treat a dimension of an input as a symbol from the first call on."""
    torch._dynamo.maybe_mark_dynamic(tensor, axis)


def cuda_facts(device: torch.device) -> dict[str, str | int]:
    """What a time on a CUDA device depends on: its processors, the driver, the kernels' versions."""
    facts: dict[str, str | int] = {
        "processors": torch.cuda.get_device_properties(device).multi_processor_count,
        "cudnn": torch.backends.cudnn.version() or "none",
    }
    version = getattr(torch._C, "_cuda_getDriverVersion", None)  # only where PyTorch found CUDA
    if version is not None:
        facts["driver"] = int(version())
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        facts["triton"] = importlib.metadata.version("triton")
    return facts
