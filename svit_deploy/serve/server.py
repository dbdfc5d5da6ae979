"""A server's life: its bundles are opened, both protocols answer, and what is in flight ends."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from svit_deploy.inference.places import settings_there
from svit_deploy.machine.cluster import cluster
from svit_deploy.serve import rest, rpc
from svit_deploy.serve.guard import Gate
from svit_deploy.serve.replica import Replica
from svit_deploy.serve.repository import Bundles, Extension, Plane
from svit_deploy.serve.served import Open
from svit_deploy.serve.settings import ServeSettings
from svit_deploy.serve.start import address

log = logging.getLogger(__name__)


def serve_bundles(paths: Mapping[str, Path], settings: ServeSettings) -> None:
    """Serves bundles by the names of their models, until SIGTERM or SIGINT.

    Raises:
        SvitDeployError: a bundle cannot be served, a port is taken, or a file of the settings
            cannot be used.
    """
    gate = Gate.of(settings.token_file)
    with (
        rest.bind(settings.host, settings.port) as socket,
        _place(settings) as open_,
    ):
        bundles = Bundles(paths, settings, open_)
        bundles.open_all()
        asyncio.run(_serve(bundles, gate, socket, settings))


@contextmanager
def _place(settings: ServeSettings) -> Iterator[Open]:
    """Gives what opens an engine and its queue: in this process, or replicas on Ray."""
    if settings.ray is None:
        with ThreadPoolExecutor(settings.workers, "pictures") as pool:
            yield lambda name, bundle: Replica(name, bundle, settings, pool)
        return
    with cluster(settings.ray):
        from svit_deploy.serve import on_ray

        on_ray.start()
        there = settings_there(settings, settings.ray)
        yield lambda name, bundle: on_ray.Replicas(name, bundle, there)


async def _serve(bundles: Bundles, gate: Gate, socket: Any, settings: ServeSettings) -> None:
    plane, extension, stop = Plane(bundles), Extension(bundles), asyncio.Event()
    http = rest.make_server(rest.make_app(plane, extension, gate, settings), settings)
    grpc = rpc.make_server(plane, extension, gate, settings) if settings.grpc_port else None
    loop = asyncio.get_running_loop()
    before = {
        number: signal.signal(number, lambda *_: loop.call_soon_threadsafe(stop.set))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        if grpc is not None:
            await grpc.start()
        running = loop.create_task(http.serve(sockets=[socket]))
        log.info("serving %s at %s", ", ".join(bundles.paths), address(settings))
        stopping = loop.create_task(stop.wait())
        await asyncio.wait((running, stopping), return_when=asyncio.FIRST_COMPLETED)
        log.info("stopping: what is in flight ends, within %g seconds", settings.grace)
        plane.stopping = http.should_exit = True
        if grpc is not None:
            await grpc.stop(settings.grace)
        await running
        await bundles.close()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
