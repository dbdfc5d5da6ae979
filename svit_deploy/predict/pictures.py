"""What a model found, and which tokens it computed, drawn over the pictures."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from svit_deploy.bundle import Bundle
from svit_deploy.errors import InputError
from svit_deploy.images.overlay import beside, overlay, survival_map, with_legend
from svit_deploy.images.prepared import Prepared
from svit_deploy.images.preprocess import denormalise
from svit_deploy.inference.stream import Seen
from svit_deploy.model.class_names import ClassNames
from svit_deploy.model.config import ModelConfig
from svit_deploy.predict.folder import picture_file, write_numbers
from svit_deploy.predict.formats import kept_tokens
from svit_deploy.tasks import TASKS
from svit_deploy.tasks.runs import Show

RESULTS = "predictions.json"
SCHEMA_VERSION = 1


def refuse_nothing(bundle: Bundle) -> None:
    """Raises InputError where there is nothing to draw."""
    if not bundle.task.draws and not bundle.has_gate_outputs:
        others = " or ".join(other.name for other in TASKS.values() if other.draws)
        raise InputError(
            f"{bundle.name} is a {bundle.task.name} without gate outputs: there is nothing to draw",
            f"use a bundle of --task {others}, or one with gate outputs",
        )


class Drawn(NamedTuple):
    """An image with what came out: its line of predictions.json, and its picture as a PNG."""

    result: dict[str, Any]
    png: bytes


def draw_pictures(bundle: Bundle, show: Show, classes: ClassNames) -> Callable[[Seen], Drawn]:
    """Draws an image: what the task draws, beside it how many gated blocks computed each patch."""
    task = bundle.task

    def draw(seen: Seen) -> Drawn:
        image, shown = seen.image, task.shown(seen.outputs, show)
        file = picture_file(seen.number, image.name)
        result = {"name": image.name, "file": file, "size": list(image.original_size)}
        result |= task.describe(shown, classes) | kept_tokens(seen)
        return Drawn(result, as_png(draw_result(seen, bundle, show, classes)))

    return draw


def write_pictures(found: Iterable[Drawn], folder: Path, show: Show) -> list[str]:
    """Writes a picture per image and predictions.json into a folder; returns their names."""
    results = []
    for result, png in found:
        (folder / result["file"]).write_bytes(png)
        results.append(result)
    content = {"min_score": show.min_score, "images": results}
    write_numbers(folder / RESULTS, {"schema_version": SCHEMA_VERSION, **content})
    return [*(result["file"] for result in results), RESULTS]


def as_png(picture: Image.Image) -> bytes:
    """A picture as a file."""
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def draw_result(seen: Seen, bundle: Bundle, show: Show, classes: ClassNames) -> Image.Image:
    """The picture with what came out over it, beside it what tokens were computed."""
    config, image = bundle.config, seen.image
    picture = seen.array if seen.array.dtype == np.uint8 else image.picture(config.preprocess)
    shown = bundle.task.shown(seen.outputs, show)
    drawn = Image.fromarray(bundle.task.draw(picture, shown, classes))
    if seen.keep_mask is None:
        return drawn
    drawn = beside(drawn, draw_tokens(image, seen.keep_mask, config))
    return with_legend(drawn, config.num_gates)


def draw_tokens(image: Prepared, keep: np.ndarray, config: ModelConfig) -> Image.Image:
    """How many gated blocks computed each patch, over the picture in grey, without the padding."""
    config = config.at(image.size)
    counts = survival_map(keep[None], config.prefix_tokens, config.grid)[0]
    whole = overlay(denormalise(image.pixels, config.preprocess), counts, len(keep))
    factor = whole.shape[0] // image.size[0]
    height, width = (side * factor for side in image.image_size)
    return Image.fromarray(whole[:height, :width])
