"""The benchmark: loads the targets, times them against each other, assembles the report.

Every block runs each engine forwards then backwards (A B B A) on one batch of images, in an order
drawn anew for each block, so that a drifting machine touches all of them alike and the ratio of
two engines is paired by block.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields, replace
from typing import Any

import numpy as np

from svit_deploy.bench.content import keep_masks, kept_tokens, terciles
from svit_deploy.bench.durations import QUICK_NOTE
from svit_deploy.bench.estimate import make_schedule
from svit_deploy.bench.flight import InFlight, fly
from svit_deploy.bench.gpu import advice, gpu_times, with_speedup
from svit_deploy.bench.lanes import clock_sampler, cold_start
from svit_deploy.bench.layers import with_layers
from svit_deploy.bench.report import BenchReport, TargetResult
from svit_deploy.bench.settings import BenchSettings, BenchTarget
from svit_deploy.bench.stats import percentile_floor, ratio_interval, repeat_cv, summarise
from svit_deploy.bench.timed_variants import with_variants
from svit_deploy.bench.timing import Lane, Timed, Timer, compose_batches
from svit_deploy.errors import InputError, UsageError
from svit_deploy.machine.environment import describe_environment, peak_rss_mib
from svit_deploy.progress import SILENT, Progress

UNSTABLE = 0.05
IN_OTHER_WORDS = ("images", "max_images", "noise", "allow_noise", "sweep_tokens")
"""Settings that a report does not repeat: each target tells what it was run on."""


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
    environment, start = describe_environment(), clock()
    results: list[TargetResult] = []
    with contextlib.ExitStack() as engines:
        opened = [cold_start(target, settings, clock, engines) for target in targets]
        lanes = [lane for lane, _ in opened]
        sampler, notes = clock_sampler(lanes, engines)
        schedule = make_schedule(targets, opened, settings, clock, start)
        timer = Timer(settings.timing, schedule, settings.seed, clock, progress)
        if sampler is not None:
            timer.watch = sampler.watch
        for batch in settings.batches:
            index = compose_batches(len(targets[0].inputs), batch, settings.seed)
            timed = timer.time(lanes, index, f"batch {batch}")
            flights = fly(lanes, index, timed, settings)
            for number, (target, lane) in enumerate(zip(targets, lanes, strict=True)):
                result = _result(target, lane, index, timed, number, flights[number])
                if number:
                    pair = (timed.samples_ms[0], timed.samples_ms[number])
                    gpu = with_speedup(result.gpu, lane.times, lanes[0].times, settings.seed)
                    over = ratio_interval(*pair, seed=settings.seed)
                    result = replace(result, speedup=over, gpu=gpu)
                results.append(with_variants(result, target, lanes[0], index, timer, settings))
        if settings.profile_layers:  # last, for it must not disturb what is timed
            progress.update("profiling the layers", 1.0)
            results = with_layers(results, lanes, settings)
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
        notes=(*(QUICK_NOTE,) * settings.quick, *notes),
        elapsed_s=(clock() - start) / 1e9,
        planned_s=schedule.planned_s,
    )


def _recorded(settings: BenchSettings) -> dict[str, Any]:
    """How it was measured, for the report."""
    names = (entry.name for entry in fields(settings) if entry.name not in IN_OTHER_WORDS)
    told = {name: getattr(settings, name) for name in names} | asdict(settings.timing)
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


def _engine_notes(target: BenchTarget, lane: Lane) -> tuple[str, ...]:
    return () if target.notes is None else tuple(target.notes(lane.engine))


def _result(
    target: BenchTarget,
    lane: Lane,
    index: np.ndarray,
    timed: Timed,
    number: int,
    in_flight: InFlight | None,
) -> TargetResult:
    """The numbers at one batch size of the target that was timed in a lane."""
    samples_ms, blocks = timed.samples_ms[number], timed.rounds
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
    masks = keep_masks(lane, index[:blocks])
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
        in_flight=in_flight,
        unstable=tuple(unstable),
        notes=tuple(notes),
        rounds=blocks,
        rounds_left=timed.left,
        samples_ms=samples_ms,
        kept_of_block=kept_of_block,
    )


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
