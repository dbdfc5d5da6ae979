"""Where the work on many images is done: in this process, or in a cluster of Ray."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any, TypeVar

from svit_deploy.bundle import Bundle
from svit_deploy.engines.settings import EngineChoice
from svit_deploy.inference.engine import uses_gpu
from svit_deploy.inference.job import Job, Opened, X, Y
from svit_deploy.inference.settings import InferenceSettings, PlaceSettings
from svit_deploy.inference.stream import Image, Ran, Run, Seen
from svit_deploy.machine.cluster import check_room, cluster, require_ray
from svit_deploy.options import part_of
from svit_deploy.plan import Plan

T = TypeVar("T")
Settings = TypeVar("Settings", bound=EngineChoice)


def needs_place(plan: Plan, ray: str | None, who: str, *parts: str) -> None:
    """Asks for what a command needs to run on Ray, and parts of Ray, where that is asked for."""
    if ray is not None:
        plan.needs(require_ray, who, *parts)
        plan.tell("on Ray", ray)


def settings_there(settings: Settings, ray: str | None) -> Settings:
    """How engines run; on Ray, where there are several, one thread each unless told otherwise."""
    return settings if ray is None or settings.threads else replace(settings, threads=1)


@contextmanager
def opened(
    job: Job[X, Y], bundle: Bundle, run: EngineChoice, place: PlaceSettings
) -> Iterator[Opened[X, Y]]:
    """Opens a job of a bundle where it is to be done.

    Raises:
        SvitDeployError: it cannot be opened there.
    """
    if place.ray is None:
        with job.open() as here:
            yield here
        return
    with cluster(place.ray):
        from svit_deploy.inference.actors import open_on_ray

        needed = resources(bundle, run)
        check_room(place.ray, needed)
        with open_on_ray(job, place.actors, needed) as there:
            yield there


def open_run(
    bundle: Bundle, settings: InferenceSettings, look: Callable[[Seen], T]
) -> AbstractContextManager[Opened[Image, Ran[T]]]:
    """Opens what runs images and looks at them, where that is to be done; see `stream.Run`."""
    run = settings_there(part_of(settings, InferenceSettings), settings.ray)
    return opened(Run(bundle, run, look), bundle, run, settings)


def resources(bundle: Bundle, settings: EngineChoice) -> dict[str, Any]:
    """What Ray keeps free for one engine: its threads, and a GPU where it runs on one."""
    needed = {"num_cpus": max(settings.threads, 1)}
    return needed | {"num_gpus": 1} if uses_gpu(bundle, settings) else needed
