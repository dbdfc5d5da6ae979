"""Targets loaded and ready to be timed: their first run, and the clocks of their GPU."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence

from svit_deploy.bench.clocks import ClockSampler
from svit_deploy.bench.report import ColdStart, TargetInfo
from svit_deploy.bench.settings import WORST_CASE, BenchSettings, BenchTarget
from svit_deploy.bench.timing import Lane, compose_batches
from svit_deploy.engines.base import Engine
from svit_deploy.engines.device.cuda import Cuda
from svit_deploy.errors import SvitDeployError


def cold_start(
    target: BenchTarget,
    settings: BenchSettings,
    clock: Callable[[], int],
    engines: contextlib.ExitStack,
) -> tuple[Lane, TargetInfo]:
    """Loads a target and runs it once, both timed."""
    start = clock()
    engine = engines.enter_context(target.engine_factory())
    load_ns = clock() - start
    lane = make_lane(target, target.label, engine)
    feeds = lane.feeds(compose_batches(len(lane.images), settings.batches[0], settings.seed)[0])
    start = clock()
    engine.run(feeds, lane.outputs)
    cold = ColdStart(load_ns / 1e6, (clock() - start) / 1e6)
    info = TargetInfo(
        target.label,
        target.content_dependent,
        len(lane.images),
        engine.description,
        cold,
        target.provenance,
    )
    return lane, info


def make_lane(target: BenchTarget, label: str, engine: Engine) -> Lane:
    """A target's engine, or that of a variant, and what is asked of it."""
    names = [spec.name for spec in engine.outputs()]
    keep = target.keep_output if target.keep_output in names and label != WORST_CASE else None
    rest = tuple(name for name in names if name != target.keep_output)
    outputs = rest if target.task_outputs is None else target.task_outputs
    return Lane(label, engine, target.input_name, target.inputs, outputs, keep)


def clock_sampler(
    lanes: Sequence[Lane], closing: contextlib.ExitStack
) -> tuple[ClockSampler | None, tuple[str, ...]]:
    """What samples the clocks where a GPU is measured, or a note why nothing does."""
    gpus = [lane.engine.nvidia_gpu for lane in lanes if lane.engine.nvidia_gpu is not None]
    if not gpus:
        return None, ()
    try:
        sampler = ClockSampler(Cuda(gpus[0]).pci_bus_id)
    except SvitDeployError as error:
        return None, (f"clocks were not watched: {error.message}",)
    closing.callback(sampler.close)
    return sampler, ()
