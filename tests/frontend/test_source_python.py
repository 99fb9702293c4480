from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from prunec.errors import SourceError
from prunec.frontend import sources
from tests.frontend.models import check_runs


def test_a_function_of_the_folder_one_stands_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_models.py").write_text(
        "from prunec.data.tiny_vit import TinyViT\ndef build():\n    return TinyViT()\n"
    )
    monkeypatch.chdir(tmp_path)
    path = list(sys.path)
    source = sources.load("my_models:build")
    assert (source.spec, source.weights) == ("my_models:build", "given")
    assert sys.path == path
    check_runs(source)


def test_a_module_with_a_mistake_in_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_models.py").write_text("def build(:\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SourceError, match="'broken_models' cannot be imported: invalid syntax"):
        sources.load("broken_models:build")


def test_a_function_may_give_an_example_with_its_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model_with_example.py").write_text(
        "import torch\n\ndef build():\n    return torch.nn.Linear(3, 2), torch.ones(5, 3)\n"
    )
    monkeypatch.chdir(tmp_path)
    source = sources.load("model_with_example:build")
    assert isinstance(source.module, torch.nn.Linear)
    assert [leaf.shape for leaf in source.args] == [torch.Size([5, 3])]
