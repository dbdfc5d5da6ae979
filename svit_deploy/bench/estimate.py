"""What a benchmark will time and how long that takes: at least, and from a few runs."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence

from svit_deploy.bench.durations import QUICK_NOTE
from svit_deploy.bench.report import TargetInfo
from svit_deploy.bench.schedule import Phase, Schedule, in_words
from svit_deploy.bench.settings import KEEP, BenchSettings, BenchTarget
from svit_deploy.bench.timing import Lane, compose_batches, run_seconds

log = logging.getLogger(__name__)

LONG_S = 60


def outline(targets: Sequence[BenchTarget], settings: BenchSettings) -> Iterator[tuple[str, str]]:
    """Label and text of what will be measured, and how long that takes at least."""
    timing, timed = settings.timing, len(targets)
    for target in targets:
        images = f"{len(target.inputs)} images"
        if target.provenance is not None:
            images += f", {target.provenance.images}"
        variants = settings.variants(target)
        also = f"; also {', '.join(variants)}" if variants else ""
        yield "target", f"{target.label}, on {target.runs_on}; {images}{also}"
        timed += 1 + len(variants) if variants else 0
    yield "batch", ", ".join(map(str, settings.batches))
    least_s = timed * len(settings.batches) * (timing.warmup_s + timing.duration_s)
    limit = "" if settings.max_time_s is None else f", limited to {in_words(settings.max_time_s)}"
    yield "time", f"{in_words(least_s)} or more, {timing.min_samples} runs of each or more{limit}"
    if settings.profile_layers:
        yield "layers", "then profiled in runs of their own, which no limit of time counts"
    if settings.quick:
        yield "note", QUICK_NOTE


def make_schedule(
    targets: Sequence[BenchTarget],
    opened: Sequence[tuple[Lane, TargetInfo]],
    settings: BenchSettings,
    clock: Callable[[], int],
    start: int,
) -> Schedule:
    """The phases that are ahead, from a few runs of each engine; says how long they take."""
    lanes = [lane for lane, _ in opened]
    phases = []
    for batch in settings.batches:
        index = compose_batches(len(targets[0].inputs), batch, settings.seed)
        runs = [run_seconds(lane, index, clock) for lane in lanes]
        masks = sum(run for run, lane in zip(runs, lanes, strict=True) if lane.keep_output)
        phases.append(Phase(tuple(runs), len(index), masks))
        for target, (_, info) in zip(targets, opened, strict=True):
            if names := settings.variants(target):
                # One that keeps more than its images do takes longer: as long as the slowest.
                forced = (max(runs),) * len(names)
                kept = sum(name.startswith(KEEP) for name in names)
                load_s = len(names) * info.cold_start.load_ms / 1e3
                timed = (runs[0], *forced)
                phases.append(Phase(timed, len(index), kept * max(runs), load_s))
    limit_s = math.inf if settings.max_time_s is None else settings.max_time_s
    schedule = Schedule(phases, settings.timing, clock, start + 1e9 * limit_s)
    how = (
        "; --max-time limits it, --quick gives a first idea" if schedule.planned_s > LONG_S else ""
    )
    if settings.max_time_s is not None:
        how = f", limited to {in_words(settings.max_time_s)} in all"
    log.info("measuring takes about %s%s", in_words(schedule.planned_s), how)
    return schedule
