"""The benchmark: loads the targets, times them against each other, assembles the report.

Every block runs each engine forwards then backwards (A B B A) on one batch of images, in an order
drawn anew for each block, so that a drifting machine touches all of them alike and the ratio of
two engines is paired by block.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np

from svit_deploy.bench.clocks import ClockSampler
from svit_deploy.bench.content import fit_sweep, keep_masks, kept_tokens, terciles
from svit_deploy.bench.gpu import advice, gpu_times
from svit_deploy.bench.report import (
    BenchReport,
    ColdStart,
    SweepPoint,
    TargetInfo,
    TargetResult,
    WorstCase,
)
from svit_deploy.bench.settings import KEEP, WORST_CASE, BenchSettings, BenchTarget
from svit_deploy.bench.stats import percentile_floor, ratio_interval, repeat_cv, summarise
from svit_deploy.bench.timing import Lane, Timer, compose_batches
from svit_deploy.engines.base import Engine
from svit_deploy.engines.onnxruntime import PROVIDERS
from svit_deploy.engines.tensorrt.cuda import Cuda
from svit_deploy.errors import InputError, SvitDeployError, UsageError
from svit_deploy.machine.environment import describe_environment, peak_rss_mib
from svit_deploy.progress import SILENT, Progress

UNSTABLE = 0.05
IN_OTHER_WORDS = ("images", "max_images", "noise", "allow_noise", "sweep_tokens")
"""Settings that a report does not repeat: each target tells what it was run on."""
GPU_PROVIDERS = (PROVIDERS["cuda"], PROVIDERS["tensorrt"])


def run_bench(
    targets: Sequence[BenchTarget],
    settings: BenchSettings,
    progress: Progress = SILENT,
    *,
    clock: Callable[[], int] = time.perf_counter_ns,
) -> BenchReport:
    """Measures the targets against the first one, the baseline.

    The targets are all loaded at once. The variants of a target are loaded after them, and
    measured interleaved with the baseline.

    Args:
        clock: a monotonic clock in nanoseconds.

    Returns:
        The report. It also names the limits that were not met: `BenchReport.raise_for_failures`
        turns them into an error.

    Raises:
        UsageError: no targets, or two with the same label.
        InputError: fewer images than the batch size, or different numbers of images.
    """
    _check(targets, settings)
    environment = describe_environment()
    phases = len(settings.batches) * (1 + sum(bool(settings.variants(t)) for t in targets))
    timer = Timer(
        warmup_s=settings.warmup_s,
        duration_s=settings.duration_s,
        min_samples=settings.min_samples,
        seed=settings.seed,
        clock=clock,
        progress=progress,
        phases=phases,
    )
    results: list[TargetResult] = []
    with contextlib.ExitStack() as engines:
        opened = [_cold_start(target, settings, clock, engines) for target in targets]
        lanes = [lane for lane, _ in opened]
        sampler, notes = _clock_sampler(lanes, settings.device, engines)
        if sampler is not None:
            timer.watch = sampler.watch
        for batch in settings.batches:
            index = compose_batches(len(targets[0].inputs), batch, settings.seed)
            samples = timer.time(lanes, index, f"batch {batch}")
            for target, lane, taken in zip(targets, lanes, samples, strict=True):
                result = _result(target, lane, index, taken)
                if target is not targets[0]:
                    speedup = ratio_interval(samples[0], taken, seed=settings.seed)
                    result = replace(result, speedup=speedup)
                results.append(_with_variants(result, target, lanes[0], index, timer, settings))
        # Only now: an engine learns while it runs whether its work can be captured.
        infos = [
            replace(info, engine=lane.engine.description, notes=_engine_notes(target, lane))
            for target, (lane, info) in zip(targets, opened, strict=True)
        ]
        state = None if sampler is None else sampler.state()
    return BenchReport(
        settings=_recorded(settings),
        environment=environment,
        targets=tuple(infos),
        results=tuple(results),
        peak_rss_mib=peak_rss_mib(),
        failures=tuple(_failures(results, targets, settings)),
        gpu=state,
        notes=notes,
    )


def _recorded(settings: BenchSettings) -> dict[str, Any]:
    """How it was measured, for the report."""
    names = (entry.name for entry in fields(settings) if entry.name not in IN_OTHER_WORDS)
    told = {name: getattr(settings, name) for name in names}
    limits = {f"{name}_ms": limit for name, limit in settings.fail_above.items()}
    return told | {"sweep": settings.sweep, "fail_above": limits}


def _check(targets: Sequence[BenchTarget], settings: BenchSettings) -> None:
    labels = [target.label for target in targets]
    if not labels or len(set(labels)) < len(labels):
        raise UsageError(
            f"cannot compare the targets {labels}", "give one or more, each with its own label"
        )
    counts = [len(target.inputs) for target in targets]
    if len(set(counts)) > 1:
        raise InputError(
            f"the targets have different numbers of images: {counts}",
            "give all of them the same images",
        )
    if counts[0] < max(settings.batches):
        raise InputError(
            f"{counts[0]} images cannot fill a batch of {max(settings.batches)}, and one image "
            "repeated would hide what a batch costs",
            "give more images, or lower --batch",
        )


def _cold_start(
    target: BenchTarget,
    settings: BenchSettings,
    clock: Callable[[], int],
    engines: contextlib.ExitStack,
) -> tuple[Lane, TargetInfo]:
    """Loads a target and runs it once, both timed."""
    start = clock()
    engine = engines.enter_context(target.engine_factory())
    load_ns = clock() - start
    lane = _lane(target, target.label, engine)
    feeds = lane.feeds(compose_batches(len(lane.images), settings.batches[0], settings.seed)[0])
    start = clock()
    engine.run(feeds, lane.outputs)
    cold_start = ColdStart(load_ns / 1e6, (clock() - start) / 1e6)
    info = TargetInfo(
        target.label,
        target.content_dependent,
        len(lane.images),
        engine.description,
        cold_start,
        target.provenance,
    )
    return lane, info


def _clock_sampler(
    lanes: Sequence[Lane], device: int, closing: contextlib.ExitStack
) -> tuple[ClockSampler | None, tuple[str, ...]]:
    """What samples the clocks where a GPU is measured, or a note why nothing does."""
    if not any(_uses_gpu(lane.engine.description) for lane in lanes):
        return None, ()
    try:
        sampler = ClockSampler(Cuda(device).pci_bus_id)
    except SvitDeployError as error:
        return None, (f"clocks were not watched: {error.message}",)
    closing.callback(sampler.close)
    return sampler, ()


def _uses_gpu(engine: Mapping[str, Any]) -> bool:
    """Whether an engine of this description runs on an NVIDIA GPU."""
    return "gpu" in engine or engine.get("provider") in GPU_PROVIDERS


def _engine_notes(target: BenchTarget, lane: Lane) -> tuple[str, ...]:
    return () if target.notes is None else tuple(target.notes(lane.engine))


def _lane(target: BenchTarget, label: str, engine: Engine) -> Lane:
    names = (spec.name for spec in engine.outputs() if spec.name != target.keep_output)
    outputs = tuple(names) if target.task_outputs is None else target.task_outputs
    return Lane(label, engine, target.input_name, target.inputs, outputs)


def _result(
    target: BenchTarget, lane: Lane, index: np.ndarray, samples_ms: np.ndarray
) -> TargetResult:
    """One target's numbers at one batch size, from its samples `[blocks, 2]`."""
    blocks = len(samples_ms)
    latency = summarise(samples_ms)
    spread = repeat_cv(samples_ms)
    unstable, notes = [], []
    # Images differ in tokens, so only runs on the same images tell noise from content.
    if (noise := spread if target.content_dependent else latency.cv) > UNSTABLE:
        unstable.append(f"the runs spread by {noise:.0%}, more than {UNSTABLE:.0%}")
    comparable = not target.content_dependent or blocks >= 3 * len(index)
    if comparable and abs(latency.drift) > UNSTABLE:
        unstable.append(f"the latency drifted by {latency.drift:+.0%} during the run")
    images = len(np.unique(index[:blocks]))
    if target.content_dependent and images < len(lane.images):
        notes.append(f"{images} of {len(lane.images)} images were timed; raise the duration")
    kept = kept_of_block = None
    masks = keep_masks(lane, target.keep_output, index[:blocks])
    if masks is not None:
        kept = kept_tokens(masks)
        of_batch = masks.sum(axis=3).mean(axis=(1, 2))
        kept_of_block = of_batch[np.arange(blocks) % len(index)]
    elif target.content_dependent:
        notes.append("the graph has no keep mask, so its kept tokens are not known")
    gpu = gpu_times(lane.times, (index.shape[1], *lane.images.shape[1:]))
    if gpu is not None and (hint := advice(gpu, lane.engine.description)):
        notes.append(hint)
    return TargetResult(
        label=target.label,
        batch=index.shape[1],
        images_timed=images,
        latency=latency,
        repeat_cv=spread,
        throughput_images_per_s=index.shape[1] / latency.mean_ms * 1e3,
        speedup=None,
        kept=kept,
        terciles=() if kept_of_block is None else terciles(kept_of_block, samples_ms),
        worst_case=None,
        sweep=None,
        gpu=gpu,
        unstable=tuple(unstable),
        notes=tuple(notes),
        samples_ms=samples_ms,
        kept_of_block=kept_of_block,
    )


def _with_variants(
    result: TargetResult,
    target: BenchTarget,
    baseline: Lane,
    index: np.ndarray,
    timer: Timer,
    settings: BenchSettings,
) -> TargetResult:
    """Adds the worst case and the sweep, timed against the baseline in blocks of their own."""
    names = settings.variants(target)
    if not names:
        return result
    is_baseline = target.label == baseline.label
    points = []
    with contextlib.ExitStack() as engines:
        lanes = [_lane(target, n, engines.enter_context(target.variants[n]())) for n in names]
        samples = timer.time([baseline, *lanes], index, f"batch {result.batch}, {target.label}")
        for lane, taken in zip(lanes, samples[1:], strict=True):
            latency = summarise(taken)
            if lane.label == WORST_CASE:
                speedup = ratio_interval(samples[0], taken, seed=settings.seed)
                worst_case = WorstCase(latency, None if is_baseline else speedup)
                result = replace(result, worst_case=worst_case)
            else:
                requested = float(lane.label.removeprefix(KEEP))
                masks = keep_masks(lane, target.keep_output, index[: len(taken)])
                ratio = requested if masks is None else float(masks.mean())
                points.append(SweepPoint(requested, ratio, latency.p50_ms))
    if points:
        p50_ms = None if is_baseline else float(np.median(samples[0]))
        result = replace(result, sweep=fit_sweep(points, p50_ms))
    return result


def _failures(
    results: Sequence[TargetResult], targets: Sequence[BenchTarget], settings: BenchSettings
) -> list[str]:
    failures = []
    for result in results:
        where = f"{result.label}, batch {result.batch}"
        if settings.require_stable:
            failures += [f"{where} is unstable: {reason}" for reason in result.unstable]
        if result.label == targets[0].label and len(targets) > 1:
            continue
        for name, limit in settings.fail_above.items():
            value = getattr(result.latency, f"{name}_ms")
            if value is None:
                floor = percentile_floor(float(name.removeprefix("p")))
                failures.append(f"{where}: {name} needs {floor} runs, not {result.latency.count}")
            elif value > limit:
                failures.append(f"{where}: {name} is {value:.2f} ms, above {limit:g} ms")
    return failures
