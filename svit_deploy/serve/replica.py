"""What answers requests with a bundle: an engine and its queue, in this process or another."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple, Protocol

import numpy as np
from kserve import InferRequest, InferResponse

from svit_deploy.bundle import Bundle
from svit_deploy.engines.base import TensorSpec
from svit_deploy.errors import InputError
from svit_deploy.images.prepared import Prepared
from svit_deploy.inference.engine import open_bundle_engine
from svit_deploy.inference.stream import Read, Seen, see
from svit_deploy.predict.formats import kept_tokens
from svit_deploy.predict.pictures import as_png, draw_result
from svit_deploy.serve.batcher import Batcher
from svit_deploy.serve.metrics import Counted
from svit_deploy.serve.settings import ServeSettings
from svit_deploy.serve.start import choose_batch
from svit_deploy.serve.tensors import count_images, read_arrays, read_images, respond
from svit_deploy.tasks.runs import Show
from svit_deploy.tasks.task import Arrays

SUMMARY, DRAWING = EXTRA = "summary", "drawing"
"""Outputs on request: what `predict` says of an image as JSON, and what it draws as a PNG."""
SHOW = Show(top_k=5, min_score=0.3)
MILLION = 1_000_000


class Answered(NamedTuple):
    """A response, and what the metrics count of its images."""

    response: InferResponse
    counted: Sequence[Counted]


class Answers(Protocol):
    """What answers requests.

    Attributes:
        inputs, outputs: of the engine, with any batch.
    """

    inputs: Sequence[TensorSpec]
    outputs: Sequence[TensorSpec]

    async def answer(self, request: InferRequest) -> Answered:
        """Answers a request; raises a SvitDeployError."""

    def close(self) -> None:
        """Lets what has been taken in be answered, and nothing else."""

    def join(self) -> None:
        """Waits for the end that `close` asked for."""


@dataclass(frozen=True)
class Work:
    """A request that was read."""

    request: InferRequest
    reads: Sequence[Read]
    wanted: Sequence[str]


class Replica:
    """Answers with an engine in a thread of this process, and its queue.

    Args:
        pool: decodes pictures, and draws.

    Raises:
        SvitDeployError: the bundle cannot be served.
    """

    def __init__(self, name: str, bundle: Bundle, settings: ServeSettings, pool: Executor) -> None:
        self.bundle, self.settings, self.pool = bundle, settings, pool
        self.batcher: Batcher[Arrays] = Batcher(
            self._open_run,
            max_batch=choose_batch(bundle, settings),
            max_delay=settings.max_delay / 1000,
            timeout=settings.timeout,
            name=name,
        )
        self.batcher.start()

    @contextmanager
    def _open_run(self) -> Iterator[Any]:
        """Opens the engine, and runs a sample of each batch size's end."""
        with open_bundle_engine(self.bundle, self.settings) as engine:
            self.inputs: Sequence[TensorSpec] = [_free_batch(spec) for spec in engine.inputs()]
            self.outputs: Sequence[TensorSpec] = [_free_batch(spec) for spec in engine.outputs()]
            task = self.bundle.task

            def run(images: Sequence[Prepared]) -> list[Arrays]:
                return task.split(engine.run(task.feeds(images)), len(images))

            sample = self.bundle.load_samples()[0].images[0]
            for images in {1, self.batcher.max_batch}:
                run([sample] * images)
            yield run

    def close(self) -> None:
        self.batcher.close()

    def join(self) -> None:
        self.batcher.join()

    async def answer(self, request: InferRequest) -> Answered:
        work = await self._in_pool(self._read, request)
        futures = self.batcher.submit([read.image for read in work.reads])
        done = await asyncio.gather(*map(asyncio.wrap_future, futures))
        seen = [
            next(see(self.bundle, one.value, [read]))
            for read, one in zip(work.reads, done, strict=True)
        ]
        arrays = self.bundle.task.join(
            [{n: array for n, array in one.value.items() if n in work.wanted} for one in done]
        )
        extra = {SUMMARY: self._summarise, DRAWING: self._draw}
        arrays |= {
            name: np.array(await self._in_pool(lambda of: list(map(of, seen)), make), np.object_)
            for name, make in extra.items()
            if name in work.wanted
        }
        times: Mapping[str, int] = {
            "queue_us": int(max(one.queue_seconds for one in done) * MILLION),
            "engine_us": int(max(one.engine_seconds for one in done) * MILLION),
            "batch_images": max(one.batch for one in done),
        }
        response = respond(work.request, {name: arrays[name] for name in work.wanted}, times)
        return Answered(response, [Counted.of(*both) for both in zip(seen, done, strict=True)])

    def _read(self, request: InferRequest) -> Work:
        known = [spec.name for spec in self.outputs]
        wanted = [one.name for one in request.request_outputs or ()] or known
        for name in wanted:
            if name not in (*known, *EXTRA):
                names = ", ".join([*known, *EXTRA])
                raise InputError(f"the model has no output {name!r:.80}", f"ask for {names}")
        pixels = int(self.settings.max_pixels * MILLION)
        reads = read_images(read_arrays(request), self.bundle, self.inputs, pixels)
        if len(reads) > count_images(request):
            raise InputError("the request holds more images than its shape tells", "tell them all")
        return Work(request, reads, wanted)

    def _summarise(self, seen: Seen) -> bytes:
        task = self.bundle.task
        told = task.describe(task.shown(seen.outputs, SHOW), self.bundle.class_names)
        return json.dumps(told | kept_tokens(seen)).encode()

    def _draw(self, seen: Seen) -> bytes:
        return as_png(draw_result(seen, self.bundle, SHOW, self.bundle.class_names))

    async def _in_pool(self, function: Any, *given: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(
            self.pool, partial(function, *given)
        )


def _free_batch(spec: TensorSpec) -> TensorSpec:
    """With any batch, of an engine that fills up what it is given."""
    return replace(spec, shape=("batch", *spec.shape[1:]))
