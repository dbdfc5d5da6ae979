"""The models of a server, and KServe's data plane over them."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kserve import InferRequest, ModelRepository
from kserve.protocol.dataplane import DataPlane
from kserve.protocol.model_repository_extension import ModelRepositoryExtension

from svit_deploy import __version__
from svit_deploy.serve.refusals import Unknown, Unsupported
from svit_deploy.serve.served import Open, ServedBundle
from svit_deploy.serve.settings import ServeSettings
from svit_deploy.serve.tensors import read_binary


class Bundles(ModelRepository):
    """Bundles by the names of their models, each loaded anew when a client asks for it.

    Args:
        open_: opens what answers with one.
    """

    def __init__(self, paths: Mapping[str, Path], settings: ServeSettings, open_: Open) -> None:
        super().__init__()
        self.paths, self.settings, self._open_answers = dict(paths), settings, open_
        self._loading = asyncio.Lock()
        self._draining: set[asyncio.Task[None]] = set()

    def open_all(self) -> None:
        """Loads all; raises a SvitDeployError."""
        for name in self.paths:
            self.update(self._open(name))

    async def load(self, name: str) -> bool:
        """Loads what is on the disk now beside the model that serves, and puts it in its place.

        What the earlier one has taken in it answers. A bundle that cannot be loaded changes
        nothing.

        Raises:
            SvitDeployError: the bundle cannot be served, or was never there.
        """
        if name not in self.paths:
            raise Unknown(f"there is no model {name!r:.80}", f"use {', '.join(self.paths)}")
        async with self._loading:
            loop = asyncio.get_running_loop()
            fresh = await loop.run_in_executor(None, self._open, name)
            earlier = self.get_model(name)
            self.update(fresh)
            if earlier is not None:
                task = loop.create_task(earlier.drain())
                self._draining.add(task)
                task.add_done_callback(self._draining.discard)
        return True

    def unload(self, name: str) -> None:
        raise Unsupported("models are unloaded by stopping the server", "load one again instead")

    async def close(self) -> None:
        """Lets all end what they have, and frees the engines."""
        await asyncio.gather(*self._draining)
        models = list(self.models.values())
        for model in models:
            model.stop()
        for model in models:
            await asyncio.get_running_loop().run_in_executor(None, model.answers.join)

    def _open(self, name: str) -> ServedBundle:
        model = ServedBundle(name, self.paths[name], self.settings, self._open_answers)
        model.load()
        return model


class Extension(ModelRepositoryExtension):
    """Loading, whose failures are told as those of everything else."""

    def __init__(self, bundles: Bundles) -> None:
        super().__init__(bundles)
        self._bundles = bundles

    async def load(self, model_name: str) -> None:
        await self._bundles.load(model_name)

    async def unload(self, model_name: str) -> None:
        self._bundles.unload(model_name)


class Plane(DataPlane):
    """What both protocols ask.

    Attributes:
        stopping: whether the server is no longer ready.
    """

    def __init__(self, bundles: Bundles) -> None:
        super().__init__(bundles)
        self.stopping = False

    def metadata(self) -> dict[str, Any]:
        extensions = ["model_repository_extension", "binary_tensor_data"]
        return {"name": "svit-deploy", "version": __version__, "extensions": extensions}

    async def ready(self) -> bool:
        return not self.stopping

    def decode(
        self,
        body: Any,
        headers: Any,
        protocol_version: str = "v2",
        model_name: str | None = None,
    ) -> tuple[Any, dict[str, Any]]:
        if isinstance(body, bytes):
            return read_binary(body, headers, str(model_name)), {}
        return InferRequest.from_inference_request(body, model_name), {}
