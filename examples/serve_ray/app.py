"""A pruned model behind HTTP, by Ray Serve: pictures of several requests run in one batch.

    prunec optimize shapes --policy evit -o out
    serve run app:classify folder=out            # in this folder
    curl --data-binary @picture.png localhost:8000

The body of a request is a picture (jpg, png, bmp or webp); the answer is JSON, as of
`prunec run --json`. A body that is no picture gets 400 and the reason, and reaches nobody's batch.
"""

from __future__ import annotations

import asyncio
from typing import Any

import torch
from pydantic import BaseModel
from ray import serve
from starlette.requests import Request
from starlette.responses import JSONResponse

import prunec

MOST_BYTES = 20 * 2**20  # of a body


class Settings(BaseModel):
    """What `serve run app:classify NAME=VALUE` may say."""

    folder: str
    replicas: int = 2
    threads: int = 1  # of each replica
    batch: int = 8  # pictures that run together at most
    wait: float = 0.005  # seconds that a picture waits for others


@serve.deployment(max_ongoing_requests=64)
class Classifier:
    """One replica: the model of an artefact."""

    def __init__(self, settings: Settings) -> None:
        torch.set_num_threads(settings.threads)
        self.predictor = prunec.Predictor(settings.folder)
        most = self.predictor.spec.batch or settings.batch
        self.answer.set_max_batch_size(min(settings.batch, most))
        self.answer.set_batch_wait_timeout_s(settings.wait)
        side = self.predictor.preprocess.size
        self.predictor.predict([torch.zeros(3, *side)])  # loaded before the first request

    async def __call__(self, request: Request) -> JSONResponse:
        """A picture's answer."""
        if int(request.headers.get("content-length") or 0) > MOST_BYTES:
            return JSONResponse({"error": f"more than {MOST_BYTES} bytes"}, status_code=413)
        body = await request.body()
        if len(body) > MOST_BYTES:
            return JSONResponse({"error": f"more than {MOST_BYTES} bytes"}, status_code=413)
        try:
            pixels = await asyncio.to_thread(self.predictor.read, body)
        except prunec.SourceError as error:
            return JSONResponse({"error": error.what}, status_code=400)
        return JSONResponse({"outputs": await self.answer(pixels)})

    @serve.batch
    async def answer(self, pixels: list[torch.Tensor]) -> list[Any]:
        """The answers of pictures that came at about the same time."""
        return await asyncio.to_thread(self.predictor.predict, pixels)


def classify(settings: Settings) -> serve.Application:
    """The application that `serve run` starts."""
    deployment = Classifier.options(
        num_replicas=settings.replicas, ray_actor_options={"num_cpus": settings.threads}
    )
    return deployment.bind(settings)
