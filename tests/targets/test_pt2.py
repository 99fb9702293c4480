from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import torch

from prunec import targets
from prunec.targets import FileTarget, LoweredModule
from prunec.targets.pt2 import Pt2
from tests.targets import cases
from tests.targets.cases import difference, images
from tests.tiny import ViT, assert_a_copy_stands_by_itself, pixels, pruned, recognised

SCRIPT = Path(__file__).with_name("without_prunec.py")


def test_files_run_where_there_is_no_prunec(tmp_path: Path, exported_once: None) -> None:
    """Every kind of policy, in every mode, in one process that cannot import prunec."""
    target = Pt2()
    for name in ("dense", *cases.CASES):
        program = cases.case(name)
        target.write(program, tmp_path)
        (tmp_path / "model.pt2").rename(tmp_path / f"{name}.pt2")
        with torch.no_grad():
            pairs = [(images(n), program.module(images(n))[0]) for n in cases.batches(program)]
        torch.save(pairs, tmp_path / f"{name}.expected")
    command = [sys.executable, "-I", str(SCRIPT), str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found.keys() == {"dense", *cases.CASES}
    assert max(found.values()) < cases.TOLERANCE, found


def test_a_file_is_read_back_as_flat_as_the_program(tmp_path: Path, exported_once: None) -> None:
    program = cases.case("dynamic padded")
    target = targets.load("pt2")
    assert isinstance(target, FileTarget)
    target.write(program, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == list(target.files)
    run = target.read(tmp_path)
    with torch.no_grad():
        (found,) = run(images(3))
        assert difference(found, program.module(images(3))[0]) < 1e-6


def test_a_lowered_program_runs_on_the_weights_that_the_model_has_now() -> None:
    model, x = ViT().eval(), pixels(3)
    program = pruned(recognised(model))
    module = LoweredModule(program, Pt2().lower(program))
    assert torch.equal(module(x), program.module(x)[0])
    with torch.no_grad():
        model.head.bias.add_(1)
        assert torch.equal(module(x), program.module(x)[0])
    assert torch.equal(module.double()(x.double()), program.module(x.double())[0])
    assert_a_copy_stands_by_itself(module.float())


def test_it_can_be_trained() -> None:
    program = pruned(recognised(ViT()))
    module = LoweredModule(program, Pt2().lower(program))
    module(pixels()).sum().backward()
    assert all(parameter.grad is not None for parameter in module.parameters())
