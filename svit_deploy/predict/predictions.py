"""Runs a model on pictures and draws what it found, and which tokens it computed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from svit_deploy.bundle import Bundle
from svit_deploy.engines.base import Engine
from svit_deploy.engines.onnxruntime import OnnxRuntimeEngine
from svit_deploy.engines.providers import CPU
from svit_deploy.errors import InputError
from svit_deploy.images import ImageSet, images_of
from svit_deploy.images.overlay import beside, overlay, survival_map, with_legend
from svit_deploy.images.prepared import Prepared
from svit_deploy.images.preprocess import denormalise
from svit_deploy.model.config import ModelConfig
from svit_deploy.model.result import Outputs
from svit_deploy.names import KEEP_MASK
from svit_deploy.plan import RUN, Plan
from svit_deploy.predict.folder import (
    check_result_folder,
    picture_file,
    result_folder,
    tell_run,
    write_numbers,
)
from svit_deploy.predict.settings import PredictSettings
from svit_deploy.progress import SILENT, Progress
from svit_deploy.tasks import TASKS
from svit_deploy.tasks.samples import prepare_all

RESULTS, PREDICTIONS = "predictions.json", "predictions"
SCHEMA_VERSION = 1


def predict_images(
    bundle: Bundle,
    output: Path,
    settings: PredictSettings,
    progress: Progress = SILENT,
    plan: Plan = RUN,
) -> list[Path]:
    """Writes a folder with one picture per image, and predictions.json.

    A picture shows what the task draws of results of at least `min_score`, and beside it how many
    gated blocks computed each patch. The folder appears complete or not at all; an earlier one is
    replaced.

    Raises:
        InputError: neither results nor gates to draw, a picture that the graph cannot run, or an
            `output` that holds something else.
        ExportError: `output` cannot be written.
        CapabilityError: what runs the bundle is missing.
    """
    task, config = bundle.task, bundle.config
    _refuse_nothing(bundle)
    plan.needs(check_result_folder, output, RESULTS, PREDICTIONS)
    plan.needs(bundle.require, settings.provider)
    images = images_of(settings.images, settings.max_images, progress)
    tell_run(plan, bundle, settings.provider, images)
    files = [picture_file(i, name) for i, name in enumerate(images.names)]
    plan.writes(*(output / file for file in (*files, RESULTS)))
    plan.begin()
    results: list[dict[str, Any]] = []
    with (
        result_folder(output, RESULTS, PREDICTIONS) as folder,
        _open(bundle, settings) as engine,
    ):
        for i, (picture, image) in enumerate(_prepare(images, bundle)):
            progress.update("running the model", i / len(images))
            outputs, keep = run_image(engine, bundle, image)
            shown = task.above(outputs, settings.min_score)
            drawn = Image.fromarray(task.draw(picture, shown, config))
            if keep is not None:
                drawn = beside(drawn, draw_tokens(image, keep, config))
                drawn = with_legend(drawn, config.num_gates)
            drawn.save(folder / files[i])
            result = {"name": image.name, "file": files[i], "size": list(image.original_size)}
            result |= task.describe(shown, config)
            if keep is not None:
                result["kept_tokens"] = keep.sum(axis=1).tolist()
            results.append(result)
        content = {"min_score": settings.min_score, "images": results}
        write_numbers(folder / RESULTS, {"schema_version": SCHEMA_VERSION, **content})
    return [output / file for file in (*files, RESULTS)]


def _refuse_nothing(bundle: Bundle) -> None:
    """Raises InputError where there is nothing to draw."""
    task = bundle.task
    if task.refuses_predict is not None:
        message, fix = task.refuses_predict
        raise InputError(f"{bundle.name} {message}", fix)
    if not task.draws and not bundle.has_gate_outputs:
        others = " or ".join(other.name for other in TASKS.values() if other.draws)
        raise InputError(
            f"{bundle.name} is a {task.name} without gate outputs: there is nothing to draw",
            f"use a bundle of --task {others}, or one with gate outputs",
        )


def _open(bundle: Bundle, settings: PredictSettings) -> Engine:
    if bundle.runs_engine(settings.provider):
        return bundle.load_engine()
    provider = settings.provider or CPU
    return OnnxRuntimeEngine(bundle.model_path, provider=provider, threads=settings.threads)


def _prepare(images: ImageSet, bundle: Bundle) -> Iterator[tuple[np.ndarray, Prepared]]:
    """Of each image the picture to draw on, and what the graph gets."""
    config = bundle.config
    prepared = prepare_all(images, bundle.task, config, bundle.sizes)
    for array, image in zip(images.arrays, prepared, strict=True):
        yield array if array.dtype == np.uint8 else image.picture(config.preprocess), image


def run_image(engine: Engine, bundle: Bundle, image: Prepared) -> tuple[Outputs, np.ndarray | None]:
    """What the task reads of an image's outputs, and its keep mask `[G, S]` if the graph tells."""
    outputs = engine.run(bundle.task.feeds([image]))
    (found,) = bundle.task.read(outputs, [image])
    keep = outputs.get(KEEP_MASK)
    tokens = bundle.config.at(image.size).num_tokens
    return found, None if keep is None else keep[0, :, :tokens]  # not those that the method adds


def draw_tokens(image: Prepared, keep: np.ndarray, config: ModelConfig) -> Image.Image:
    """How many gated blocks computed each patch, over the picture in grey, without the padding."""
    config = config.at(image.size)
    counts = survival_map(keep[None], config.prefix_tokens, config.grid)[0]
    whole = overlay(denormalise(image.pixels, config.preprocess), counts, len(keep))
    factor = whole.shape[0] // image.size[0]
    height, width = (side * factor for side in image.image_size)
    return Image.fromarray(whole[:height, :width])
