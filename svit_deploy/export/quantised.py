"""Which linear layers multiply numbers of eight bits, and the step of each one's inputs.

The ranges are seen of the float32 graph itself, image by image: in `dynamic` mode no two images
have as many rows. Histograms, and the range to choose out of them, are ONNX Runtime's.
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from svit_deploy.engines.onnxruntime import OnnxRuntimeEngine
from svit_deploy.errors import InputError, UsageError
from svit_deploy.graph.edit import add_outputs
from svit_deploy.graph.quantised import block_layers, deciding_layers
from svit_deploy.images import Images
from svit_deploy.images.prepared import Prepared, groups
from svit_deploy.methods.families import family_of
from svit_deploy.model.model import Model
from svit_deploy.model.precision import INT8, Format
from svit_deploy.model.sizes import SizeRange
from svit_deploy.progress import Progress
from svit_deploy.tasks import Runs, Task
from svit_deploy.tasks.distance import margin_error
from svit_deploy.tasks.samples import prepare_all

log = logging.getLogger(__name__)

BINS = 2048
"""Of a histogram; it grows where later images reach further."""
PERCENTILE = 99.999
"""The share of inputs that `percentile` does not cut off."""
JUDGES = 16
"""Images on which layers are compared."""
FEW = 8
"""With fewer images, ranges are a guess."""


@dataclass(frozen=True)
class Quantised:
    """The quantised linear layers.

    Attributes:
        steps: of each one's inputs, by layer.
        kept: the layers of blocks that stay float32 though they could be quantised: those that
            decide, those that no image reached, and those that lose most.
    """

    steps: Mapping[str, float]
    kept: tuple[str, ...]


def choose_quantised(
    model: Model,
    graph: onnx.ModelProto,
    task: Task,
    form: Format,
    images: Images,
    sizes: SizeRange,
    method: str,
    keep: int,
    progress: Progress,
) -> Quantised:
    """Chooses layers and steps.

    Args:
        graph: the model in float32, in its token mode.
        form: what the layers multiply.
        images: to see inputs of; a task may take some of them only.
        method: one of the form's.
        keep: how many more layers stay float32, those that lose most.

    Raises:
        UsageError: there are not so many layers.
        InputError: an image makes NaN or infinity of the inputs.
    """
    layers = block_layers(graph)
    deciding = family_of(model.config).method.values(model.config).items()
    decide = deciding_layers(graph, [name for name, (kind, _) in deciding if kind is np.float32])
    inputs = sorted({value for name in layers if name not in decide for value in layers[name]})
    images = images.first(task.calibration_images or len(images))
    log.info("steps of %s are chosen on %d images", form.name, len(images))
    if len(images) < FEW:
        log.warning("so few may not show how large inputs become; give a few dozen")

    def told() -> Iterator[Prepared]:
        for number, image in enumerate(prepare_all(images, task, model.config, sizes)):
            progress.update("measuring the inputs of layers", 0.6 + 0.1 * number / len(images))
            yield task.excerpt(image)

    ranges = input_ranges(graph, inputs, task, told(), method)
    steps: dict[str, float] = {}
    for name, values in layers.items():
        largest = max((ranges.get(value, 0.0) for value in values), default=0.0)
        if name not in decide and largest > 0:
            steps[name] = float(np.float32(largest) / np.float32(form.largest))
    if keep >= len(steps):
        raise UsageError(
            f"--int8-keep {keep} leaves none of {len(steps)} linear layers in {form.name}",
            "keep fewer, or export with --precision fp32",
        )
    if keep:
        shown = prepare_all(images.first(JUDGES), task, model.config, sizes)
        judges = list(map(task.excerpt, shown))
        for name in worst_layers(model, task, form, judges, steps, progress)[:keep]:
            log.info("%s stays float32", name)
            del steps[name]
    return Quantised(steps, tuple(name for name in layers if name not in steps))


def input_ranges(
    graph: onnx.ModelProto,
    values: Sequence[str],
    task: Task,
    images: Iterable[Prepared],
    method: str,
) -> dict[str, float]:
    """The largest size of each value that steps must reach; none of one without any rows."""
    from onnxruntime.quantization.calibrate import HistogramCollector

    collector = HistogramCollector(
        method=method,
        symmetric=True,
        num_bins=BINS,
        num_quantized_bins=2 * INT8.largest + 1,  # of entropy alone
        percentile=PERCENTILE,
        scenario="same",
    )
    largest: dict[str, float] = {}
    content = add_outputs(graph, values).SerializeToString()
    with OnnxRuntimeEngine(content) as engine:
        for image in images:
            found = engine.run(task.feeds([image]), values)
            found = {name: value for name, value in found.items() if value.size}
            for name, value in found.items():
                size = float(np.abs(value).max())
                if not np.isfinite(size):
                    raise InputError(
                        "the model computes NaN or infinity on the calibration images",
                        "check the checkpoint",
                    )
                largest[name] = max(largest.get(name, 0.0), size)
            if method != "minmax":
                with contextlib.redirect_stdout(io.StringIO()):  # it prints
                    collector.collect(found)
    if method == "minmax":
        return largest
    with contextlib.redirect_stdout(io.StringIO()):
        chosen = collector.compute_collection_result()
    return {name: float(max(abs(low), abs(high))) for name, (low, high, *_) in chosen.items()}


def worst_layers(
    model: Model,
    task: Task,
    form: Format,
    images: Sequence[Prepared],
    steps: Mapping[str, float],
    progress: Progress,
) -> list[str]:
    """Layers by what each moves in margins and outputs as the only one quantised, most first."""
    from svit_deploy.backbones.rules import keep_above
    from svit_deploy.tasks.reference import Reference

    decide, moved = keep_above(model.config.thresholds), dict.fromkeys(steps, 0.0)
    exact = Reference(model, task)
    for group in groups(images, task.together):
        expected = exact.run(group, decide)
        for number, (name, step) in enumerate(steps.items()):
            progress.update("comparing layers", 0.7 + 0.1 * number / len(steps))
            alone = Reference(model, task, {name: step}).with_weights_in(form.name, inputs=True)
            found = alone.repeat(group, expected)
            config = model.config.at(group[0].size)
            runs = Runs(found.outputs, expected.outputs, config, task.limits[form.name])
            margins = margin_error(found.selected.margin, expected.selected.margin)
            moved[name] = max(moved[name], margins, *task.stage_errors(runs).values())
    return sorted(moved, key=lambda name: -moved[name])
