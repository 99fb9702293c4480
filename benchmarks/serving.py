"""A pruned model behind Ray Serve: are all answers right, how long do they take, does memory grow.

    pip install 'ray[serve]' && python benchmarks/serving.py       # on this machine, over the loopback

With RAY_AUTH_MODE=token and a RAY_AUTH_TOKEN in the environment, Ray's own processes ask each other for it.

Real HTTP: threads post pictures to the example `examples/serve_ray`, one of twenty bodies being no picture.
Every answer is compared with what the model says of that picture alone. Exits with 1 where one is wrong,
where a bad body gets anything but 400, or where the replicas' memory grows by more than a tenth.
"""

from __future__ import annotations

import argparse
import http.client
import io
import itertools
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from common import RESULTS, Check, Row, conclude, show, write
from PIL import Image
from ray import serve

import prunec
from prunec.data import shapes

EXAMPLE = Path(__file__).parents[1] / "examples" / "serve_ray"
PICTURES = 16
BAD = (b"", b"no picture", b"\x89PNG\r\n\x1a\n" + b"\0" * 64, b"\xff\xd8\xff" + b"\xff" * 1000)
EVERY = 20  # one body of so many is no picture
GROWTH = 1.1  # of the replicas' memory, from after the first requests to after the last
NEAR = 1e-4  # of a probability: batches of other sizes are rounded otherwise


def pictures(count: int) -> list[bytes]:
    """PNG files of scenes."""
    images, _ = shapes.images(shapes.CLASSIFICATION, shapes.HELD_OUT_SEEDS[100], 0, count)
    found = []
    for image in images:
        file = io.BytesIO()
        pixels = (image.clamp(0, 1) * 255).byte().permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(file, "PNG")
        found.append(file.getvalue())
    return found


class Clients:
    """Threads that post bodies, and what came back."""

    def __init__(self, port: int, bodies: Sequence[bytes], expected: Sequence[Any]) -> None:
        self.port, self.bodies, self.expected = port, bodies, expected
        self.numbers = itertools.count()
        self.seconds: list[float] = []
        self.wrong: list[str] = []

    def run(self, requests: int, concurrency: int) -> None:
        """Post so many requests, so many at a time."""
        left = iter(range(requests))
        threads = [threading.Thread(target=self._post_all, args=(left,)) for _ in range(concurrency)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _post_all(self, left: Any) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        for _ in left:
            number = next(self.numbers)
            good = number % EVERY != 0
            body = self.bodies[number % len(self.bodies)] if good else BAD[number // EVERY % len(BAD)]
            start = time.perf_counter()
            connection.request("POST", "/", body)
            answer = connection.getresponse()
            status, text = answer.status, answer.read()
            if good:
                self.seconds.append(time.perf_counter() - start)
            if said := self._wrong(number, good, status, text):
                self.wrong.append(said)
        connection.close()

    def _wrong(self, number: int, good: bool, status: int, text: bytes) -> str:
        """What is wrong with an answer; nothing where it is right."""
        if not good:
            return "" if status == 400 and json.loads(text)["error"] else f"{status} for a bad body"
        if status != 200:
            return f"{status} for a picture: {text[:200]!r}"
        found, expected = json.loads(text)["outputs"], self.expected[number % len(self.bodies)]
        for one, other in zip(found, expected, strict=True):
            for mine, theirs in zip(one["classes"], other["classes"], strict=True):
                if (
                    mine["class"] != theirs["class"]
                    and abs(mine["probability"] - theirs["probability"]) > NEAR
                ):
                    return f"class {mine['class']} for {theirs['class']}"
                if abs(mine["probability"] - theirs["probability"]) > NEAR:
                    return f"probability {mine['probability']} for {theirs['probability']}"
        return ""


def replicas_memory() -> int:
    """Resident bytes of all replicas (Linux)."""
    return sum(map(_memory, Path("/proc").glob("[0-9]*")))


def _memory(process: Path) -> int:
    """Resident bytes of a process, where it is a replica."""
    try:
        if b"ServeReplica" not in (process / "cmdline").read_bytes():
            return 0
        return int((process / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:  # it has ended
        return 0


def measured(clients: Clients, requests: int, concurrency: int) -> Row:
    """One load."""
    clients.seconds, clients.wrong = [], []
    before, start = replicas_memory(), time.perf_counter()
    clients.run(requests, concurrency)
    seconds, after = time.perf_counter() - start, replicas_memory()
    ordered = np.sort(clients.seconds) * 1e3
    figures = {
        "p50_ms": float(np.percentile(ordered, 50)),
        "p99_ms": float(np.percentile(ordered, 99)),
        "requests_per_second": requests / seconds,
        "memory_mb": after / 2**20,
    }
    checks = (
        Check("wrong answers", len(clients.wrong), most=0),
        Check("memory of the replicas, after / before", after / max(before, 1), most=GROWTH),
    )
    for said in clients.wrong[:3]:
        print(said)
    print(f"concurrency {concurrency}: " + ", ".join(f"{k} {v:.4g}" for k, v in figures.items()), flush=True)
    return Row(f"{concurrency} at a time", {"requests": requests, **figures}, {}, checks)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--artefact", type=Path, help="an artefact of a classifier (default: one of Shapes)")
    parser.add_argument("--requests", type=int, default=2000, help="over all loads")
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--output", type=Path, default=RESULTS / "serving_cpu.json")
    options = parser.parse_args()
    sys.path.insert(0, str(EXAMPLE))
    from app import Settings, classify

    with tempfile.TemporaryDirectory() as place:
        folder = options.artefact
        if folder is None:
            folder = Path(place) / "out"
            prunec.optimize("shapes", "evit", measure=prunec.Measure(target="eager")).save(folder)
        bodies = pictures(PICTURES)
        predictor = prunec.Predictor(folder)
        expected = [predictor.predict([predictor.read(body)])[0] for body in bodies]
        paths = [str(EXAMPLE), str(Path(__file__).parents[1])]
        environment = {"env_vars": {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}}
        ray.init(num_cpus=options.replicas + 1, include_dashboard=False, runtime_env=environment)
        serve.start(http_options={"host": "127.0.0.1", "port": options.port})
        try:
            serve.run(classify(Settings(folder=str(folder.resolve()), replicas=options.replicas)))
            clients = Clients(options.port, bodies, expected)
            clients.run(100, 4)  # memory before the first requests says nothing
            each = options.requests // 3
            rows = [measured(clients, each, concurrency) for concurrency in (1, 4, 32)]
        finally:
            serve.shutdown()
            ray.shutdown()
    show("serving", rows)
    sections = {"serving": rows}
    write(options.output, sections, torch.device("cpu"))
    return conclude(options.output, sections)


if __name__ == "__main__":
    sys.exit(main())
