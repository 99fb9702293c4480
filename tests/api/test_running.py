"""Pictures through the model of an artefact."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from prunec.api.results import LABELS, Result
from prunec.api.running import Predictor, run
from prunec.artefact.spec import PictureRecord
from prunec.data.images import read_image
from prunec.data.preprocess import Preprocess
from prunec.errors import SourceError, UsageError
from tests.api.making import copied
from tests.artefact.saving import rewritten


def pictures(folder: Path, count: int) -> list[Path]:
    paths = [folder / f"{number}.png" for number in range(count)]
    for number, path in enumerate(paths):
        Image.effect_noise((30 + number, 24), 90).convert("RGB").save(path)
    return paths


def test_answers_are_the_models_own(saved: tuple[Path, Result], tmp_path: Path) -> None:
    folder, result = saved
    paths = pictures(tmp_path, 10)  # more than run at a time
    found = run(folder, paths, top=3)
    images = torch.stack([read_image(path, Preprocess(20)) for path in paths])
    with torch.no_grad():
        scores = result.module(images)
    assert torch.allclose(found.outputs["output"], scores, atol=1e-6)
    assert found.images == tuple(map(str, paths))
    for (answer,), row in zip(found.answers, scores.softmax(1), strict=True):
        assert answer["kind"] == "class scores"
        assert [one["class"] for one in answer["classes"]] == row.topk(3).indices.tolist()
        assert [one["probability"] for one in answer["classes"]] == pytest.approx(
            row.topk(3).values.tolist(), abs=1e-6
        )
        assert {one["label"] for one in answer["classes"]} == {""}
    assert found.as_dict()[0] == {"image": str(paths[0]), "outputs": found.answers[0]}


def test_pictures_are_prepared_as_the_spec_says(saved: tuple[Path, Result], tmp_path: Path) -> None:
    folder, (path,) = copied(saved[0], tmp_path / "out"), pictures(tmp_path, 1)
    before = run(folder, [path])
    record = PictureRecord(
        size=(20, 20), scaled=(28, 28), mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6), fit="stretch",
        interpolation="nearest", rescale=1 / 255,
    )  # fmt: skip
    spec = saved[1].description.spec.model_copy(update={"pictures": record})
    rewritten(folder, spec=spec.model_dump(mode="json"))
    after = run(folder, [path])
    pixels = read_image(path, Preprocess(20, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), 28, "stretch", "nearest"))
    with torch.no_grad():
        assert torch.allclose(after.outputs["output"], saved[1].module(pixels[None]), atol=1e-6)
    assert not torch.allclose(after.outputs["output"], before.outputs["output"], atol=1e-3)


def test_labels_name_the_classes(saved: tuple[Path, Result], tmp_path: Path) -> None:
    folder = copied(saved[0], tmp_path / "out")
    (folder / LABELS).write_text('["a", "b", "c", "d", "e", "f", "g"]', encoding="utf-8")
    rewritten(folder, files=["model.safetensors", LABELS])
    ((answer,),) = run(folder, pictures(tmp_path, 1)).answers
    assert all(one["label"] == "abcdefg"[one["class"]] for one in answer["classes"])
    (folder / LABELS).write_text('{"a": 1}', encoding="utf-8")
    with pytest.raises(SourceError, match=r"labels\.json is no list of names"):
        run(folder, pictures(tmp_path, 1))


@pytest.mark.parametrize("content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n"])
def test_a_malformed_picture_is_named(saved: tuple[Path, Result], tmp_path: Path, content: bytes) -> None:
    good, bad = pictures(tmp_path, 1)[0], tmp_path / "bad.png"
    bad.write_bytes(content)
    with pytest.raises(SourceError, match=r"the image cannot be read: [\s\S]*where: .*/bad\.png"):
        run(saved[0], [good, bad])
    with pytest.raises(SourceError, match=r"No such file[\s\S]*where: .*/gone\.png"):
        run(saved[0], [tmp_path / "gone.png"])


def test_what_takes_no_pictures_is_refused(saved: tuple[Path, Result], tmp_path: Path) -> None:
    folder = copied(saved[0], tmp_path / "out")
    spec = saved[1].description.spec.model_dump(mode="json")
    rewritten(folder, spec={**spec, "pictures": None})
    with pytest.raises(UsageError, match="takes no pictures, but image\n  to do: call it from Python"):
        run(folder, pictures(tmp_path, 1))
    huge = {**spec["pictures"], "size": [60000, 60000]}
    rewritten(folder, spec={**spec, "pictures": huge})
    with pytest.raises(UsageError, match="pictures of 60000 x 60000 pixels are larger than"):
        run(folder, pictures(tmp_path, 1))
    rewritten(folder, "spec")
    with pytest.raises(UsageError, match="does not say how pictures become its model's input: an older"):
        run(folder, pictures(tmp_path, 1))


def test_outputs_that_the_spec_does_not_describe_are_refused(
    saved: tuple[Path, Result], tmp_path: Path
) -> None:
    folder = copied(saved[0], tmp_path / "out")
    spec = saved[1].description.spec.model_dump(mode="json")
    rewritten(folder, spec={**spec, "outputs": [{**spec["outputs"][0], "place": 7}]})
    with pytest.raises(SourceError, match="the model gives 1 outputs, and its spec describes 8"):
        run(folder, pictures(tmp_path, 1))


def test_a_fixed_batch_is_filled(saved: tuple[Path, Result], tmp_path: Path) -> None:
    folder = copied(saved[0], tmp_path / "out")
    paths = pictures(tmp_path, 5)
    expected = run(folder, paths).outputs["output"]
    spec = saved[1].description.spec.model_dump(mode="json")
    rewritten(folder, spec={**spec, "batch": 2})
    found = run(folder, paths)
    assert len(found.answers) == 5
    assert torch.allclose(found.outputs["output"], expected, atol=1e-6)


def test_a_predictor_answers_pictures_out_of_memory_as_out_of_files(
    saved: tuple[Path, Result], tmp_path: Path
) -> None:
    paths = pictures(tmp_path, 3)
    predictor = Predictor(saved[0], top=3)
    pixels = [predictor.read(path.read_bytes()) for path in paths]
    assert all(torch.equal(one, predictor.read(path)) for one, path in zip(pixels, paths, strict=True))
    assert predictor.predict(pixels) == list(run(saved[0], paths, target=None, top=3).answers)


@pytest.mark.parametrize("content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n"])
def test_a_predictor_refuses_what_is_no_picture_and_goes_on(
    saved: tuple[Path, Result], tmp_path: Path, content: bytes
) -> None:
    predictor = Predictor(saved[0])
    with pytest.raises(SourceError, match=r"the image cannot be read: [\s\S]*where: the picture"):
        predictor.read(content)
    assert len(predictor.predict([predictor.read(pictures(tmp_path, 1)[0])])) == 1


def test_a_predictor_of_a_fixed_batch_takes_no_more(saved: tuple[Path, Result], tmp_path: Path) -> None:
    folder = copied(saved[0], tmp_path / "out")
    rewritten(folder, spec={**saved[1].description.spec.model_dump(mode="json"), "batch": 2})
    predictor = Predictor(folder)
    pixels = [predictor.read(path) for path in pictures(tmp_path, 3)]
    assert len(predictor.predict(pixels[:1])) == 1
    with pytest.raises(UsageError, match="3 pictures are more than the 2 that the model takes at once"):
        predictor.predict(pixels)
