"""A pruned model over all pictures of a folder, by Ray Data, on as many machines as the cluster has.

    prunec optimize shapes --policy evit -o out
    python classify_folder.py out PICTURES answers         # writes answers/*.jsonl

Each worker loads the artefact once. A file that is no picture gives a line with the reason in the place of an
answer: one bad file among a million stops nothing.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import numpy as np
import ray
import torch

import prunec

SUFFIXES = ["jpg", "jpeg", "png", "bmp", "webp"]


class Classify:
    """One worker: a batch of files becomes a batch of answers."""

    def __init__(self, folder: str, threads: int) -> None:
        torch.set_num_threads(threads)
        self.predictor = prunec.Predictor(folder)

    def __call__(self, files: dict[str, np.ndarray]) -> dict[str, Any]:
        """The files' answers, as JSON, and what was wrong with those that have none."""
        read = [self._read(bytes(content)) for content in files["bytes"]]
        found = iter(self._answers([one for one in read if isinstance(one, torch.Tensor)]))
        outputs = [json.dumps([] if isinstance(one, str) else next(found)) for one in read]
        errors = [one if isinstance(one, str) else "" for one in read]
        return {"path": files["path"], "outputs": np.array(outputs), "error": np.array(errors)}

    def _read(self, content: bytes) -> torch.Tensor | str:
        """A picture as the model takes it, or what is wrong with it."""
        try:
            return self.predictor.read(content)
        except prunec.SourceError as error:
            return error.what

    def _answers(self, pixels: list[torch.Tensor]) -> list[Any]:
        """In batches of what the model takes at once."""
        size = self.predictor.spec.batch or max(1, len(pixels))
        parts = [pixels[start : start + size] for start in range(0, len(pixels), size)]
        return [answer for part in parts for answer in self.predictor.predict(part)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "artefact", help="the folder that `prunec optimize -o` wrote; all machines must see it"
    )
    parser.add_argument("pictures", help="a folder, or a URI that Ray reads")
    parser.add_argument("output", help="where the answers are written")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1, help="of each worker")
    parser.add_argument("--batch", type=int, default=32)
    options = parser.parse_args()
    files = ray.data.read_binary_files(options.pictures, include_paths=True, file_extensions=SUFFIXES)
    answers = files.map_batches(
        Classify,
        fn_constructor_args=(options.artefact, options.threads),
        batch_size=options.batch,
        concurrency=(1, options.workers),  # reading needs a core too
        num_cpus=options.threads,
    )
    answers.write_json(options.output)


if __name__ == "__main__":
    main()
