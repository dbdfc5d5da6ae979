"""An image alone and in company: the same result, or which stage its company changes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from svit_deploy import names
from svit_deploy.engines.base import Engine
from svit_deploy.graph.edit import add_outputs
from svit_deploy.images.prepared import Prepared
from svit_deploy.model.result import Result
from svit_deploy.tasks.distance import margin_error, token_error
from svit_deploy.verify.decisions import margin_drift
from svit_deploy.verify.exported import ModelUnderTest

BATCH_PIXELS = 2**21  # of a large batch: 41 images of 224x224, 2 of 800x1216


def check_batches(model: ModelUnderTest, images: Sequence[Prepared]) -> None:
    """An image alone, inside a batch, the reversed batch and large ones: the same result.

    A graph in half precision must also agree with itself to float32 where it computes in that: what
    rounding may move in a half hides a small fault. A lone image has its mirror image for company.
    Large are the bundle's largest batch, as far as `BATCH_PIXELS` go, and one in between. Nothing
    to check where the graph takes one image at a time.
    """
    images = list(images[: model.settings.companions])
    given, pixels = len(images), images[0].pixels.size // 3
    if given < 2:
        images.insert(0, _mirrored(images[0]))
    largest = min(model.bundle.manifest["batch"]["max"], max(2, BATCH_PIXELS // pixels))
    counts = sorted({(given + largest) // 2, largest} - {given}) if largest > given else []
    with model.shipped() as engine:
        if engine.inputs()[0].shape[0] == 1:
            return
        _check(model, engine, images, counts)
    if model.bundle.precision != "fp32":
        exact = model.computing_in_float32()
        with exact.engine(exact.in_view()) as engine:
            _check(exact, engine, images, counts, ", in float32")


def _check(
    model: ModelUnderTest,
    engine: Engine,
    images: Sequence[Prepared],
    counts: Sequence[int],
    how: str = "",
) -> None:
    """Each image alone, then in batches: all of them, and as many as `counts` say."""
    alone = Result.concatenate([model.observe(engine, [image]) for image in images])
    order = np.arange(len(images))

    def compare(numbers: np.ndarray) -> tuple[bool, str]:
        together = model.observe(engine, [images[number] for number in numbers])
        ok, detail = model.compare(together, alone[numbers], model.rows(images))
        if ok:
            drift = margin_drift(together.selected, alone[numbers].selected)
            ok, words = model.explain_drift(drift)
            detail = detail if ok else f"margins: {words}"
        return ok, detail if ok else detail + _where(model, images, numbers)

    for numbers in (order, order[::-1]):
        ok, detail = compare(numbers)
        if not ok:
            break
    model.report.check(f"alone = inside a batch{how}", ok, detail)
    for count in counts:
        ok, detail = compare(np.arange(count) % len(images))
        if not ok:
            break
    if counts:
        model.report.check(f"alone = inside a large batch{how}", ok, f"batch {count}: {detail}")


def _where(model: ModelUnderTest, images: Sequence[Prepared], numbers: np.ndarray) -> str:
    """`; block 5 is the first to differ`, or nothing if no stage differs enough.

    Args:
        numbers: the images of the batch.
    """
    stages = model.bundle.stages
    margins = [names.margin_name(gate) for gate in model.gates]
    with model.engine(add_outputs(model.in_view(), [*stages, *margins])) as engine:
        alone = [engine.run(model.task.feeds([image])) for image in images]
        together = engine.run(model.task.feeds([images[number] for number in numbers]))
    gate_of = {names.block_name(block): gate for block, gate in model.config.gate_of.items()}
    for stage in stages:
        # What a gate decides differently, the block behind it computes of other tokens.
        gate = gate_of.get(stage)
        ranked = [] if gate is None else [(margins[gate], f"gate {gate}", model.rounding[gate])]
        own = (stage, stage.removesuffix(".out").replace("_", " "), model.limits.block)
        for name, label, limit in (*ranked, own):
            expected = np.concatenate([alone[number][name] for number in numbers])
            error, difference = np.inf, margin_error if name in margins else token_error
            if together[name].shape == expected.shape:
                error = difference(together[name], expected)
            if not error <= limit:
                return f"; {label} is the first to differ"
    shown = [
        model.task.read(one, [image], model.config)[0]
        for one, image in zip(alone, images, strict=True)
    ]
    company = model.task.read(together, [images[number] for number in numbers], model.config)
    errors = model.task.stage_errors(model.runs(company, [shown[number] for number in numbers]))
    for behind in model.task.stages(model.limits, False):
        if not errors.get(behind.name, 0.0) <= behind.limit:
            return f"; {behind.label} is the first to differ"
    return "; nothing before the heads differs" if model.task.fed_maps(model.config) else ""


def _mirrored(image: Prepared) -> Prepared:
    return dataclasses.replace(image, pixels=np.ascontiguousarray(image.pixels[..., ::-1]))
