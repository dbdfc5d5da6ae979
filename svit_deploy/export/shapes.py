"""The batch sizes and input shapes that a graph or an engine must serve."""

from __future__ import annotations

from svit_deploy.export.settings import ExportSettings
from svit_deploy.model.config import BatchRange
from svit_deploy.model.profiles import Profile, parse_batches, whole_range
from svit_deploy.model.sizes import SizeRange
from svit_deploy.tasks import Task

GRAPH_BATCH = "1:1:32"


def batch_ranges(settings: ExportSettings, task: Task) -> tuple[BatchRange, ...]:
    """Those asked for, by default what a graph, or an engine for the task, usually serves."""
    usual = GRAPH_BATCH if settings.engine is None else task.engine_batch
    return settings.batch or parse_batches(usual)


def whole_batch(settings: ExportSettings, task: Task) -> BatchRange:
    """From the smallest to the largest batch."""
    profiles = settings.profiles
    return profile_batches(profiles) if profiles else whole_range(batch_ranges(settings, task))


def profile_batches(profiles: tuple[Profile, ...]) -> BatchRange:
    """The batch sizes from the smallest to the largest that any profile serves."""
    return whole_range([BatchRange(p.min[0], p.opt[0], p.max[0]) for p in profiles])


def profiles_for(settings: ExportSettings, task: Task, sizes: SizeRange) -> tuple[Profile, ...]:
    """The shapes that an engine must serve, a profile each.

    Raises:
        UsageError: an image size that the graph does not run.
    """
    profiles = settings.profiles or tuple(map(sizes.profile, batch_ranges(settings, task)))
    sizes.check_profiles(profiles)
    return profiles
