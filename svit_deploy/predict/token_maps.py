"""Token maps of an exported model: its own keep masks, drawn over the pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from svit_deploy.bundle import Bundle
from svit_deploy.engines.runtimes import runtime_for
from svit_deploy.errors import InputError
from svit_deploy.images import images_of
from svit_deploy.images.overlay import (
    beside,
    contact_sheet,
    draw_map,
    enlarge,
    overlay,
    survival_map,
    thumbnail,
    with_legend,
)
from svit_deploy.images.prepared import groups
from svit_deploy.images.preprocess import denormalise
from svit_deploy.inference.engine import open_bundle_engine, require_run, tell_run
from svit_deploy.model.config import TokenMode
from svit_deploy.names import KEEP_MASK
from svit_deploy.plan import RUN, Plan
from svit_deploy.predict.folder import (
    check_result_folder,
    picture_file,
    result_folder,
    write_numbers,
)
from svit_deploy.predict.settings import VisualizeSettings
from svit_deploy.progress import SILENT, Progress
from svit_deploy.tasks.samples import prepare_all

USAGE, MEAN_MAP, CONTACT_SHEET = "token_usage.json", "mean_map.png", "contact_sheet.png"
SCHEMA_VERSION = 1
MAPS = "token maps"
SHEET_IMAGES = 24


def draw_token_maps(
    bundle: Bundle,
    output: Path,
    settings: VisualizeSettings,
    progress: Progress = SILENT,
    plan: Plan = RUN,
) -> list[Path]:
    """Runs the images and writes a folder of maps (see `write_token_maps`).

    Raises:
        InputError: the images have several sizes, the graph has no keep masks, or `output` cannot
            be used.
        ExportError: `output` cannot be written.
        CapabilityError: the engine or its device is missing.
    """
    _refuse_without_masks(bundle)
    task, config = bundle.task, bundle.config
    plan.needs(check_result_folder, output, USAGE, MAPS)
    runtime, _ = runtime_for([bundle.model_path], settings)
    settings = replace(settings, engine=runtime.name)  # even where the bundle brings an engine
    plan.needs(require_run, bundle, settings)
    medium = task.reader(config)
    images = images_of(settings.images, settings.max_images, progress, medium=medium)
    tell_run(plan, bundle, settings)
    plan.tell("images", f"{len(images)} ({images.kind})")
    plan.writes(*map_files(output, images.names))
    plan.begin()
    prepared = list(prepare_all(images, task, config, bundle.sizes))
    masks: list[np.ndarray] = []
    with open_bundle_engine(bundle, settings) as engine:
        for group in groups(prepared, bundle.together):
            progress.update("running the model", sum(map(len, masks)) / len(prepared))
            masks.append(engine.run(task.feeds(group), [KEEP_MASK])[KEEP_MASK])
    return write_token_maps(
        output,
        images.names,
        np.stack([denormalise(image.pixels, config.preprocess) for image in prepared]),
        np.concatenate(masks)[:, :, : config.num_tokens],  # not those that the method adds
        config.prefix_tokens,
        config.grid,
    )


def _refuse_without_masks(bundle: Bundle) -> None:
    """Raises InputError where there is no map to draw."""
    if not bundle.sizes.fixed:
        raise InputError(
            f"{bundle.name} runs images of several sizes, which have no common token map",
            "use predict, which draws each image's own",
        )
    if not bundle.config.num_gates and bundle.mode is not TokenMode.DENSE:
        raise InputError(
            f"{bundle.family.title} selects no tokens: it computes the same of every image",
            "give a bundle of another method",
        )
    if not bundle.has_gate_outputs:
        raise InputError(
            f"{bundle.name} does not tell which tokens it keeps",
            "use a bundle of another token mode than dense, exported with gate outputs",
        )


def write_token_maps(
    output: Path,
    names: Sequence[str],
    pictures: np.ndarray,
    keep_mask: np.ndarray,
    prefix_tokens: int,
    grid: tuple[int, int],
) -> list[Path]:
    """Writes a folder of token maps: one picture per image, their mean, a sheet, the numbers.

    `<index>_<name>.png` shows an image beside its overlay, `mean_map.png` the mean over all
    images, `contact_sheet.png` the first 24 images; `token_usage.json` holds the kept tokens of
    each image and gate (prefix tokens included) and the mean map. The folder appears complete or
    not at all; an earlier one is replaced.

    Args:
        output: the folder.
        names: one per image.
        pictures: uint8 `[n, H, W, 3]`, as the model sees them.
        keep_mask: bool `[n, G, S]`.
        prefix_tokens: tokens before the patches.
        grid: patches per column and per row.

    Returns:
        The files written, per-image pictures first.

    Raises:
        InputError: no image, no gate, or `output` holds files of others.
        ExportError: `output` cannot be written.
    """
    num_gates = keep_mask.shape[1]
    if num_gates == 0 or len(names) == 0:
        raise InputError(
            "there are no token decisions to draw", "give a token-pruned model and some images"
        )
    counts = survival_map(keep_mask, prefix_tokens, grid)
    mean_map = counts.mean(axis=0)
    files = [picture_file(i, name) for i, name in enumerate(names)]
    usage = {
        "schema_version": SCHEMA_VERSION,
        "num_gates": num_gates,
        "prefix_tokens": prefix_tokens,
        "grid": list(grid),
        "images": [
            {"name": name, "file": file, "kept_tokens": kept.tolist()}
            for name, file, kept in zip(names, files, keep_mask.sum(axis=2), strict=True)
        ],
        "mean_map": mean_map.round(4).tolist(),
    }
    with result_folder(output, USAGE, MAPS) as folder:
        thumbnails: list[Image.Image] = []
        for file, picture, image_counts in zip(files, pictures, counts, strict=True):
            shown = Image.fromarray(overlay(picture, image_counts, num_gates))
            pair = beside(Image.fromarray(enlarge(picture)), shown)
            with_legend(pair, num_gates).save(folder / file)
            if len(thumbnails) < SHEET_IMAGES:
                thumbnails.append(thumbnail(pair))
        mean = draw_map(mean_map, num_gates, enlarge(pictures[0]).shape[:2])
        with_legend(Image.fromarray(mean), num_gates).save(folder / MEAN_MAP)
        with_legend(contact_sheet(thumbnails), num_gates).save(folder / CONTACT_SHEET)
        write_numbers(folder / USAGE, usage)
    return map_files(output, names)


def map_files(output: Path, names: Sequence[str]) -> list[Path]:
    """The files that are written of images with these names, their own first."""
    files = [picture_file(i, name) for i, name in enumerate(names)]
    return [output / file for file in (*files, MEAN_MAP, CONTACT_SHEET, USAGE)]
