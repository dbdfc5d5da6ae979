"""Pictures of which tokens a pruned model computes, in how many of its gated blocks.

The maps are those of the SViT paper ("Revisiting Token Pruning for Object Detection and
Instance Segmentation", Liu et al., WACV 2024): figure 4 per image, figure 6 as a mean over a
data set.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

# Every tenth of matplotlib's viridis: perceptually uniform, readable in grey and when colour-blind.
_VIRIDIS = "440154 482475 414487 355f8d 2a788e 21918c 22a884 44bf70 7ad151 bddf26 fde725"
_ANCHORS = np.array([list(bytes.fromhex(colour)) for colour in _VIRIDIS.split()], float)
_MIN_SIDE = 224
_GAP = 8
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
    grey = np.asarray(Image.fromarray(enlarge(picture)).convert("L"), np.uint16)
    colours = draw_map(counts, num_gates, grey.shape)
    return ((grey[:, :, None] + colours) // 2).astype(np.uint8)


def draw_map(counts: np.ndarray, num_gates: int, size: tuple[int, ...]) -> np.ndarray:
    """The colours alone, of `counts` `[h, w]`: uint8 `[*size, 3]`."""
    return _spread(_colours(counts / num_gates), size)


def _colours(values: np.ndarray) -> np.ndarray:
    """Viridis: values in [0, 1] of any shape `[...]` to uint8 `[..., 3]`."""
    positions = np.clip(values, 0, 1) * (len(_ANCHORS) - 1)
    steps = np.arange(len(_ANCHORS))
    channels = [np.interp(positions, steps, _ANCHORS[:, channel]) for channel in range(3)]
    return np.rint(np.stack(channels, axis=-1)).astype(np.uint8)


def _spread(cells: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Nearest-neighbour enlargement of `[h, w, ...]` to `size`, whole factor or not."""
    rows = np.arange(size[0]) * cells.shape[0] // size[0]
    columns = np.arange(size[1]) * cells.shape[1] // size[1]
    return cells[rows[:, None], columns]


def enlarge(picture: np.ndarray) -> np.ndarray:
    """A small picture by a whole factor, so that its shorter side has at least 224 pixels."""
    factor = math.ceil(_MIN_SIDE / min(picture.shape[:2]))
    return picture.repeat(factor, axis=0).repeat(factor, axis=1)


def beside(left: Image.Image, right: Image.Image) -> Image.Image:
    """Two pictures; the right one gets the height of the left one."""
    right = right.resize((max(1, round(right.width * left.height / right.height)), left.height))
    pair = Image.new("RGB", (left.width + _GAP + right.width, left.height), "white")
    pair.paste(left, (0, 0))
    pair.paste(right, (left.width + _GAP, 0))
    return pair


def thumbnail(pair: Image.Image) -> Image.Image:
    """A pair of pictures as it stands in a contact sheet."""
    scale = _SHEET_SIDE / pair.height
    return pair.resize((round(pair.width * scale), _SHEET_SIDE), Image.Resampling.BOX)


def contact_sheet(pairs: Sequence[Image.Image]) -> Image.Image:
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
    width = max(image.width, _MIN_SIDE)  # room for the swatches
    result = Image.new("RGB", (width, image.height + _LEGEND_HEIGHT), "white")
    result.paste(image, (0, 0))
    draw = ImageDraw.Draw(result)
    draw.text((_GAP, image.height + 4), "gated blocks that kept the patch", fill="black")
    left, top = _GAP, image.height + 20
    swatch = min((width - 2 * _GAP) / (num_gates + 1), 40)
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
