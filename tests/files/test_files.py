from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import transformers
from torch import nn
from torchvision.models import VisionTransformer
from typer.testing import CliRunner

import prunec
from prunec import cli
from prunec.artefact import artefact
from prunec.compiler import compile_source
from prunec.data import tiny_vit
from prunec.errors import SourceError, UsageError
from prunec.files import files
from prunec.frontend import sources
from prunec.ir.program import ProgramModule
from prunec.policy.policy import Policy

HF_CONFIG = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 32,
    "patch_size": 8,
}

#: Another process writes the files, as people's files are written.
WRITER = """
import sys, torch, timm, transformers
from safetensors.torch import save_file
from torch.export import Dim
from torchvision.models import VisionTransformer
from prunec.data.tiny_vit import classifier

torch.manual_seed(0)
tiny = classifier().eval()
image = torch.randn(2, 3, 72, 72)
torch.save(tiny.state_dict(), "state.pt")
torch.save(tiny.state_dict(), "old.pth", _use_new_zipfile_serialization=False)
torch.save({"epoch": 3, "state_dict": torch.nn.ModuleDict({"module": tiny}).state_dict()}, "wrapped.pth")
save_file({k: v.clone() for k, v in tiny.state_dict().items()}, "weights.safetensors")
torch.save(tiny, "shapes.pt")
torch.save({"model": tiny}, "inside.pt")
torch.save(timm.create_model("test_vit"), "timm.pt")
torch.save(VisionTransformer(32, 8, 1, 2, 16, 32), "torchvision.pt")
torch.save(transformers.ViTForImageClassification(transformers.ViTConfig(**HF_CONFIG)), "hf.pt")
torch.save([1, 2], "list.pt")
torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)), "scripted.pt")


class Named(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.tiny = tiny

    def forward(self, pixels, scale=None):
        return {"logits": self.tiny(pixels)}


torch.save(Named(), "own.pt")
free = {"pixels": {0: Dim("batch", max=64)}}
exported = torch.export.export(Named().eval(), (), {"pixels": image}, dynamic_shapes=free)
torch.export.save(exported, "free.pt2")
torch.export.save(torch.export.export(tiny, (image[:1],)), "fixed.pt2")
exported.example_inputs = None
torch.export.save(exported, "bare.pt2")
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("files")
    code = WRITER.replace("**HF_CONFIG", f"**{HF_CONFIG!r}")
    root = str(Path(__file__).parent.parents[1])
    environment = {**os.environ, "PYTHONPATH": root, "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", code], cwd=path, env=environment, check=True)
    return path


@pytest.fixture
def tiny() -> nn.Module:
    return tiny_vit.classifier().eval()


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    state = other.state_dict()
    return all(torch.equal(tensor, state[name]) for name, tensor in one.state_dict().items())


# Weights ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["weights.safetensors", "state.pt", "old.pth", "wrapped.pth"])
def test_weights_go_into_the_architecture(folder: Path, tiny: nn.Module, name: str) -> None:
    source = sources.load(str(folder / name), arch="shapes")
    assert same_weights(source.module, tiny)
    assert (source.spec, source.weights, source.arch) == (str(folder / name), "file", "shapes")
    assert source.notes == ()


def test_an_architecture_may_be_a_function(folder: Path) -> None:
    arch = "prunec.data.tiny_vit:classifier"
    assert sources.load(str(folder / "state.pt"), arch=arch).arch == arch


def test_weights_of_another_model_name_what_differs(folder: Path, tmp_path: Path, tiny: nn.Module) -> None:
    state = tiny.state_dict()
    first, *_ = state
    torch.save({**state, "extra.weight": torch.zeros(1)}, tmp_path / "more.pt")
    torch.save({name: value for name, value in state.items() if name != first}, tmp_path / "less.pt")
    torch.save({**state, first: torch.zeros(3)}, tmp_path / "size.pt")
    for name, told in [
        ("more.pt", "1 unexpected: extra.weight"),
        ("less.pt", f"1 missing: {first}"),
        ("size.pt", f"size mismatch for {first}"),
    ]:
        with pytest.raises(SourceError, match=told) as caught:
            sources.load(str(tmp_path / name), arch="shapes")
        assert "--arch" in (caught.value.remedy or "")
    with pytest.raises(SourceError, match=r"size mismatch for .* and \d+ more"):
        sources.load(str(folder / "state.pt"), arch="timm:test_vit")
    torch.save({f"wrong.{name}": value for name, value in state.items()}, tmp_path / "names.pt")
    with pytest.raises(SourceError, match=r"\d+ missing: .* and \d+ more; \d+ unexpected: wrong\."):
        sources.load(str(tmp_path / "names.pt"), arch="shapes")


def test_weights_without_an_architecture_ask_for_one(folder: Path) -> None:
    with pytest.raises(UsageError, match="the file holds weights only") as caught:
        sources.load(str(folder / "state.pt"))
    assert "--arch" in (caught.value.remedy or "")


@pytest.mark.parametrize("name", ["shapes", "timm:test_vit", "free.pt2", "shapes.pt"])
def test_an_architecture_that_is_of_no_use_is_refused(folder: Path, name: str) -> None:
    spec = str(folder / name) if "." in name else name
    with pytest.raises(UsageError, match=r"an architecture belongs to|holds a whole model"):
        sources.load(spec, arch="shapes")


# Whole modules ----------------------------------------------------------------------------------------------

WHOLE: dict[str, type[nn.Module]] = {
    "shapes.pt": tiny_vit.TinyViT,
    "inside.pt": tiny_vit.TinyViT,
    "timm.pt": timm.models.VisionTransformer,
    "torchvision.pt": VisionTransformer,
    "hf.pt": transformers.ViTForImageClassification,
}


@pytest.mark.parametrize("name", WHOLE)
def test_modules_of_known_packages_are_read_whole(folder: Path, name: str) -> None:
    source = sources.load(str(folder / name))
    assert type(source.module) is WHOLE[name]
    assert source.weights == "file"
    assert not any(part.training for part in source.module.modules())
    trusted = torch.load(folder / name, weights_only=False)
    trusted = trusted["model"] if isinstance(trusted, dict) else trusted
    assert same_weights(source.module, trusted)
    with torch.no_grad():
        found, expected = (model(*source.args, **source.kwargs) for model in (source.module, trusted.eval()))
    found, expected = (getattr(out, "logits", out) for out in (found, expected))
    assert torch.equal(found, expected)


def test_a_class_of_ones_own_is_refused_by_name(folder: Path) -> None:
    with pytest.raises(
        SourceError, match=r"own\.pt wants __main__\.Named, which prunec does not trust"
    ) as caught:
        sources.load(str(folder / "own.pt"))
    assert "--allow-pickle" in (caught.value.remedy or "")
    assert "--arch" in (caught.value.remedy or "")


class Malice:
    """Unpickling calls what __reduce__ names."""

    def __init__(self, call: Any, *args: Any) -> None:
        self.call, self.args = call, args

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call, self.args


def harm(path: str) -> None:
    Path(path).write_text("ran")


@pytest.mark.parametrize("hidden_in", ["alone", "state", "module"])
def test_a_malicious_file_does_not_run(tmp_path: Path, hidden_in: str) -> None:
    mark = tmp_path / "mark"
    call = Malice(os.system, f"touch {mark}")
    module = nn.Linear(1, 1)
    module.payload = call  # type: ignore[assignment]
    content = {"alone": call, "state": {"a": torch.zeros(1), "b": call}, "module": module}[hidden_in]
    torch.save(content, tmp_path / "bad.pt")
    with pytest.raises(SourceError, match=r"bad\.pt wants (posix|nt)\.system"):
        sources.load(str(tmp_path / "bad.pt"), arch="shapes")
    assert not mark.exists()


def test_a_malicious_file_in_an_old_format_does_not_run(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    bad = Malice(os.system, f"touch {mark}")
    torch.save(bad, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(bad))
    for name, refused in (("old.pth", r"wants (posix|nt)\.system"), ("plain.pt", "cannot be read")):
        with pytest.raises(SourceError, match=refused):
            sources.load(str(tmp_path / name), arch="shapes")
    assert not mark.exists()


def test_a_trusted_class_is_not_called_either(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Constructors of big libraries may do much, downloads included; a file cannot make them run."""
    torch.save(Malice(tiny_vit.TinyViT), tmp_path / "call.pt")
    monkeypatch.setattr(tiny_vit.TinyViT, "__init__", lambda self: pytest.fail("the constructor ran"))
    with pytest.raises(SourceError, match=r"does not give prunec\.data\.tiny_vit\.TinyViT a state"):
        files.read_pickled(tmp_path / "call.pt")


def test_a_person_who_trusts_a_file_may_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mark = tmp_path / "mark"
    module = tiny_vit.classifier()
    module.payload = Malice(harm, str(mark))  # type: ignore[assignment]
    torch.save(module, tmp_path / "own.pt")
    with pytest.raises(SourceError, match=rf"wants {__name__}\.harm"):
        sources.load(str(tmp_path / "own.pt"))
    assert not mark.exists()
    sources.load(str(tmp_path / "own.pt"), allow_pickle=True)
    assert mark.exists()


@pytest.mark.parametrize(
    ("name", "what"),
    [("list.pt", "holds a list, neither a module nor a state dict"), ("scripted.pt", "cannot be read")],
)
def test_other_contents_are_refused(folder: Path, name: str, what: str) -> None:
    with pytest.raises(SourceError, match=what):
        sources.load(str(folder / name))


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".safetensors", ".pt2"])
def test_a_damaged_file_says_so(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"broken{suffix}"
    path.write_bytes(b"this is no model")
    with pytest.raises(SourceError, match=f"broken{suffix} cannot be read: "):
        sources.load(str(path), allow_pickle=suffix == ".pt2")


# Exported programs ------------------------------------------------------------------------------------------


def test_an_exported_program_is_the_captured_one(folder: Path, tiny: nn.Module) -> None:
    source = sources.load(str(folder / "free.pt2"), allow_pickle=True)
    assert "only if you trust" in source.notes[0]
    same, fewer = (
        ProgramModule(compile_source(source, Policy.load("norm").override(keep_per_site=keep)).pruned)
        for keep in (1.0, 0.5)
    )
    pixels = torch.randn(5, 3, 72, 72)
    with torch.no_grad():
        assert torch.allclose(same(pixels=pixels)["logits"], tiny(pixels), atol=1e-5)
        pruned = fewer(pixels)
    assert list(pruned) == ["logits"]
    assert pruned["logits"].shape == (5, tiny(pixels).shape[1])
    assert not torch.allclose(pruned["logits"], tiny(pixels), atol=1e-5)
    assert set(same.state_dict()) == {f"tiny.{name}" for name in tiny.state_dict()}


def test_a_batch_that_the_export_fixed_stays_fixed(folder: Path, tiny: nn.Module) -> None:
    source = sources.load(str(folder / "fixed.pt2"), allow_pickle=True)
    with pytest.warns(UserWarning, match="the batch is fixed at 1"):
        compiled = compile_source(source, Policy.load("norm").override(keep=1.0))
    (pixels,) = source.args
    assert pixels.shape[0] == 1
    with torch.no_grad():
        assert torch.allclose(ProgramModule(compiled.pruned)(pixels), tiny(pixels), atol=1e-5)


def test_an_exported_program_is_read_with_consent_only(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.export, "load", lambda *_: pytest.fail("the file was opened"))
    with pytest.raises(SourceError, match="reading one may run code that is in it") as caught:
        sources.load(str(folder / "free.pt2"))
    assert "--allow-pickle" in (caught.value.remedy or "")


@pytest.mark.parametrize(
    ("spec", "code"),
    [
        ("shapes", False),
        ("timm:vit_small_patch16_224", False),
        ("vit_small_patch16_224.augreg_in21k", False),  # a bare name is one of timm
        ("hf:facebook/dinov2-small", False),
        ("hf:./folder", False),
        ("folder/weights.safetensors", False),
        ("pkg.module:callable", True),
        ("os:abort", True),
        ("local-dir:folder", True),
        ("hf-hub:org/name", True),
        ("model.pt2", True),
        ("weights.pt", True),
        ("folder/weights.pth", True),
        ("org/name", True),
    ],
)
def test_which_sources_may_run_code(spec: str, code: bool) -> None:
    assert sources.runs_code(spec) is code


def test_an_exported_program_without_inputs_asks_for_them(folder: Path) -> None:
    with pytest.raises(UsageError, match="holds no example inputs"):
        sources.load(str(folder / "bare.pt2"), allow_pickle=True)


# Artefacts and the command line -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["weights.safetensors", "free.pt2"])
def test_an_artefact_of_a_file_can_be_loaded_again(folder: Path, tmp_path: Path, name: str) -> None:
    arch = "shapes" if "weights" in name else None
    source = sources.load(str(folder / name), arch=arch, allow_pickle=name.endswith(".pt2"))
    compiled = compile_source(source, Policy.load("norm"))
    module = ProgramModule(compiled.pruned)
    manifest = {"source": source.spec, "arch": source.arch, "weights": source.weights, "target": "eager"}
    manifest |= {"policy": Policy.load("norm").model_dump(mode="json"), "plan": {}, "certificate": {}}
    artefact.save(tmp_path / "out", manifest, module.state_dict(), {})
    pixels = torch.randn(3, 3, 72, 72)
    if name.endswith(".pt2"):
        with pytest.raises(SourceError, match="reading that may run code"):
            prunec.load(tmp_path / "out")
        again = prunec.load(tmp_path / "out", trust_source=True, allow_pickle=True)
    else:
        again = prunec.load(tmp_path / "out")
    with torch.no_grad():
        found, expected = again(pixels), module(pixels)
    assert torch.equal(*(out["logits"] if isinstance(out, dict) else out for out in (found, expected)))


def run(*arguments: str) -> Any:
    return CliRunner().invoke(cli.app, arguments)


def test_the_commands_take_files(folder: Path) -> None:
    weights = str(folder / "weights.safetensors")
    told = json.loads(run("explain", weights, "--arch", "shapes", "--json").stdout)
    assert len(told["blocks"]) == len(json.loads(run("explain", "shapes", "--json").stdout)["blocks"])
    assert run("graph", weights, "--arch", "shapes").exit_code == 0
    done = run("optimize", weights, "--arch", "shapes", "--policy", "norm", "--dry-run")
    assert done.exit_code == 0


def test_the_commands_refuse_what_is_not_trusted(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["explain"], ["graph"], ["optimize", "--policy", "norm", "--dry-run"]):
        assert cli.main([*command, str(folder / "own.pt")]) == 1
        assert "--allow-pickle" in capsys.readouterr().err
