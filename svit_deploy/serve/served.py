"""A bundle as a model of KServe's server."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from kserve import InferRequest, InferResponse, Model
from kserve.model import InferenceVerb
from kserve.utils.numpy_codec import from_np_dtype

from svit_deploy.bundle import open_bundle
from svit_deploy.engines.base import TensorSpec
from svit_deploy.errors import InputError
from svit_deploy.images.prepared import Prepared
from svit_deploy.inference.engine import open_bundle_engine
from svit_deploy.inference.stream import Read, Seen, see
from svit_deploy.predict.formats import kept_tokens
from svit_deploy.predict.pictures import draw_result
from svit_deploy.serve.batcher import Batcher, Done
from svit_deploy.serve.metrics import ModelMetrics
from svit_deploy.serve.refusals import Refused, TooSlow, Unsupported, answer_of
from svit_deploy.serve.settings import ServeSettings
from svit_deploy.serve.start import choose_batch
from svit_deploy.serve.tensors import (
    BYTES,
    PICTURES,
    count_images,
    read_arrays,
    read_images,
    respond,
)
from svit_deploy.tasks.runs import Show
from svit_deploy.tasks.task import Arrays

SUMMARY, DRAWING = "summary", "drawing"
"""Outputs on request: what `predict` says of an image as JSON, and what it draws as a PNG."""
SHOW = Show(top_k=5, min_score=0.3)
MILLION = 1_000_000


@dataclass(frozen=True)
class Work:
    """A request that was read."""

    request: InferRequest
    reads: Sequence[Read]
    wanted: Sequence[str]


@dataclass(frozen=True)
class Answered:
    """A request that was run, image by image."""

    work: Work
    done: Sequence[Done[Arrays]]


class ServedBundle(Model):
    """A bundle, its engine in a thread, and its queue.

    Args:
        pool: decodes pictures, and draws.

    Raises:
        SvitDeployError: the bundle cannot be served (when it is loaded).
    """

    def __init__(self, name: str, path: Path, settings: ServeSettings, pool: Executor) -> None:
        super().__init__(name)
        self.path, self.settings, self.pool = path, settings, pool

    def load(self) -> bool:
        """Opens the bundle, and runs a sample of each batch size's end."""
        self.bundle = open_bundle(self.path)
        self.batcher: Batcher[Arrays] = Batcher(
            self._open_run,
            max_batch=choose_batch(self.bundle, self.settings),
            max_delay=self.settings.max_delay / 1000,
            max_queue=self.settings.max_queue,
            timeout=self.settings.timeout,
            name=self.name,
        )
        self.batcher.start()
        self.metrics = ModelMetrics(
            self.name, self.bundle, self.settings.drift_warning, lambda: self.batcher.held
        )
        self.ready = True
        return True

    @contextmanager
    def _open_run(self) -> Iterator[Any]:
        with open_bundle_engine(self.bundle, self.settings) as engine:
            self.inputs = [_free_batch(spec) for spec in engine.inputs()]
            self.outputs = [_free_batch(spec) for spec in engine.outputs()]
            task = self.bundle.task

            def run(images: Sequence[Prepared]) -> list[Arrays]:
                return task.split(engine.run(task.feeds(images)), len(images))

            sample = self.bundle.load_samples()[0].images[0]
            for images in {1, self.batcher.max_batch}:
                run([sample] * images)
            yield run

    async def drain(self) -> None:
        """Waits until all is answered that came in, and frees the engine."""
        while self.batcher.held:
            await asyncio.sleep(0.02)
        self.stop()

    def stop(self) -> None:
        self.ready = False
        self.batcher.close()

    # The protocol.

    def get_input_types(self) -> list[dict[str, Any]]:
        return [{"name": PICTURES, "datatype": BYTES, "shape": [-1]}, *map(_metadata, self.inputs)]

    def get_output_types(self) -> list[dict[str, Any]]:
        extra = [{"name": n, "datatype": BYTES, "shape": [-1]} for n in (SUMMARY, DRAWING)]
        return [*map(_metadata, self.outputs), *extra]

    async def __call__(
        self,
        body: InferRequest,
        headers: Mapping[str, str] | None = None,
        verb: InferenceVerb = InferenceVerb.PREDICT,
    ) -> Any:
        """Answers a request within the limits of time and of the queue; KServe times the parts."""
        if verb is not InferenceVerb.PREDICT:
            raise Unsupported("a model can only predict", "ask for infer")
        try:
            with self.batcher.room(count_images(body)):
                answering = super().__call__(body, headers, verb)
                return await asyncio.wait_for(answering, self.settings.timeout)
        except asyncio.TimeoutError:
            self.metrics.refuse(TooSlow.reason)
            raise TooSlow(
                f"no answer within {self.settings.timeout:g} seconds", "try again later"
            ) from None
        except asyncio.CancelledError:
            self.metrics.refuse("gone")
            raise
        except Exception as error:
            reason = error.reason if isinstance(error, Refused) else answer_of(error).reason
            self.metrics.refuse(reason)
            raise

    async def preprocess(
        self, payload: InferRequest, headers: Mapping[str, str] | None = None
    ) -> Work:
        return await self._in_pool(self._read, payload)

    def _read(self, request: InferRequest) -> Work:
        known = [spec.name for spec in self.outputs]
        wanted = [one.name for one in request.request_outputs or ()] or known
        for name in wanted:
            if name not in (*known, SUMMARY, DRAWING):
                names = ", ".join([*known, SUMMARY, DRAWING])
                raise InputError(f"the model has no output {name!r:.80}", f"ask for {names}")
        pixels = int(self.settings.max_pixels * MILLION)
        reads = read_images(read_arrays(request), self.bundle, self.inputs, pixels)
        if len(reads) > count_images(request):
            raise InputError("the request holds more images than its shape tells", "tell them all")
        return Work(request, reads, wanted)

    async def predict(self, work: Work, headers: Mapping[str, str] | None = None) -> Answered:
        futures = self.batcher.submit([read.image for read in work.reads])
        done = await asyncio.gather(*map(asyncio.wrap_future, futures))
        return Answered(work, done)

    async def postprocess(
        self, result: Answered, headers: Mapping[str, str] | None = None
    ) -> InferResponse:
        work, done = result.work, result.done
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
        self.metrics.count(seen, done)
        times = {
            "queue_us": int(max(one.queue_seconds for one in done) * MILLION),
            "engine_us": int(max(one.engine_seconds for one in done) * MILLION),
            "batch_images": max(one.batch for one in done),
        }
        return respond(work.request, {name: arrays[name] for name in work.wanted}, times)

    def _summarise(self, seen: Seen) -> bytes:
        task = self.bundle.task
        told = task.describe(task.shown(seen.outputs, SHOW), self.bundle.class_names)
        return json.dumps(told | kept_tokens(seen)).encode()

    def _draw(self, seen: Seen) -> bytes:
        file = io.BytesIO()
        draw_result(seen, self.bundle, SHOW, self.bundle.class_names).save(file, "PNG")
        return file.getvalue()

    async def _in_pool(self, function: Any, *given: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(
            self.pool, partial(function, *given)
        )


def _free_batch(spec: TensorSpec) -> TensorSpec:
    """With any batch, of an engine that fills up what it is given."""
    return replace(spec, shape=("batch", *spec.shape[1:]))


def _metadata(spec: TensorSpec) -> dict[str, Any]:
    shape = [side if isinstance(side, int) else -1 for side in spec.shape]
    return {"name": spec.name, "datatype": from_np_dtype(spec.dtype), "shape": shape}
