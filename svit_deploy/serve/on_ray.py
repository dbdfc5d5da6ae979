"""Replicas of a bundle behind Ray Serve, which starts as many as the requests need.

The server in front is the same as without Ray: protocols, limits, token and metrics. A replica has
the queue of `batcher` before its engine, not Ray Serve's own batching, which knows neither that
images of several sizes cannot share a run nor which of them nobody waits for any more.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

from ray import serve
from ray.exceptions import RayActorError, RayTaskError

from svit_deploy.bundle import Bundle
from svit_deploy.engines.base import TensorSpec
from svit_deploy.errors import CapabilityError
from svit_deploy.inference.places import resources
from svit_deploy.machine.cluster import check_room
from svit_deploy.serve.settings import ServeSettings
from svit_deploy.serve.start import choose_batch, import_kserve

if TYPE_CHECKING:
    from kserve import InferRequest

    from svit_deploy.serve.replica import Answered

TRIES = 3
"""How often a request is given to replicas that die."""
HEALTH = 2.0
"""Seconds after which a replica that died is missed at the latest."""
BUSY = 2
"""Largest batches, one that runs and one that waits, above which another replica is started."""


def start() -> None:
    """Starts Ray Serve without its own protocols where it does not run yet.

    It is not ended: a cluster's may serve others, too, and one of this machine alone ends anyway.
    """
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    serve.start(proxy_location="Disabled", logging_config={"log_level": "ERROR"})


class Deployed:
    """A replica in a process of Ray Serve's."""

    def __init__(self, name: str, bundle: Bundle, settings: ServeSettings, folder: Path) -> None:
        from concurrent.futures import ThreadPoolExecutor

        os.chdir(folder)
        import_kserve()
        from svit_deploy.serve.replica import Replica

        pool = ThreadPoolExecutor(settings.workers, "pictures")
        self.replica = Replica(name, bundle, settings, pool)

    def tell(self) -> tuple[Sequence[TensorSpec], Sequence[TensorSpec]]:
        """Inputs and outputs of the engine."""
        return self.replica.inputs, self.replica.outputs

    async def answer(self, request: InferRequest) -> Answered | Exception:
        """Ray wraps what is raised, so it is given."""
        try:
            return await self.replica.answer(request)
        except Exception as error:
            return error


class Replicas:
    """Answers with replicas in a cluster that this process is connected with."""

    def __init__(self, name: str, bundle: Bundle, settings: ServeSettings) -> None:
        batch, needed = choose_batch(bundle, settings), resources(bundle, settings)
        assert settings.ray is not None
        check_room(settings.ray, needed)
        self.application = f"{name}-{uuid4().hex}"  # beside those of others, and an earlier one
        kind = serve.deployment(
            name=name,
            ray_actor_options=needed,
            max_ongoing_requests=settings.max_queue,
            graceful_shutdown_timeout_s=settings.grace,
            health_check_period_s=HEALTH,
            autoscaling_config={
                "min_replicas": 1,
                "max_replicas": settings.replicas or 2,
                "target_ongoing_requests": BUSY * batch,
            },
        )(Deployed)
        try:
            self.handle = serve.run(
                kind.bind(name, bundle, settings, Path.cwd()),
                name=self.application,
                route_prefix=None,
            )
            self.inputs, self.outputs = self.handle.tell.remote().result()
        except (RuntimeError, RayTaskError) as error:
            serve.delete(self.application)
            raise CapabilityError(
                f"Ray Serve cannot start {name} ({' '.join(str(error).split())[:300]})",
                "see Ray's logs, or leave --ray out",
            ) from error

    async def answer(self, request: InferRequest) -> Answered:
        for left in reversed(range(TRIES)):
            response = self.handle.answer.remote(request)
            try:
                answered = await response
            except asyncio.CancelledError:
                response.cancel()
                raise
            except RayActorError as error:
                if not left:
                    raise CapabilityError("the replicas die", "see Ray's logs") from error
                continue
            if isinstance(answered, Exception):
                raise answered
            return answered
        raise AssertionError

    def close(self) -> None:
        serve.delete(self.application, _blocking=False)

    def join(self) -> None:
        """Ray Serve ends them, within the time that it was told."""
