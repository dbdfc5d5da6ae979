"""A bundle as a model of KServe's server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from kserve import InferRequest, InferResponse, Model
from kserve.model import InferenceVerb
from kserve.utils.numpy_codec import from_np_dtype

from svit_deploy.bundle import Bundle, open_bundle
from svit_deploy.engines.base import TensorSpec
from svit_deploy.serve.batcher import Room
from svit_deploy.serve.metrics import ModelMetrics
from svit_deploy.serve.refusals import Refused, TooSlow, Unsupported, answer_of
from svit_deploy.serve.replica import EXTRA, Answered, Answers
from svit_deploy.serve.settings import ServeSettings
from svit_deploy.serve.tensors import BYTES, PICTURES, count_images

Open = Callable[[str, Bundle], Answers]
"""Opens what answers, by the name of a model and its bundle; raises a SvitDeployError."""


class ServedBundle(Model):
    """A bundle, what answers with it, and the limits of what may be asked.

    Raises:
        SvitDeployError: the bundle cannot be served (when it is loaded).
    """

    def __init__(self, name: str, path: Path, settings: ServeSettings, open_: Open) -> None:
        super().__init__(name)
        self.path, self.settings, self.open = path, settings, open_
        self.room = Room(settings.max_queue)

    def load(self) -> bool:
        bundle = open_bundle(self.path)
        self.answers, self.takes_pictures = self.open(self.name, bundle), not bundle.config.frames
        self.metrics = ModelMetrics(
            self.name, bundle, self.settings.drift_warning, lambda: self.room.held
        )
        self.ready = True
        return True

    async def drain(self) -> None:
        """Waits until all is answered that came in, and frees the engine."""
        while self.room.held:
            await asyncio.sleep(0.02)
        self.stop()

    def stop(self) -> None:
        self.ready = False
        self.room.close()
        self.answers.close()

    # The protocol.

    def get_input_types(self) -> list[dict[str, Any]]:
        pictures = {"name": PICTURES, "datatype": BYTES, "shape": [-1]}
        taken = [pictures] if self.takes_pictures else []
        return [*taken, *map(_metadata, self.answers.inputs)]

    def get_output_types(self) -> list[dict[str, Any]]:
        extra = [{"name": n, "datatype": BYTES, "shape": [-1]} for n in EXTRA]
        return [*map(_metadata, self.answers.outputs), *extra]

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
            with self.room.of(count_images(body)):
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
    ) -> InferRequest:
        return payload

    async def predict(
        self, payload: InferRequest, headers: Mapping[str, str] | None = None
    ) -> Answered:
        return await self.answers.answer(payload)

    async def postprocess(
        self, result: Answered, headers: Mapping[str, str] | None = None
    ) -> InferResponse:
        self.metrics.count(result.counted)
        return result.response


def _metadata(spec: TensorSpec) -> dict[str, Any]:
    shape = [side if isinstance(side, int) else -1 for side in spec.shape]
    return {"name": spec.name, "datatype": from_np_dtype(spec.dtype), "shape": shape}
