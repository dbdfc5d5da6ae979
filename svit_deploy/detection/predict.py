"""Runs a detector on pictures and draws what it found, and which tokens it computed."""

from __future__ import annotations

import colorsys
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from svit_deploy.detection.bundle import DetectionBundle
from svit_deploy.detection.config import AdapterConfig, Task
from svit_deploy.detection.postprocess import Detections, paste_masks, split_images
from svit_deploy.detection.preprocess import Prepared, as_prepared, feeds_of, prepare
from svit_deploy.engines.base import Engine
from svit_deploy.engines.onnxruntime import OnnxRuntimeEngine
from svit_deploy.errors import InputError
from svit_deploy.export import names
from svit_deploy.folder import write_folder
from svit_deploy.images import ImageSet
from svit_deploy.preprocess import denormalise
from svit_deploy.progress import SILENT, Progress
from svit_deploy.visualize import overlay, safe_name, survival_map, with_legend

RESULTS = "predictions.json"
SCHEMA_VERSION = 1


def predict_images(
    bundle: DetectionBundle,
    images: ImageSet,
    output: Path,
    *,
    min_score: float = 0.3,
    provider: str | None = None,
    threads: int = 0,
    progress: Progress = SILENT,
) -> list[Path]:
    """Writes a folder with one picture per image, and predictions.json.

    A picture shows the boxes and masks of the detections of at least `min_score`, and beside it
    how many gated blocks computed each patch. The folder appears complete or not at all; an
    earlier one is replaced.

    Raises:
        InputError: neither detections nor gates to draw, a picture that the graph cannot run, or
            an `output` that holds something else.
        ExportError: `output` cannot be written.
    """
    if bundle.task is not Task.DETECT and not bundle.has_gate_outputs:
        raise InputError(
            f"{bundle.name} is a backbone without gate outputs: there is nothing to draw",
            "use a bundle of --task detect, or one with gate outputs",
        )
    results = []
    with write_folder(output, _refuse_to_replace) as folder:
        with _open(bundle, provider, threads) as engine:
            for i, (name, array) in enumerate(zip(images.names, images.arrays, strict=True)):
                progress.update("running the model", i / len(images))
                picture, image = _prepare(array, bundle)
                found, keep = run_image(engine, bundle, image)
                found = None if found is None else found.above(min_score)
                drawn = Image.fromarray(draw_detections(picture, found, bundle.config))
                if keep is not None:
                    drawn = _beside(drawn, draw_tokens(image, keep, bundle.config))
                    drawn = with_legend(drawn, bundle.config.num_gates)
                file = f"{i:05d}_{safe_name(name)}.png"
                drawn.save(folder / file)
                results.append(_result(name, file, image, found, keep, bundle.config))
        content = {"schema_version": SCHEMA_VERSION, "min_score": min_score, "images": results}
        (folder / RESULTS).write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")
    return [output / str(result["file"]) for result in results] + [output / RESULTS]


def _open(bundle: DetectionBundle, provider: str | None, threads: int) -> Engine:
    if provider is None and bundle.engine_path is not None:
        return bundle.load_engine()
    return OnnxRuntimeEngine(bundle.model_path, provider=provider or "cpu", threads=threads)


def run_image(
    engine: Engine, bundle: DetectionBundle, image: Prepared
) -> tuple[Detections | None, np.ndarray | None]:
    """Detections, and the keep mask `[G, N]`, as far as the graph gives them."""
    outputs = engine.run(feeds_of([image], bundle.inputs))
    keep = outputs.get(names.KEEP_MASK)
    found = split_images(outputs, 1)[0] if bundle.task is Task.DETECT else None
    return found, None if keep is None else keep[0]


def draw_detections(
    picture: np.ndarray, found: Detections | None, config: AdapterConfig
) -> np.ndarray:
    """Boxes, masks and names over a picture uint8 `[H, W, 3]`, weakest first."""
    if found is None or not len(found):
        return picture
    height, width = picture.shape[:2]
    canvas = picture.astype(np.float32)
    masks = paste_masks(found.masks, found.boxes, (height, width))
    for label, mask in zip(found.labels, masks, strict=True):
        canvas[mask] = 0.5 * canvas[mask] + 0.5 * np.array(_colour(label), np.float32)
    image = Image.fromarray(canvas.astype(np.uint8))
    draw = ImageDraw.Draw(image)
    line = max(1, round(max(height, width) / 400))
    for i in reversed(range(len(found))):
        box, colour = found.boxes[i].tolist(), _colour(found.labels[i])
        draw.rectangle(box, outline=colour, width=line)
        text = f"{class_name(config, found.labels[i])} {found.scores[i]:.2f}"
        left, top = box[0], max(box[1] - 12, 0)
        draw.rectangle((left, top, left + draw.textlength(text) + 4, top + 12), fill=colour)
        draw.text((left + 2, top), text, fill="black")
    return np.asarray(image)


def draw_tokens(image: Prepared, keep: np.ndarray, config: AdapterConfig) -> Image.Image:
    """How many gated blocks computed each patch, over the picture in grey, without the padding."""
    grid = (image.size[0] // config.patch_size, image.size[1] // config.patch_size)
    counts = survival_map(keep[None], 0, grid)[0]
    whole = overlay(denormalise(image.pixels, config.preprocess), counts, len(keep))
    factor = whole.shape[0] // image.size[0]
    height, width = (side * factor for side in image.image_size)
    return Image.fromarray(whole[:height, :width])


def class_name(config: AdapterConfig, label: int) -> str:
    return config.class_names[label] if config.class_names else f"class {label}"


def _colour(label: int) -> tuple[int, int, int]:
    """Bright and far from its neighbours': hues a golden section apart."""
    red, green, blue = colorsys.hsv_to_rgb(float(label) * 0.618034 % 1, 0.75, 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)


def _prepare(array: np.ndarray, bundle: DetectionBundle) -> tuple[np.ndarray, Prepared]:
    """The picture to draw on, and the graph's input."""
    if array.dtype == np.uint8:
        return array, prepare(array, bundle.config, bundle.sizes)
    image = as_prepared(array, bundle.sizes)
    return image.picture(bundle.config.preprocess), image


def _beside(left: Image.Image, right: Image.Image) -> Image.Image:
    """Two pictures of one height."""
    right = right.resize((max(1, round(right.width * left.height / right.height)), left.height))
    pair = Image.new("RGB", (left.width + 8 + right.width, left.height), "white")
    pair.paste(left, (0, 0))
    pair.paste(right, (left.width + 8, 0))
    return pair


def _result(
    name: str,
    file: str,
    image: Prepared,
    found: Detections | None,
    keep: np.ndarray | None,
    config: AdapterConfig,
) -> dict[str, object]:
    result: dict[str, object] = {"name": name, "file": file, "size": list(image.original_size)}
    if found is not None:
        result["detections"] = [
            {
                "label": int(label),
                "name": class_name(config, label),
                "score": round(float(score), 6),
                "box": [round(float(side), 3) for side in box],
            }
            for label, score, box in zip(found.labels, found.scores, found.boxes, strict=True)
        ]
    if keep is not None:
        result["kept_tokens"] = _counts(keep)
    return result


def _counts(keep: np.ndarray) -> Sequence[int]:
    return [int(count) for count in keep.sum(axis=1)]


def _refuse_to_replace(output: Path) -> None:
    """Lets nothing pass but a free place and an earlier result."""
    if not output.exists():
        return
    if not output.is_dir():
        raise InputError(f"{output} is a file", "give a folder for the predictions")
    entries = list(output.iterdir())
    ours = all(e.is_file() and (e.suffix == ".png" or e.name == RESULTS) for e in entries)
    if entries and not (ours and (output / RESULTS).is_file()):
        raise InputError(
            f"folder {output} holds files that are not predictions",
            "give a new folder or empty this one",
        )
