"""Pictures of which tokens a pruned model computes, in how many of its gated blocks.

The maps are those of the SViT paper ("Revisiting Token Pruning for Object Detection and
Instance Segmentation", Liu et al., WACV 2024): figure 4 per image, figure 6 as a mean over a
data set.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from svit_deploy.errors import InputError
from svit_deploy.images import PICTURE_SUFFIXES

USAGE_FILE = "token_usage.json"
USAGE_SCHEMA_VERSION = 1

# Every tenth of matplotlib's viridis: perceptually uniform, readable in grey and when colour-blind.
_VIRIDIS = "440154 482475 414487 355f8d 2a788e 21918c 22a884 44bf70 7ad151 bddf26 fde725"
_ANCHORS = np.array([list(bytes.fromhex(colour)) for colour in _VIRIDIS.split()], float)
_MIN_SIDE = 224
_GAP = 8
_SHEET_IMAGES = 24
_SHEET_COLUMNS = 4
_SHEET_SIDE = 128
_LEGEND_HEIGHT = 40


def survival_map(keep_mask: np.ndarray, prefix_tokens: int, grid: tuple[int, int]) -> np.ndarray:
    """How many of the gated blocks kept each patch: bool `[n, G, S]` to int64 `[n, h, w]`.

    The first `prefix_tokens` columns (class token, distillation token) are left out; the patches
    are in rows from the top left.

    Raises:
        ValueError: S is not prefix tokens + h * w.
    """
    height, width = grid
    if keep_mask.ndim != 3 or keep_mask.shape[2] != prefix_tokens + height * width:
        raise ValueError(
            f"keep_mask {keep_mask.shape} does not fit {prefix_tokens} prefix tokens "
            f"and {height}x{width} patches"
        )
    counts = keep_mask[:, :, prefix_tokens:].sum(axis=1, dtype=np.int64)
    return counts.reshape(-1, height, width)


def overlay(picture: np.ndarray, counts: np.ndarray, num_gates: int) -> np.ndarray:
    """Lays the colours of `counts`, 0 to `num_gates`, half transparent over the picture in grey.

    Grey, because the picture's own colours would change those of the map. A picture below 224
    pixels is first enlarged by a whole factor, to 224 or a little more.

    Args:
        picture: uint8 `[H, W, 3]`.
        counts: `[h, w]`, whole numbers or means.
        num_gates: the count that gets the brightest colour.

    Returns:
        uint8 `[H', W', 3]`.
    """
    grey = np.asarray(Image.fromarray(_enlarge(picture)).convert("L"), np.uint16)
    colours = _spread(_colours(counts / num_gates), grey.shape)
    return ((grey[:, :, None] + colours) // 2).astype(np.uint8)


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
        InputError: no image, no gate, `output` holds files of others or cannot be written.
    """
    num_gates = keep_mask.shape[1]
    if num_gates == 0 or len(names) == 0:
        raise InputError(
            "there are no token decisions to draw", "give a token-pruned model and some images"
        )
    counts = survival_map(keep_mask, prefix_tokens, grid)
    mean_map = counts.mean(axis=0)
    files = [f"{i:05d}_{safe_name(name)}.png" for i, name in enumerate(names)]
    usage = {
        "schema_version": USAGE_SCHEMA_VERSION,
        "num_gates": num_gates,
        "prefix_tokens": prefix_tokens,
        "grid": list(grid),
        "images": [
            {"name": name, "file": file, "kept_tokens": kept.tolist()}
            for name, file, kept in zip(names, files, keep_mask.sum(axis=2), strict=True)
        ],
        "mean_map": mean_map.round(4).tolist(),
    }
    with _replaced_folder(output) as folder:
        thumbnails: list[Image.Image] = []
        for file, picture, image_counts in zip(files, pictures, counts, strict=True):
            pair = _pair(_enlarge(picture), overlay(picture, image_counts, num_gates))
            with_legend(pair, num_gates).save(folder / file)
            if len(thumbnails) < _SHEET_IMAGES:
                thumbnails.append(_thumbnail(pair))
        mean = _spread(_colours(mean_map / num_gates), _enlarge(pictures[0]).shape[:2])
        with_legend(Image.fromarray(mean), num_gates).save(folder / "mean_map.png")
        with_legend(_sheet(thumbnails), num_gates).save(folder / "contact_sheet.png")
        _write_json(folder / USAGE_FILE, usage)
    return [output / file for file in (*files, "mean_map.png", "contact_sheet.png", USAGE_FILE)]


def check_output(output: Path) -> None:
    """Refuses a target that `write_token_maps` would not replace; call it before a long run.

    Raises:
        InputError: `output` is a file, or a folder that holds anything but earlier token maps.
    """
    if not output.exists():
        return
    if not output.is_dir():
        raise InputError(f"{output} is a file", "give a folder for the token maps")
    entries = list(output.iterdir())
    known = (USAGE_FILE, ".DS_Store")
    foreign = [
        e for e in entries if not e.is_file() or (e.suffix != ".png" and e.name not in known)
    ]
    if foreign or (entries and not (output / USAGE_FILE).is_file()):
        raise InputError(
            f"folder {output} holds files that are not token maps",
            "give a new folder or empty this one",
        )


@contextmanager
def _replaced_folder(output: Path) -> Iterator[Path]:
    """A new folder beside `output` that takes its place at the end, or vanishes on any error."""
    output = output.resolve()
    fresh = output.parent / f".{output.name}.{os.getpid()}.new"
    stale = output.parent / f".{output.name}.{os.getpid()}.old"
    try:
        check_output(output)
        fresh.mkdir(parents=True)
        yield fresh
        if output.exists():
            output.rename(stale)
        fresh.rename(output)
        shutil.rmtree(stale, ignore_errors=True)
    except OSError as error:
        raise InputError(
            f"{output} cannot be written ({error.strerror or error})",
            "check its permissions and the free space",
        ) from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def safe_name(name: str) -> str:
    """Letters and digits of any script, `-`, `_` and `.`; at most 50, so at most 200 bytes."""
    path = PurePosixPath(name)
    stem = str(path.with_suffix("")) if path.suffix.lower() in PICTURE_SUFFIXES else name
    safe = re.sub(r"[^\w.-]+", "_", unicodedata.normalize("NFC", stem))
    return safe.strip("._")[:50] or "image"


def _colours(values: np.ndarray) -> np.ndarray:
    """Viridis: values in [0, 1] of any shape `[...]` to uint8 `[..., 3]`."""
    positions = np.clip(values, 0, 1) * (len(_ANCHORS) - 1)
    steps = np.arange(len(_ANCHORS))
    channels = [np.interp(positions, steps, _ANCHORS[:, channel]) for channel in range(3)]
    return np.rint(np.stack(channels, axis=-1)).astype(np.uint8)


def _spread(cells: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Nearest-neighbour enlargement of `[h, w, ...]` to `size`, whole factor or not."""
    rows = np.arange(size[0]) * cells.shape[0] // size[0]
    columns = np.arange(size[1]) * cells.shape[1] // size[1]
    return cells[rows[:, None], columns]


def _enlarge(picture: np.ndarray) -> np.ndarray:
    """A small picture by a whole factor, so that its shorter side has at least 224 pixels."""
    factor = math.ceil(_MIN_SIDE / min(picture.shape[:2]))
    return picture.repeat(factor, axis=0).repeat(factor, axis=1)


def _pair(left: np.ndarray, right: np.ndarray) -> Image.Image:
    gap = np.full((len(left), _GAP, 3), 255, np.uint8)
    return Image.fromarray(np.concatenate([left, gap, right], axis=1))


def _thumbnail(pair: Image.Image) -> Image.Image:
    scale = _SHEET_SIDE / pair.height
    return pair.resize((round(pair.width * scale), _SHEET_SIDE), Image.Resampling.BOX)


def _sheet(pairs: Sequence[Image.Image]) -> Image.Image:
    """The pairs, all of one size, in rows of four, numbered."""
    width, height = pairs[0].width + 2 * _GAP, pairs[0].height + 2 * _GAP
    columns = min(len(pairs), _SHEET_COLUMNS)
    sheet = Image.new("RGB", (columns * width, math.ceil(len(pairs) / columns) * height), "white")
    draw = ImageDraw.Draw(sheet)
    for i, pair in enumerate(pairs):
        x, y = i % columns * width + _GAP, i // columns * height + 2 * _GAP
        sheet.paste(pair, (x, y))
        draw.text((x, y - 1.5 * _GAP), str(i), fill="black")
    return sheet


def with_legend(image: Image.Image, num_gates: int) -> Image.Image:
    """The image above a row of swatches, one for each number of blocks, 0 to `num_gates`."""
    result = Image.new("RGB", (image.width, image.height + _LEGEND_HEIGHT), "white")
    result.paste(image, (0, 0))
    draw = ImageDraw.Draw(result)
    draw.text((_GAP, image.height + 4), "gated blocks that kept the patch", fill="black")
    left, top = _GAP, image.height + 20
    swatch = min((image.width - 2 * _GAP) / (num_gates + 1), 40)
    colours = _colours(np.arange(num_gates + 1) / num_gates).tolist()
    for count, colour in enumerate(colours):
        start = left + count * swatch
        draw.rectangle((start, top, start + swatch, top + 16), fill=tuple(colour))
    # Only as many numbers as there is room for.
    every = math.ceil((draw.textlength(str(num_gates)) + 4) / swatch)
    for count in range(0, num_gates + 1, every):
        start = left + (count + 0.5) * swatch - draw.textlength(str(count)) / 2
        ink = "black" if count > num_gates / 2 else "white"
        draw.text((start, top + 2), str(count), fill=ink)
    return result
