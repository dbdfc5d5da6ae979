"""Where the time of a run goes: by block and by what operators do, of all targets side by side."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain

from svit_deploy.bench.report import Layers, LayerTime, TargetResult
from svit_deploy.bench.settings import BenchSettings
from svit_deploy.bench.timing import Lane, compose_batches
from svit_deploy.engines.base import NodeTime
from svit_deploy.forms import Part
from svit_deploy.graph.parts import BETWEEN, KINDS, OTHER, block_of, kind_of

MOST_S = 4.0
"""Seconds that the slowest target's runs take at a batch size, about."""
FEWEST, MOST = 4, 20
"""Runs in each pass."""
PASSES = 4
"""Forwards through the targets and backwards, in turn: a machine that drifts touches all alike."""
UNTOLD = "its engine does not tell how its time divides among operators"


def with_layers(
    results: Sequence[TargetResult], lanes: Sequence[Lane], settings: BenchSettings
) -> list[TargetResult]:
    """Adds the profiles, each of runs apart from the timed ones, all on the same images.

    Args:
        results: of each batch size and lane, in this order.
    """
    found = list(results)
    for first in range(0, len(found), len(lanes)):
        of_batch = found[first : first + len(lanes)]
        slowest_s = max(one.latency.p50_ms for one in of_batch) / 1e3
        runs = min(max(math.ceil(MOST_S / PASSES / slowest_s), FEWEST), MOST)
        index = compose_batches(len(lanes[0].images), of_batch[0].batch, settings.seed)
        told: list[list[NodeTime]] = [[] for _ in lanes]
        for turn in range(PASSES):
            for number, lane in list(enumerate(lanes))[:: -1 if turn % 2 else 1]:
                feeds = [lane.feeds(index[run % len(index)]) for run in range(runs)]
                told[number] += lane.engine.profile(feeds, lane.outputs) or ()
        for number, result in enumerate(of_batch):
            times = [replace(one, seconds=one.seconds / PASSES) for one in told[number]]
            found[first + number] = (
                replace(result, layers=summarise(times, PASSES * runs))
                if times
                else replace(result, notes=(*result.notes, UNTOLD))
            )
    return found


def summarise(times: Sequence[NodeTime], runs: int) -> Layers:
    """Adds up operators by block and kind; what names and types do not tell is `other`."""
    cells: dict[tuple[str, str], list[float]] = {}
    for one in sorted(times, key=lambda one: one.operator == BETWEEN):
        kind = kind_of(one.nodes, one.operator)
        block = BETWEEN if kind == BETWEEN else block_of(one.nodes) or OTHER
        cells.setdefault((block, kind), []).append(one.seconds * 1e3)
    return Layers(
        runs=runs,
        total_ms=math.fsum(one.seconds * 1e3 for one in times),
        times=tuple(LayerTime(*cell, math.fsum(ms)) for cell, ms in cells.items()),
    )


def layer_parts(results: Sequence[TargetResult]) -> Iterator[Part]:
    """What is printed of one batch size: a table by kind and one by block.

    The first column is the first target's, with shares; the others have the difference to it.
    """
    told = [(one, one.layers) for one in results if one.layers is not None]
    if not told:
        return
    labels = [one.label for one, _ in told]
    profiles = [layers for _, layers in told]
    lines = [
        f"{one.label}: {layers.total_ms:.2f} ms a run under the profiler, p50 "
        f"{one.latency.p50_ms:.2f} ms without; {layers.runs} runs"
        for one, layers in told
    ]
    kinds = [layers.by_kind() for layers in profiles]
    names = [kind for kind in KINDS if any(kind in one for one in kinds)]
    yield _part("where the time goes: kind of operator, ms", names, labels, kinds)
    blocks = [layers.by_block() for layers in profiles]
    yield _part("where the time goes: block, ms", block_names(profiles), labels, blocks, lines)


def block_names(profiles: Sequence[Layers]) -> list[str]:
    """The blocks of all targets as they run, what belongs to none at the end."""
    last = (OTHER, BETWEEN)
    seen = dict.fromkeys(chain.from_iterable(layers.by_block() for layers in profiles))
    return [*(name for name in seen if name not in last), *(name for name in last if name in seen)]


def _part(
    caption: str,
    names: Sequence[str],
    labels: Sequence[str],
    columns: Sequence[dict[str, float]],
    lines: Sequence[str] = (),
) -> Part:
    totals = [math.fsum(column.values()) for column in columns]
    rows = [
        (name, *_cells([column.get(name, 0.0) for column in columns], totals[0])) for name in names
    ]
    return Part(caption, ("", *labels), [*rows, ("total", *_cells(totals, totals[0]))], lines)


def _cells(values: Sequence[float], total: float) -> Iterator[str]:
    first, *others = values
    yield f"{first:.2f} ({first / total:.0%})"
    for value in others:
        yield f"{value:.2f} ({value - first:+.2f})"
