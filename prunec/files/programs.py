"""Programs that torch.export.save wrote (.pt2): read without running anything that is in them.

PyTorch unpickles parts of such a file, evaluates its expressions as Python and looks functions up by name.
Here three of its records are read, and nothing else: the graph and the two lists of its tensors. They are
JSON, and become a graph of

    operators    public ones of ATen that change nothing in place
    numbers      of the archive, each tensor within its own
    nesting      of inputs and outputs, in containers of Python

and whatever is none of these refuses the file. No name of the file's gets into code; sizes are what the
operators compute. It takes a tenth of the time that PyTorch's own reader takes.
"""

from __future__ import annotations

import json
import math
import operator
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor, fx, nn

from prunec import compat
from prunec.errors import shown
from prunec.files.opcodes import NotTrusted
from prunec.files.storages import Numbers, begin_of

GRAPH = "models/model.json"
#: The lists of tensors, and the folders that hold their numbers.
WEIGHTS = ("data/weights/model_weights_config.json", "data/weights/")
CONSTANTS = ("data/constants/model_constants_config.json", "data/constants/")
#: Bytes that the description of a graph, or a list of tensors, may have.
MOST_BYTES = 2**27
MAJOR = 8  # of the schema that torch.export.save writes since PyTorch 2.6

#: What asserts the precision and the device that a tensor had: it may be moved since.
CHECK = "torch.ops.aten._assert_tensor_metadata.default"

_PATH = re.compile(r"(?!__)[A-Za-z0-9_]+(\.(?!__)[A-Za-z0-9_]+)*")
#: Functions of Python on sizes, and what takes one output of several.
_FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    **{
        f"_operator.{name}": getattr(operator, name)
        for name in ("getitem", "add", "sub", "mul", "mod", "floordiv", "truediv", "neg", "pow",
                     "eq", "ne", "lt", "le", "gt", "ge", "and_", "or_", "not_")
    },
    **{f"math.{name}": getattr(math, name) for name in ("ceil", "floor", "trunc")},
    "torch.sym_int": torch.sym_int, "torch.sym_float": torch.sym_float, "torch.sym_not": torch.sym_not,
    "torch.sym_max": torch.sym_max, "torch.sym_min": torch.sym_min, "torch.sym_ite": torch.sym_ite,
    "torch.sym_sum": torch.sym_sum,
}  # fmt: skip
#: Operators of ATen that reach beyond their tensors.
BEYOND = ("from_file", "set", "set_data", "resize", "resize_as", "resize_as_sparse")
#: Of those that PyTorch keeps to itself, the ones that exported programs call besides its core.
INTERNAL = (
    "__and__", "__or__", "__xor__", "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_flash_attention", "_scaled_dot_product_efficient_attention", "_assert_scalar",
    "_upsample_bicubic2d_aa", "_upsample_bilinear2d_aa",
)  # fmt: skip


class Read(NamedTuple):
    """A program from a file."""

    module: fx.GraphModule  # flat inputs, flat outputs
    in_spec: compat.TreeSpec
    out_spec: compat.TreeSpec
    names: tuple[str, ...]  # of the positional inputs, where the file says them


def read(path: Path) -> Read:
    """The program in a .pt2 file.

    Raises:
        NotTrusted: it holds more than a graph of ATen's operators on tensors.
        Exception: whatever zipfile and json raise for a damaged file.
    """
    with path.open("rb") as file, zipfile.ZipFile(file) as archive:
        records = _records(archive)
        program = _parsed(archive, records, GRAPH)
        size = path.stat().st_size
        state = _tensors(file, size, _parsed(archive, records, WEIGHTS[0]), records, WEIGHTS[1])
        constants = _tensors(file, size, _parsed(archive, records, CONSTANTS[0]), records, CONSTANTS[1])
    try:
        major = program["schema_version"]["major"]
        if major != MAJOR:
            raise NotTrusted(f"is of schema {shown(major)}, and prunec reads {MAJOR}")
        graph_module = program["graph_module"]
        call = next(one["signature"] for one in graph_module["module_call_graph"] if one["fqn"] == "")
        return Read(
            _Graph(graph_module, {**constants, **state}).built(),
            compat.plain_treespec(call["in_spec"]),
            compat.plain_treespec(call["out_spec"]),
            tuple(map(str, call.get("forward_arg_names") or ())),
        )
    except (KeyError, TypeError, AttributeError, IndexError, StopIteration) as error:
        raise NotTrusted(f"describes its graph in a way that prunec does not read ({error!r})") from error


# Records ----------------------------------------------------------------------------------------------------


def _records(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """What lies in the archive, by its name there."""
    found: dict[str, zipfile.ZipInfo] = {}
    for entry in archive.infolist():
        name = entry.filename.partition("/")[2]
        if name in found:
            raise NotTrusted(f"holds {shown(name)} twice")
        if entry.compress_type != zipfile.ZIP_STORED:
            raise NotTrusted("is a compressed archive, which torch.export.save does not write")
        found[name] = entry
    return found


def _parsed(archive: zipfile.ZipFile, records: Mapping[str, zipfile.ZipInfo], name: str) -> Any:
    if name not in records:
        raise NotTrusted(f"lacks {name}")
    if records[name].file_size > MOST_BYTES:
        raise NotTrusted(f"holds a description of {records[name].file_size >> 20} MiB")
    try:
        return json.loads(archive.read(records[name]))
    except RecursionError as error:
        raise NotTrusted(f"nests too deep in {name}") from error


def _tensors(
    file: BinaryIO, size: int, config: Any, records: Mapping[str, zipfile.ZipInfo], folder: str
) -> dict[str, Tensor]:
    """The tensors that a list describes, from their numbers in the archive; those of one record share it."""
    numbers = Numbers(
        file, size, {name: (begin_of(file, entry), entry.file_size) for name, entry in records.items()}
    )
    if not isinstance(config, dict) or not isinstance(config.get("config"), dict):
        raise NotTrusted(f"holds no list of what lies in {folder}")
    found = {}
    for name, entry in config["config"].items():
        found[name] = _described(numbers, name, entry, folder)
    return found


def _described(numbers: Numbers, name: str, entry: Any, folder: str) -> Tensor:
    try:
        return _tensor(numbers, entry, folder)
    except (KeyError, TypeError, RuntimeError) as error:  # RuntimeError: it ends after its numbers
        raise NotTrusted(f"holds {shown(name)} as something else than plain numbers") from error


def _tensor(numbers: Numbers, entry: Any, folder: str) -> Tensor:
    path, meta = folder + entry["path_name"], entry["tensor_meta"]
    if entry["use_pickle"] is not False:
        raise TypeError("a pickle")
    sizes, strides = ([side["as_int"] for side in meta[name]] for name in ("sizes", "strides"))
    flat = numbers.of(path).view(compat.SCALAR_TYPES[meta["dtype"]])
    tensor = flat.as_strided(sizes, strides, meta["storage_offset"]["as_int"])
    if entry["is_param"] and tensor.is_floating_point():
        return nn.Parameter(tensor, requires_grad=bool(meta["requires_grad"]))
    return tensor


# The graph --------------------------------------------------------------------------------------------------


class _Graph:
    """The graph of a program as one of torch.fx, under names of its own."""

    def __init__(self, description: Any, tensors: Mapping[str, Tensor]) -> None:
        self.description, self.tensors = description, tensors
        self.graph = fx.Graph()
        self.values: dict[str, fx.Node] = {}  # by their names in the file
        self.held: dict[str, Tensor] = {}

    def built(self) -> fx.GraphModule:
        graph, signature = self.description["graph"], self.description["signature"]
        for one, spec in zip(graph["inputs"], signature["input_specs"], strict=True):
            self._input(one, *_only(spec))
        for node in graph["nodes"]:
            if node["target"] != CHECK:
                self._call(node)
        kinds = {_only(spec)[0] for spec in signature["output_specs"]} - {"user_output"}
        if kinds:
            raise NotTrusted(f"gives outputs of the kind {shown(min(kinds))}")
        self.graph.output(tuple(self._value(one) for one in graph["outputs"]))
        return fx.GraphModule(self.held, self.graph)

    def _input(self, given: Any, kind: str, spec: Any) -> None:
        if kind in ("user_input", "constant_input"):
            node = self.graph.placeholder(f"input_{sum(n.op == 'placeholder' for n in self.graph.nodes)}")
        elif kind in ("parameter", "buffer", "tensor_constant"):
            path = spec[f"{kind}_name"]
            if not isinstance(path, str) or len(path) > 512 or not _PATH.fullmatch(path):
                raise NotTrusted(f"holds a tensor called {shown(path)}")
            self.held[path] = self.tensors[path]
            node = self.graph.get_attr(path)
        else:
            raise NotTrusted(f"takes an input of the kind {shown(kind)}")
        for name in _named(given):
            self.values[name] = node

    def _call(self, described: Any) -> None:
        """One call of an operator, and what takes its outputs apart where it gives several."""
        args = [self._value(one["arg"]) for one in described["inputs"] if one.get("kind") != 2]
        kwargs = {one["name"]: self._value(one["arg"]) for one in described["inputs"] if one.get("kind") == 2}
        node = self.graph.call_function(_function(described["target"]), tuple(args), kwargs)
        outputs = described["outputs"]
        if len(outputs) == 1 and _only(outputs[0])[0] not in ("as_tensors", "as_optional_tensors"):
            self.values.update(dict.fromkeys(_named(outputs[0]), node))
            return
        names = list(outputs if len(outputs) != 1 else _only(outputs[0])[1])
        for place, one in enumerate(names):
            for name in _named(one) if len(outputs) != 1 else [one.get("name")]:
                self.values[name] = self.graph.call_function(operator.getitem, (node, place))

    def _value(self, argument: Any) -> Any:
        """An argument: a value of the graph, or a constant."""
        kind, value = _only(argument)
        if kind == "as_none":
            return None
        if kind in ("as_tensor", "as_name"):
            return self.values[value if kind == "as_name" else value["name"]]
        if kind in ("as_sym_int", "as_sym_float", "as_sym_bool", "as_optional_tensor"):
            return self._value(value)
        if kind == "as_tensors":
            return [self.values[one["name"]] for one in value]
        if kind in ("as_sym_ints", "as_sym_floats", "as_sym_bools", "as_optional_tensors"):
            return [self._value(one) for one in value]
        if kind in _CONSTANTS:
            return _CONSTANTS[kind](value)
        raise NotTrusted(f"gives an argument of the kind {shown(kind)}")


def _only(union: Any) -> tuple[str, Any]:
    """The one key and value of a mapping."""
    ((kind, value),) = union.items()
    return kind, value


def _named(argument: Any) -> Iterator[str]:
    """The name under which an output, or an input, is asked for later."""
    kind, value = _only(argument)
    if kind == "as_tensor":
        yield value["name"]
    elif kind in ("as_sym_int", "as_sym_float", "as_sym_bool") and "as_name" in value:
        yield value["as_name"]


def _function(name: Any) -> Callable[..., Any]:
    """What computes and does nothing else; by what PyTorch says of it, not by its name alone."""
    if not isinstance(name, str):
        raise NotTrusted(f"calls {shown(name)}")
    if name in _FUNCTIONS:
        return _FUNCTIONS[name]
    found = compat.functional_operator(name)
    if found is None:
        raise NotTrusted(f"calls {shown(name)}, which is no functional operator of ATen")
    plain = name.split(".")[3]
    internal = plain.startswith("_") and plain not in INTERNAL and not compat.is_of_core(found)
    if internal or plain in BEYOND:
        raise NotTrusted(f"calls {name}, which is none of ATen's operators on tensors")
    return found


def _is(*kinds: type) -> Callable[[Any], Any]:
    def checked(value: Any) -> Any:
        if type(value) not in kinds:
            raise NotTrusted(f"gives {shown(value)} where a {kinds[0].__name__} is")
        return value

    return checked


def _float(value: Any) -> float:
    """Infinity and what is no number stand there as words."""
    return float(_is(float, int, str)(value))


def _list(one: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda values: [one(value) for value in values]


#: Constants by the kind of their argument.
_CONSTANTS: Mapping[str, Callable[[Any], Any]] = {
    "as_int": _is(int), "as_ints": _list(_is(int)), "as_bool": _is(bool), "as_bools": _list(_is(bool)),
    "as_float": _float, "as_floats": _list(_float), "as_string": _is(str), "as_strings": _list(_is(str)),
    "as_scalar_type": lambda value: compat.SCALAR_TYPES[value],
    "as_memory_format": lambda value: compat.MEMORY_FORMATS[value],
    "as_layout": lambda value: compat.LAYOUTS[value],
    "as_device": lambda value: torch.device(_is(str)(value["type"]), value["index"] or 0)
    if value["type"] != "cpu" else torch.device("cpu"),
}  # fmt: skip
