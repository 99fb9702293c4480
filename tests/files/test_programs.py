"""A program in a .pt2 file is read without running anything that is in it, or is refused."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from prunec import compat
from prunec.files import programs
from prunec.files.opcodes import NotTrusted

Records = dict[str, bytes]
WEIGHTS = "data/weights/model_weights_config.json"


class Small(nn.Module):
    """Matrix products, a choice of rows, attention, a constant and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 8)
        self.register_buffer("shift", torch.arange(8.0))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        rows = self.first(x).softmax(-1) + self.shift
        kept = rows.sum(-1).topk(2, dim=1).indices.sort(dim=1).values
        chosen = rows.gather(1, kept[..., None].expand(-1, -1, 8))[:, None]
        mixed = nn.functional.scaled_dot_product_attention(chosen, chosen, chosen)
        return {"rows": self.last(mixed).reshape(x.shape[0] * 2, 8), "kept": kept + torch.tensor([1, 2])}


def stripped(made: Any) -> Any:
    """Without pickled inputs, and without where each node comes from."""
    for node in made.graph.nodes:
        for key in ("stack_trace", "nn_module_stack", "torch_fn", "from_node"):
            node.meta.pop(key, None)
    made.example_inputs = None
    return made


def exported(module: nn.Module | None = None) -> Any:
    torch.manual_seed(0)
    shapes = ({0: Dim.AUTO},)
    made = torch.export.export((module or Small()).eval(), (torch.randn(3, 5, 4),), dynamic_shapes=shapes)
    return stripped(made.run_decompositions())


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("programs") / "model.pt2"
    torch.export.save(exported(), path)
    return path


def records(path: Path) -> Records:
    with zipfile.ZipFile(path) as archive:
        return {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}


def written(path: Path, content: Records) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in content.items():
            archive.writestr(f"model/{name}", data)
    return path


def changed(saved: Path, place: Path, change: Callable[[Any], object], name: str = programs.GRAPH) -> Path:
    """The file with one of its JSON records changed."""
    content = records(saved)
    data = json.loads(content[name])
    change(data)
    return written(place / "model.pt2", {**content, name: json.dumps(data).encode()})


def outputs(path: Path, x: Tensor) -> dict[str, Tensor]:
    """What a program that was read gives."""
    found = programs.read(path)
    flat, spec = compat.tree_flatten(((x,), {}))
    assert spec == found.in_spec
    return dict(compat.tree_unflatten(list(found.module(*flat)), found.out_spec))


def test_reads_what_torch_wrote(saved: Path) -> None:
    expected = torch.export.load(saved).module()
    for batch in (1, 2, 5):
        x = torch.randn(batch, 5, 4)
        found, other = outputs(saved, x), expected(x) if batch > 1 else None
        assert {name: value.shape for name, value in found.items()} == {
            "rows": (batch * 2, 8),
            "kept": (batch, 2),
        }
        if other is not None:
            assert all(torch.equal(value, other[name]) for name, value in found.items())


def test_weights_have_their_names_and_learn(saved: Path) -> None:
    module = programs.read(saved).module
    assert {name: value.requires_grad for name, value in module.named_parameters()} == {
        "first.weight": True, "first.bias": True, "last.weight": True, "last.bias": True,
    }  # fmt: skip
    assert "shift" in dict(module.named_buffers())
    rows, _ = module(torch.randn(2, 5, 4))
    rows.sum().backward()
    assert module.get_parameter("first.weight").grad is not None


def test_names_and_nesting(saved: Path) -> None:
    found = programs.read(saved)
    assert found.names == ("x",)
    assert compat.tree_unflatten([1, 2], found.out_spec) == {"rows": 1, "kept": 2}


class Taps(nn.Module):
    """Tied weights, a split, constants of several kinds, an option, and an input by name."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(6, 6), nn.Linear(6, 6)
        self.other.weight = self.one.weight

    def forward(self, x: Tensor, *, scale: Tensor, flip: bool = False) -> tuple[Tensor, list[Tensor]]:
        left, right = (self.one(x) + self.other(x)).split(3, dim=1)
        masked = left.masked_fill((right > 0.5) & (left < 9), float("-inf")).to(torch.float64)
        joined = torch.cat([right, left.new_full((1, 3), 2.0)])
        return masked, [torch.einsum("bi,ji->bj", joined, right) * scale, right.argmax(1)]


def test_all_kinds_of_arguments(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module, path = Taps().eval(), tmp_path / "model.pt2"
    args, kwargs = (torch.randn(4, 6),), {"scale": torch.tensor(3.0), "flip": False}
    made = stripped(torch.export.export(module, args, kwargs))
    torch.export.save(made, path)
    found = programs.read(path)
    flat, _ = compat.tree_flatten((args, kwargs))
    given = compat.tree_leaves(module(*args, **kwargs))
    assert all(map(torch.equal, found.module(*flat), given))
    weights = dict(found.module.named_parameters(remove_duplicate=False))
    assert weights["one.weight"].data_ptr() == weights["other.weight"].data_ptr()


def test_reads_an_archive_that_zipfile_wrote(saved: Path, tmp_path: Path) -> None:
    x = torch.randn(2, 5, 4)
    again = written(tmp_path / "model.pt2", records(saved))
    assert torch.equal(outputs(again, x)["rows"], outputs(saved, x)["rows"])


# What may run -----------------------------------------------------------------------------------------------


def _first(graph: Any) -> dict[str, Any]:
    return graph["graph_module"]["graph"]["nodes"][0]


def _size(graph: Any) -> dict[str, Any]:
    return next(iter(graph["graph_module"]["graph"]["sym_int_values"].values()))["as_expr"]


def _nesting(graph: Any) -> dict[str, Any]:
    return graph["graph_module"]["module_call_graph"][0]["signature"]


def _weight(graph: Any) -> dict[str, Any]:
    return graph["graph_module"]["signature"]["input_specs"][0]["parameter"]


LEAF = {"type": None, "context": None, "children_spec": []}
CALL = "__import__('pathlib').Path('MARK').touch()"
#: What must be refused, and why.
GRAPHS: dict[str, tuple[Callable[[Any], object], str]] = {
    "torch.load": (lambda g: _first(g).update(target="torch.load"), "no functional operator of ATen"),
    "torch.hub": (lambda g: _first(g).update(target="torch.hub.load"), "no functional operator of ATen"),
    "attrgetter": (lambda g: _first(g).update(target="_operator.attrgetter"), "no functional operator"),
    "eval": (lambda g: _first(g).update(target="builtins.eval"), "no functional operator"),
    "an attribute of ATen": (
        lambda g: _first(g).update(target="torch.ops.aten.add.__init__"), "no functional operator",
    ),
    "an attribute of all": (lambda g: _first(g).update(target="torch.ops.aten.__class__.mro"), "no func"),
    "another library": (lambda g: _first(g).update(target="torch.ops.profiler.x.default"), "no functional"),
    "loading a library": (lambda g: _first(g).update(target="torch.ops.load_library"), "no functional"),
    "a file": (lambda g: _first(g).update(target="torch.ops.aten.from_file.default"), "aten.from_file"),
    "in place": (lambda g: _first(g).update(target="torch.ops.aten.add_.Tensor"), "no functional operator"),
    "an operator that PyTorch keeps to itself": (
        lambda g: _first(g).update(target="torch.ops.aten._unsafe_index.Tensor"), "none of ATen's operators",
    ),
    "an extension": (lambda g: _first(g).update(target="#evil"), "no functional operator"),
    "no operator": (lambda g: _first(g).update(target=7), "calls 7"),
    "a weight's name that is code": (lambda g: _weight(g).update(parameter_name=CALL), "a tensor called"),
    "a weight's name that is an attribute": (
        lambda g: _weight(g).update(parameter_name="first.__class__.forward"), "holds a tensor called",
    ),
    "a weight that is not there": (lambda g: _weight(g).update(parameter_name="other"), "does not read"),
    "an input that is an object": (
        lambda g: g["graph_module"]["signature"]["input_specs"].__setitem__(0, {"custom_obj": {}}),
        "'custom_obj'",
    ),
    "an output that changes a buffer": (
        lambda g: g["graph_module"]["signature"]["output_specs"].append({"buffer_mutation": {}}),
        "'buffer_mutation'",
    ),
    "a graph in a graph": (
        lambda g: _first(g)["inputs"][0].update(arg={"as_graph": {"name": "a"}}), "'as_graph'",
    ),
    "an operator for an argument": (
        lambda g: _first(g)["inputs"][0].update(arg={"as_operator": "torch.load"}), "'as_operator'",
    ),
    "a value that is not there": (
        lambda g: _first(g)["inputs"][0].update(arg={"as_tensor": {"name": "nothing"}}), "does not read",
    ),
    "a text for a number": (lambda g: _first(g)["inputs"][1].update(arg={"as_int": CALL}), "where a int is"),
    "no argument": (lambda g: _first(g)["inputs"][1].update(arg=7), "does not read"),
    "a newer schema": (lambda g: g["schema_version"].update(major=9), "schema 9, and prunec reads 8"),
    "no signature": (lambda g: g["graph_module"].update(module_call_graph=[]), "does not read"),
    "no graph": (lambda g: g.clear(), "does not read"),
}  # fmt: skip


@pytest.mark.parametrize("case", GRAPHS)
def test_a_graph_that_may_run_something_is_refused(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    monkeypatch.chdir(tmp_path)
    change, said = GRAPHS[case]
    with pytest.raises(NotTrusted, match=said):
        programs.read(changed(saved, tmp_path, change))
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt2"]


#: What PyTorch evaluates, imports or writes into code, and is never looked at here.
IGNORED: dict[str, Callable[[Any], object]] = {
    "an expression": lambda g: _size(g).update(expr_str=CALL),
    "a name that is code": lambda g: _first(g).update(name=f"x\n    {CALL}"),
    "an argument's name that is code": lambda g: _nesting(g).update(forward_arg_names=[f"x={CALL}"]),
    "a range that is code": lambda g: g["range_constraints"].update({CALL: {"min_val": 2, "max_val": None}}),
    "code that guards": lambda g: g.update(guards_code=[CALL]),
    "a record of where it came from": lambda g: _first(g).update(metadata={"nn_module_stack": f"{CALL},,"}),
    "an object": lambda g: g["graph_module"]["graph"].update(custom_obj_values={"a": CALL}),
}


@pytest.mark.parametrize("case", IGNORED)
def test_what_pytorch_would_evaluate_is_never_looked_at(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    monkeypatch.chdir(tmp_path)
    x = torch.randn(2, 5, 4)
    path = changed(saved, tmp_path, IGNORED[case])
    assert torch.equal(outputs(path, x)["rows"], outputs(saved, x)["rows"])
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt2"]


@pytest.mark.parametrize("kind", ["transformers.utils.generic.ModelOutput", "collections.OrderedDict", "a.B"])
def test_a_class_that_inputs_nest_in_is_refused(saved: Path, tmp_path: Path, kind: str) -> None:
    spec = json.dumps([1, {"type": kind, "context": "[]", "children_spec": [LEAF]}])
    with pytest.raises(ValueError, match="nests its inputs or outputs in"):
        programs.read(changed(saved, tmp_path, lambda g: _nesting(g).update(out_spec=spec)))


WEIGHT_CONFIGS: dict[str, Callable[[Any], object]] = {
    "a pickle": lambda entry: entry.update(use_pickle=True),
    "a path": lambda entry: entry.update(path_name="../../etc/passwd"),
    "no record": lambda entry: entry.update(path_name="weight_99"),
    "a size that is negative": lambda entry: entry["tensor_meta"].update(sizes=[{"as_int": -1}] * 2),
    "a size that is an expression": lambda entry: entry["tensor_meta"].update(sizes=[{"as_expr": {}}] * 2),
    "more than its numbers": lambda entry: entry["tensor_meta"].update(sizes=[{"as_int": 2**40}] * 2),
    "before its numbers": lambda entry: entry["tensor_meta"].update(storage_offset={"as_int": -4}),
    "beyond its numbers": lambda entry: entry["tensor_meta"].update(storage_offset={"as_int": 4}),
    "steps that are enormous": lambda entry: entry["tensor_meta"].update(strides=[{"as_int": 2**62}] * 2),
    "no kind of number": lambda entry: entry["tensor_meta"].update(dtype=0),
    "no description": lambda entry: entry.pop("tensor_meta"),
}


@pytest.mark.parametrize("case", WEIGHT_CONFIGS)
def test_weights_that_are_no_plain_numbers_are_refused(saved: Path, tmp_path: Path, case: str) -> None:
    path = changed(saved, tmp_path, lambda c: WEIGHT_CONFIGS[case](c["config"]["first.weight"]), WEIGHTS)
    with pytest.raises(NotTrusted, match=r"first\.weight"):
        programs.read(path)


class Payload:
    """A pickle that leaves a file when it is read."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


def _pickled(payload: object) -> bytes:
    content = io.BytesIO()
    torch.save(payload, content)
    return content.getvalue()


ADDITIONS: dict[str, Callable[[Payload], Records]] = {
    "example inputs": lambda payload: {"data/sample_inputs/model.pt": _pickled(payload)},
    "weights of an older format": lambda payload: {"data/weights/model.pt": _pickled(payload)},
    "an opaque object": lambda payload: {"data/constants/opaque_obj_0": pickle.dumps(payload)},
    "a compiled library": lambda payload: {"data/aotinductor/model/model.so": b"\x7fELF"},
    "a program of an older format": lambda payload: {
        "version": b"8.1", "serialized_state_dict.pt": _pickled(payload),
    },
    "another model": lambda payload: {"models/other.json": b"{}"},
    "another file": lambda payload: {"extra/notes": b""},
}  # fmt: skip


@pytest.mark.parametrize("case", ADDITIONS)
def test_what_else_lies_in_an_archive_is_never_read(saved: Path, tmp_path: Path, case: str) -> None:
    mark, x = tmp_path / "mark", torch.randn(2, 5, 4)
    path = written(tmp_path / "model.pt2", {**records(saved), **ADDITIONS[case](Payload(mark))})
    assert torch.equal(outputs(path, x)["rows"], outputs(saved, x)["rows"])
    assert not mark.exists()


def test_torch_itself_runs_what_is_passed_over_here(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or else these tests would prove nothing."""
    monkeypatch.chdir(tmp_path)
    payload = Payload(tmp_path / "pickled")
    with pytest.raises(AssertionError):
        torch.export.load(
            written(tmp_path / "a.pt2", {**records(saved), **ADDITIONS["example inputs"](payload)})
        )
    assert payload.mark.exists()
    with pytest.raises(RuntimeError, match="deserializing"):
        torch.export.load(changed(saved, tmp_path, IGNORED["an expression"]))
    assert (tmp_path / "MARK").exists()


def test_two_records_of_one_name_a_compressed_archive_and_a_part_of_one(saved: Path, tmp_path: Path) -> None:
    path, content = tmp_path / "model.pt2", records(saved)
    written(path, content)
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr(f"model/{programs.GRAPH}", b"{}")
    with pytest.raises(NotTrusted, match=r"holds 'models/model\.json' twice"):
        programs.read(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in content.items():
            archive.writestr(f"model/{name}", data)
    with pytest.raises(NotTrusted, match="compressed"):
        programs.read(path)
    for name in (programs.GRAPH, WEIGHTS):
        with pytest.raises(NotTrusted, match=f"lacks {name}"):
            programs.read(written(path, {key: data for key, data in content.items() if key != name}))


def test_a_description_without_end_is_refused(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(programs, "MOST_BYTES", 1000)
    with pytest.raises(NotTrusted, match="holds a description of 0 MiB"):
        programs.read(saved)
    deep = {**records(saved), programs.GRAPH: b"[" * 900}
    with pytest.raises((NotTrusted, json.JSONDecodeError)):
        programs.read(written(tmp_path / "model.pt2", deep))


class Values(nn.Module):
    """Calls what PyTorch keeps to itself."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.aten._linalg_svd(x)[1]


def test_a_program_of_other_operators_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.pt2"
    torch.export.save(exported(Values()), path)
    with pytest.raises(NotTrusted, match=r"_linalg_svd\.default, which is none of ATen's"):
        programs.read(path)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x80\x02]q\x00."])
def test_a_file_that_is_no_archive(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.pt2").write_bytes(content)
    with pytest.raises(zipfile.BadZipFile):
        programs.read(tmp_path / "model.pt2")
